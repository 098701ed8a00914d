package login_test

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/node/session"
)

func TestAUserSignsInOnceForEveryHostAndComesBackToWhatWasAskedFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	u := w.user()
	first := w.greeted(u.signIn(w.url("eu", "billing", "/invoices?year=2026&q=a%2Fb"), ana))
	if first.URI != "/invoices?year=2026&q=a%2Fb" || first.Email != ana || !slices.Equal(first.Groups, []string{"dev/engineering"}) ||
		!strings.HasPrefix(first.Subject, "dev/") {
		t.Errorf("greeted as %+v", first)
	}
	port := ":" + w.port("eu")
	want := []string{
		"auth.localhost" + port + "/.iapmesh/sign_in", strings.TrimPrefix(w.idps["dev"].server.URL, "https://") + "/authorize",
	}
	if len(u.hops) < 2 || !slices.Equal(u.hops[:2], want) {
		t.Errorf("hops %q, want them to begin with %q", u.hops, want)
	}
	if tail := []string{"auth.localhost" + port + callbackPath, "billing.localhost" + port + handoffPath, "billing.localhost" + port + "/invoices"}; !slices.Equal(u.hops[len(u.hops)-3:], tail) {
		t.Errorf("hops %q, want them to end with %q", u.hops, tail)
	}

	u.hops = nil
	second := w.greeted(u.get(w.url("eu", "wiki", "/")))
	if second.Session != first.Session {
		t.Errorf("session %s on the second host, %s on the first: a sign-out would not reach both", second.Session, first.Session)
	}
	for _, hop := range u.hops {
		if !strings.HasSuffix(hop, "/.iapmesh/sign_in") && !strings.HasSuffix(hop, handoffPath) && !strings.HasPrefix(hop, "wiki.localhost") {
			t.Errorf("the second host's sign-in went by %s", hop)
		}
	}
	if again := w.greeted(u.get(w.url("us", "billing", "/"))); again.Session != first.Session {
		t.Errorf("session %s in the other region, want %s", again.Session, first.Session)
	}

	type line struct{ Kind, Host, Decision, By, Session string }
	var got []line
	for _, r := range w.trail.all() {
		got = append(got, line{string(r.Kind), r.Host, r.Decision, r.Detail["by"], r.Actor.SessionID})
		if r.Actor.Subject != first.Subject || r.Actor.SigningKID == "" || r.Actor.ProvisioningKey != "key-of-eu" || r.SourceIP != "127.0.0.1" || r.Detail["amr"] != "pwd" {
			t.Errorf("record %+v", r)
		}
	}
	if diff := cmp.Diff([]line{
		{string(audit.KindSignIn), "auth.localhost", audit.Allow, "provider", first.Session},
		{string(audit.KindSignIn), "billing.localhost", audit.Allow, "host", first.Session},
		{string(audit.KindSignIn), "wiki.localhost", audit.Allow, "host", first.Session},
	}, got); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// move sends the browser to the other region for paths of ours.
func move(w *world, from, to string, paths ...string) func(*url.URL) error {
	return func(u *url.URL) error {
		if slices.Contains(paths, u.Path) && strings.HasSuffix(u.Host, ":"+w.port(from)) {
			u.Host = strings.TrimSuffix(u.Host, w.port(from)) + w.port(to)
		}
		return nil
	}
}

func TestASignInBegunInOneRegionCanBeFinishedInAnother(t *testing.T) {
	t.Parallel()
	for name, paths := range map[string][]string{
		"after the host":           {"/.iapmesh/sign_in"},
		"after the provider":       {callbackPath},
		"with the ticket in hand":  {handoffPath},
		"at each step but the end": {"/.iapmesh/sign_in", callbackPath, handoffPath},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			u := w.user()
			u.steer = move(w, "eu", "us", paths...)
			page := u.signIn(w.url("eu", "billing", "/x"), ana)
			if g := w.greeted(page); g.Email != ana || g.Node != "us" {
				t.Errorf("greeted as %+v, want a session of the other region", g)
			}
			if got := page.Request.URL.Port(); got != w.port("us") {
				t.Errorf("arrived at port %s, want that of the region that the user was moved to, %s", got, w.port("us"))
			}
		})
	}
}

