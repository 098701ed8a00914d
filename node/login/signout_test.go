package login_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/dev"
	"github.com/iapmesh/iapmesh/node/session"
)

const signOutPath = "/.iapmesh/sign_out"

// signOut opens a host's sign-out page and confirms.
func (u *user) signOut(host string) *http.Response {
	u.w.t.Helper()
	page := u.get(u.w.url("eu", host, signOutPath))
	forms, err := dev.Forms(page)
	if err != nil || len(forms) != 1 {
		u.w.t.Fatalf("%s: %d forms: %v", host, len(forms), err)
	}
	page, err = u.Submit(u.w.t.Context(), page, forms[0], nil)
	if err != nil {
		u.w.t.Fatal(err)
	}
	return page
}

func (u *user) has(host string) bool {
	_, has := u.Cookie(u.w.url("eu", host, "/"), session.CookieName)
	return has
}

func TestSigningOutEndsTheSessionEverywhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	u := w.user()
	g := w.greeted(u.signIn(w.url("eu", "billing", "/"), ana))
	w.greeted(u.get(w.url("us", "wiki", "/")))
	u.stopAt("/.iapmesh/sign_in")

	confirm := u.get(w.url("eu", "billing", signOutPath))
	if w.refused(confirm, http.StatusOK, ana); !strings.Contains(confirm.Header.Get("Content-Security-Policy"), "form-action 'self' https://auth.localhost:"+w.port("eu")+";") {
		t.Errorf("policy %q: a browser would stop on the way to the sign-in host", confirm.Header.Get("Content-Security-Policy"))
	}
	if !u.has("billing") {
		t.Error("a link signed the user out")
	}
	page := u.signOut("billing")
	w.refused(page, http.StatusOK, "ended on every application")
	if page.Request.URL.Host != "auth.localhost:"+w.port("eu") {
		t.Errorf("arrived at %s", page.Request.URL)
	}
	if u.has("billing") || u.has("auth") {
		t.Error("cookies are left")
	}
	for _, host := range []string{"billing", "wiki"} {
		if page := u.get(w.url("us", host, "/")); page.StatusCode != http.StatusFound {
			t.Errorf("%s still answers %d", host, page.StatusCode)
		}
	}
	records := w.trail.all()
	if last := records[len(records)-1]; last.Kind != audit.KindSignOut || last.Actor.SessionID != g.Session || last.Detail["ended"] != "every region" {
		t.Errorf("record %+v", last)
	}
	w.refused(u.signOut("billing"), http.StatusOK, "There is no session on this host")
}

func TestSigningOutWithoutALeaderSaysWhatItCouldNotDo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	u := w.user()
	w.greeted(u.signIn(w.url("eu", "billing", "/"), ana))
	w.ended.noLeader.Store(true)
	w.trail.full.Store(true) // leaving is not refused for that
	w.refused(u.signOut("billing"), http.StatusOK, "could not be told yet")
	if u.has("billing") || u.has("auth") {
		t.Error("cookies are left")
	}
}

func TestNobodyIsSignedOutFromOutside(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	u := w.user()
	w.greeted(u.signIn(w.url("eu", "billing", "/"), ana))
	own := strings.TrimSuffix(w.url("eu", "billing", ""), "/")
	for name, header := range map[string]map[string]string{
		"cross-site":        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
		"a sibling host":    {"Sec-Fetch-Site": "same-site", "Origin": w.url("eu", "wiki", "")},
		"another port":      {"Origin": w.url("us", "billing", "")},
		"plain http":        {"Origin": "http" + strings.TrimPrefix(own, "https")},
		"an opaque origin":  {"Origin": "null"},
		"no word of it":     {},
		"two that disagree": {"Sec-Fetch-Site": "cross-site", "Origin": own},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, own+signOutPath, strings.NewReader(""))
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range header {
			r.Header.Set(k, v)
		}
		page, err := u.Client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = page.Body.Close()
		if page.StatusCode != http.StatusForbidden {
			t.Errorf("%s: answers %d", name, page.StatusCode)
		}
	}
	w.refused(u.get(w.url("eu", "auth", "/.iapmesh/sign_out/complete")), http.StatusOK, "You are still signed in here")
	w.refused(u.get(w.url("eu", "auth", "/.iapmesh/sign_out/complete?note=AAAA")), http.StatusOK, "You are still signed in here")

	// A note of one's own sign-out does not sign out somebody else.
	attacker := w.user()
	w.greeted(attacker.signIn(w.url("eu", "billing", "/"), mallory))
	attacker.stopAt("/.iapmesh/sign_out/complete")
	at, err := attacker.signOut("billing").Location()
	if err != nil {
		t.Fatal(err)
	}
	w.refused(u.get(at.String()), http.StatusOK, "You are still signed in here")
	if !u.has("billing") || !u.has("auth") {
		t.Error("a session was ended from outside")
	}
}
