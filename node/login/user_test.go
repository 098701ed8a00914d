package login_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/internal/dev"
)

// user is a person's browser. Before each redirect it asks steer, which may change the address, or stop there.
type user struct {
	*dev.Browser
	w     *world
	hops  []string
	steer func(*url.URL) error
}

func (w *world) user() *user {
	u := &user{Browser: dev.NewBrowser(dev.Config{CA: w.authority.Pool(), Dial: (&net.Dialer{}).DialContext}), w: w}
	u.Client.Transport.(*http.Transport).TLSHandshakeTimeout = 0
	rules := u.Client.CheckRedirect
	u.Client.CheckRedirect = func(r *http.Request, via []*http.Request) error {
		if u.steer != nil {
			if err := u.steer(r.URL); err != nil {
				return err
			}
		}
		u.hops = append(u.hops, r.URL.Host+r.URL.Path)
		return rules(r, via)
	}
	w.t.Cleanup(u.Client.CloseIdleConnections)
	return u
}

// stopAt makes the browser stop before it follows a redirect to path, which it does with the next visit.
func (u *user) stopAt(path string) {
	u.steer = func(to *url.URL) error {
		if to.Path == path {
			return http.ErrUseLastResponse
		}
		return nil
	}
}

// goOn lets the browser follow redirects again.
func (u *user) goOn() { u.steer = nil }

func (u *user) get(address string) *http.Response {
	u.w.t.Helper()
	page, err := u.Get(u.w.t.Context(), address)
	if err != nil {
		u.w.t.Fatal(err)
	}
	return page
}

func (u *user) signIn(address, username string) *http.Response {
	u.w.t.Helper()
	page, err := u.SignIn(u.w.t.Context(), address, username, u.w.password(username))
	if err != nil {
		u.w.t.Fatal(err)
	}
	return page
}

// ticketURL signs in, and stops where the browser would hand in its ticket.
func (u *user) ticketURL(address, username string) string {
	u.w.t.Helper()
	u.stopAt(handoffPath)
	defer u.goOn()
	page := u.signIn(address, username)
	location, err := page.Location()
	if err != nil || location.Path != handoffPath {
		u.w.t.Fatalf("no ticket: %d %s: %v", page.StatusCode, body(u.w.t, page), err)
	}
	return location.String()
}

func body(t testing.TB, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	r.Body = io.NopCloser(bytes.NewReader(b))
	return string(b)
}

// greeted is what the application said; it fails if anybody else answered.
func (w *world) greeted(page *http.Response) greeting {
	w.t.Helper()
	var g greeting
	if page.StatusCode != http.StatusOK || json.Unmarshal([]byte(body(w.t, page)), &g) != nil {
		w.t.Fatalf("%s answers %d, not the application: %s", page.Request.URL, page.StatusCode, body(w.t, page))
	}
	return g
}

// refused fails unless the page is ours, of that status and with that text.
func (w *world) refused(page *http.Response, status int, text string) {
	w.t.Helper()
	if page.StatusCode != status || !strings.Contains(body(w.t, page), text) {
		w.t.Errorf("%s answers %d: %s, want %d with %q", page.Request.URL.Path, page.StatusCode, body(w.t, page), status, text)
	}
	if got := page.Header.Get("Content-Security-Policy"); !strings.HasPrefix(got, "default-src 'none'") {
		w.t.Errorf("policy of the page: %q", got)
	}
}