func TestATicketWorksOnceInTheBrowserThatAskedForIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)

	t.Run("another browser", func(t *testing.T) {
		ticket := w.user().ticketURL(w.url("eu", "billing", "/"), ana)
		thief := w.user()
		w.refused(thief.get(ticket), http.StatusBadRequest, "begun in another browser")
		if _, has := thief.Cookie(ticket, session.CookieName); has {
			t.Error("another browser got a session")
		}
	})
	t.Run("another browser with a state of its own", func(t *testing.T) {
		ticket := w.user().ticketURL(w.url("eu", "billing", "/"), ana)
		thief := w.user()
		thief.stopAt("/.iapmesh/sign_in")
		thief.get(w.url("eu", "billing", "/"))
		thief.goOn()
		w.refused(thief.get(ticket), http.StatusBadRequest, "begun in another browser")
	})
	t.Run("a second time", func(t *testing.T) {
		u := w.user()
		ticket := u.ticketURL(w.url("eu", "billing", "/"), ana)
		state, _ := u.Cookie(ticket, "__Host-iapmesh_state")
		w.greeted(u.get(ticket))
		if _, has := u.Cookie(ticket, "__Host-iapmesh_state"); has {
			t.Error("the state cookie outlived its ticket")
		}
		u.keep(ticket, session.CookieName, "") // signed out in the meantime, and the state kept by somebody
		u.keep(ticket, "__Host-iapmesh_state", state.Value)
		w.refused(u.get(ticket), http.StatusBadRequest, "finished already")
	})
	t.Run("by the back button", func(t *testing.T) {
		u := w.user()
		ticket := u.ticketURL(w.url("eu", "billing", "/deep"), ana)
		before := w.greeted(u.get(ticket))
		token, _ := u.Cookie(ticket, session.CookieName)
		if diff := cmp.Diff(before, w.greeted(u.get(ticket))); diff != "" {
			t.Errorf("greeted otherwise (-before +after):\n%s", diff)
		}
		if now, _ := u.Cookie(ticket, session.CookieName); now.Value != token.Value {
			t.Error("a used ticket minted a session")
		}
	})
	t.Run("too late", func(t *testing.T) {
		u := w.user()
		ticket := u.ticketURL(w.url("eu", "billing", "/"), ana)
		w.clock.Add(121) // its minute, and what clocks may differ by
		defer w.clock.Add(-121)
		w.refused(u.get(ticket), http.StatusBadRequest, "expired")
	})
	t.Run("on another host", func(t *testing.T) {
		u := w.user()
		ticket := u.ticketURL(w.url("eu", "billing", "/"), ana)
		u.stopAt("/.iapmesh/sign_in")
		u.get(w.url("eu", "wiki", "/"))
		u.goOn()
		state, _ := u.Cookie(ticket, "__Host-iapmesh_state")
		elsewhere := strings.Replace(ticket, "billing.", "wiki.", 1)
		u.keep(elsewhere, "__Host-iapmesh_state", state.Value)
		w.refused(u.get(elsewhere), http.StatusBadRequest, "cannot be finished")
		if _, has := u.Cookie(elsewhere, session.CookieName); has {
			t.Error("a ticket for billing opened wiki")
		}
	})
	t.Run("changed on the way", func(t *testing.T) {
		u := w.user()
		ticket := u.ticketURL(w.url("eu", "billing", "/"), ana)
		for _, changed := range []string{ticket[:len(ticket)-1], flip(ticket, 40), ticket + "AA", strings.SplitAfter(ticket, "ticket=")[0]} {
			w.refused(u.get(changed), http.StatusBadRequest, "cannot be finished")
		}
		w.greeted(u.get(ticket))
	})
}

// flip changes the character that lies n before the end.
func flip(s string, n int) string {
	b := []byte(s)
	if i := len(b) - n; b[i] == 'A' {
		b[i] = 'B'
	} else {
		b[i] = 'A'
	}
	return string(b)
}

// keep sets a cookie of ours in the browser, or, without a value, removes it.
func (u *user) keep(address, name, value string) {
	u.w.t.Helper()
	at, err := url.Parse(address)
	if err != nil {
		u.w.t.Fatal(err)
	}
	c := &http.Cookie{Name: name, Value: value, Path: "/", Secure: true, HttpOnly: true}
	if value == "" {
		c.MaxAge = -1
	}
	u.Client.Jar.SetCookies(at, []*http.Cookie{c})
}
