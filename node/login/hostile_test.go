package login_test

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/html"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/dev"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/session"
)

// submit fills in the provider's form on a page.
func (u *user) submit(page *http.Response, username string) (*http.Response, error) {
	forms, err := dev.Forms(page)
	if err != nil || len(forms) == 0 {
		u.w.t.Fatalf("%s: no form: %v: %s", page.Request.URL, err, body(u.w.t, page))
	}
	return u.Submit(u.w.t.Context(), page, forms[0], map[string]string{"username": username, "password": u.w.password(username)})
}

// chosen is where the page that offers several providers leads for one of them.
func (w *world) chosen(page *http.Response, provider string) string {
	w.t.Helper()
	for _, link := range links(w.t, page) {
		if u, err := url.Parse(link); err == nil && u.Query().Get("provider") == provider {
			return link
		}
	}
	w.t.Fatalf("%s offers no provider %s: %s", page.Request.URL, provider, body(w.t, page))
	return ""
}

func links(t testing.TB, page *http.Response) []string {
	t.Helper()
	root, err := html.Parse(strings.NewReader(body(t, page)))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for n := range root.Descendants() {
		if n.Type == html.ElementNode && n.Data == "a" {
			for _, a := range n.Attr {
				if a.Key == "href" {
					out = append(out, a.Val)
				}
			}
		}
	}
	return out
}

// attempts are the attempt cookies that the browser has for the sign-in host.
func (u *user) attempts() []*http.Cookie {
	at, err := url.Parse(u.w.url("eu", "auth", "/"))
	if err != nil {
		u.w.t.Fatal(err)
	}
	return slices.DeleteFunc(u.Client.Jar.Cookies(at), func(c *http.Cookie) bool { return !strings.HasPrefix(c.Name, "__Host-iapmesh_attempt_") })
}

// callbackURL signs in at the provider, and stops where it sends the browser back.
func (u *user) callbackURL(address, username string) string {
	u.w.t.Helper()
	u.stopAt(callbackPath)
	defer u.goOn()
	location, err := u.signIn(address, username).Location()
	if err != nil || location.Path != callbackPath {
		u.w.t.Fatalf("no callback: %v %v", location, err)
	}
	return location.String()
}

// with changes a parameter of an address; an empty value removes it.
func with(t *testing.T, address, name, value string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	if q.Set(name, value); value == "" {
		q.Del(name)
	}
	u.RawQuery = q.Encode()
	return u.String()
}

func TestACallbackIsTakenFromTheBrowserThatBeganItAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	begin := w.url("eu", "billing", "/")
	tests := map[string]struct {
		spoil func(t *testing.T, u *user, callback string) string // returns what is visited
		text  string
	}{
		"no attempt cookie": {func(t *testing.T, u *user, c string) string {
			u.keep(c, u.attempts()[0].Name, "")
			return c
		}, "begun in another browser"},
		"changed attempt cookie": {func(t *testing.T, u *user, c string) string {
			a := u.attempts()[0]
			u.keep(c, a.Name, flip(a.Value, 30))
			return c
		}, "cannot be finished"},
		"attempt cookie of another attempt": {func(t *testing.T, u *user, c string) string {
			mine := u.attempts()[0]
			other := w.user()
			other.callbackURL(begin, mallory)
			u.keep(c, mine.Name, other.attempts()[0].Value)
			return c
		}, "cannot be finished"},
		"the sealed request as attempt": {func(t *testing.T, u *user, c string) string {
			v := w.user()
			v.stopAt("/.iapmesh/sign_in")
			at, err := v.get(begin).Location()
			if err != nil {
				t.Fatal(err)
			}
			u.keep(c, u.attempts()[0].Name, at.Query().Get("request"))
			return c
		}, "cannot be finished"},
		"no state": {func(t *testing.T, _ *user, c string) string { return with(t, c, "state", "") }, "cannot be finished"},
		"another state": {func(t *testing.T, _ *user, c string) string {
			return with(t, c, "state", "00000000"+strings.Repeat("A", 26))
		}, "cannot be finished"},
		"a state that is no name":   {func(t *testing.T, _ *user, c string) string { return with(t, c, "state", "=;\"") }, "cannot be finished"},
		"no code":                   {func(t *testing.T, _ *user, c string) string { return with(t, c, "code", "") }, "not signed in"},
		"another code":              {func(t *testing.T, _ *user, c string) string { return with(t, c, "code", "x") }, "not signed in"},
		"another provider's answer": {func(t *testing.T, _ *user, c string) string { return with(t, c, "iss", w.idps["other"].server.URL) }, "cannot be finished"},
		"a refusal of the provider": {func(t *testing.T, _ *user, c string) string { return with(t, c, "error", "access_denied<b>") }, "dev answered: access_deniedb."},
		"another user's code": {func(t *testing.T, _ *user, c string) string {
			theirs := w.user().callbackURL(begin, mallory)
			u, err := url.Parse(theirs)
			if err != nil {
				t.Fatal(err)
			}
			return with(t, c, "code", u.Query().Get("code")) // injected: PKCE refuses it
		}, "not signed in"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := w.user()
			callback := u.callbackURL(begin, ana)
			page := u.get(test.spoil(t, u, callback))
			if page.StatusCode != http.StatusBadRequest && page.StatusCode != http.StatusForbidden || !strings.Contains(body(t, page), test.text) {
				t.Errorf("answers %d: %s, want a refusal with %q", page.StatusCode, body(t, page), test.text)
			}
			if _, has := u.Cookie(callback, session.CookieName); has {
				t.Error("a session was begun")
			}
		})
	}
}

func TestACallbackWorksOnceAndNotForever(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	u := w.user()
	callback := u.callbackURL(w.url("eu", "billing", "/"), ana)
	attempt := u.attempts()[0]
	w.greeted(u.get(callback))
	w.refused(u.get(callback), http.StatusBadRequest, "finished already")
	u.keep(callback, attempt.Name, attempt.Value)
	w.refused(u.get(callback), http.StatusForbidden, "not signed in") // the provider has changed the code already

	late := w.user()
	callback = late.callbackURL(w.url("eu", "billing", "/"), ana)
	w.clock.Add(601)
	w.refused(late.get(callback), http.StatusBadRequest, "expired")
}

func TestAProviderThatWasChangedMeanwhileGetsNoCode(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	u := w.user()
	callback := u.callbackURL(w.url("eu", "billing", "/"), ana)
	w.apply(strings.Replace(w.yaml(), w.idps["dev"].server.URL, w.idps["other"].server.URL, 1))
	w.refused(u.get(callback), http.StatusBadRequest, "cannot be finished")
}

func TestTabsSignInSideBySide(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	u := w.user()
	var forms []*http.Response
	for _, path := range []string{"/one", "/two", "/three"} {
		forms = append(forms, u.get(w.url("eu", "billing", path)))
	}
	var sessions []string
	for i, want := range []string{"/one", "/two", "/three"} {
		page, err := u.submit(forms[i], ana)
		if err != nil {
			t.Fatal(err)
		}
		g := w.greeted(page)
		if g.URI != want {
			t.Errorf("tab %d arrived at %s, want %s", i, g.URI, want)
		}
		sessions = append(sessions, g.Session)
	}
	if got := u.attempts(); len(got) != 0 {
		t.Errorf("attempt cookies are left: %v", got)
	}
	if sessions[0] != sessions[2] {
		t.Errorf("sessions %q on one host: a later ticket of the same browser replaced a session that counts", sessions)
	}

	many := w.user()
	for range 12 {
		many.get(w.url("eu", "billing", "/"))
	}
	if n := len(many.attempts()); n > 4 {
		t.Errorf("%d attempt cookies: with more, browsers and servers give up on the headers", n)
	}
	last := many.get(w.url("eu", "billing", "/last"))
	if page, err := many.submit(last, ana); err != nil || w.greeted(page).URI != "/last" {
		t.Errorf("the newest tab cannot be finished: %v", err)
	}
}

func TestAUserWhoIsBlockedDoesNotSignIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	subject := w.greeted(w.user().signIn(w.url("eu", "billing", "/"), ana)).Subject
	w.revoke(keyring.RevokeSubject, subject, true)
	u := w.user()
	w.refused(u.signIn(w.url("eu", "billing", "/"), ana), http.StatusForbidden, "blocked")
	if _, has := u.Cookie(w.url("eu", "auth", "/"), session.CookieName); has {
		t.Error("a blocked user got a session")
	}
	records := w.trail.all()
	if last := records[len(records)-1]; last.Kind != audit.KindSignIn || last.Decision != audit.Deny || last.Actor.Subject != subject || last.Reason != "blocked" {
		t.Errorf("record %+v", last)
	}
}

func TestARevokedUserSignsInAnewAndIsNotSentInCircles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	u := w.user()
	before := w.greeted(u.signIn(w.url("eu", "billing", "/"), ana))
	w.revoke(keyring.RevokeSubject, before.Subject, false)
	w.idps["dev"].EndSessions()
	after := w.greeted(u.signIn(w.url("eu", "billing", "/"), ana))
	if after.Session == before.Session {
		t.Error("a revoked session came back")
	}

	held := w.user()
	ticket := held.ticketURL(w.url("eu", "billing", "/"), ana)
	w.revoke(keyring.RevokeSubject, before.Subject, false)
	w.refused(held.get(ticket), http.StatusBadRequest, "cannot be finished")
}

func TestASignInThatCannotBeRecordedDoesNotHappen(t *testing.T) {
	t.Parallel()
	for name, at := range map[string]string{"at the sign-in host": callbackPath, "at the host": handoffPath} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			u := w.user()
			var held string
			if at == callbackPath {
				held = u.callbackURL(w.url("eu", "billing", "/"), ana)
			} else {
				held = u.ticketURL(w.url("eu", "billing", "/"), ana)
			}
			w.trail.full.Store(true)
			page := u.get(held)
			if page.StatusCode != http.StatusServiceUnavailable || page.Header.Get("X-Iapmesh-Response") != "sign_in_failed" {
				t.Errorf("answers %d", page.StatusCode)
			}
			if _, has := u.Cookie(held, session.CookieName); has {
				t.Error("a session was begun without a record")
			}
		})
	}
}

func TestAProviderThatIsDownIsNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.idps["dev"].down.Store(true)
	u := w.user()
	page := u.get(w.url("eu", "billing", "/"))
	w.refused(page, http.StatusServiceUnavailable, "The identity provider does not answer")
	if page.Header.Get("Retry-After") == "" || page.Header.Get("X-Iapmesh-Response") != "provider_unavailable" {
		t.Errorf("header %v", page.Header)
	}
	w.idps["dev"].down.Store(false)
	w.clock.Add(3) // the failure is remembered for a moment
	again := links(t, page)
	if len(again) != 1 {
		t.Fatalf("links %q", again)
	}
	if g := w.greeted(u.signIn(again[0], ana)); g.Email != ana {
		t.Errorf("greeted as %+v", g)
	}

	w.idps["dev"].down.Store(true)
	if g := w.greeted(u.get(w.url("us", "billing", "/"))); g.Email != ana {
		t.Errorf("whoever is signed in is greeted as %+v", g)
	}
	held := w.user()
	w.idps["dev"].down.Store(false)
	callback := held.callbackURL(w.url("eu", "billing", "/"), ana)
	w.idps["dev"].down.Store(true)
	w.refused(held.get(callback), http.StatusServiceUnavailable, "")
}

func TestProvidersDoNotSpeakForEachOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	u := w.user()
	page := u.get(w.url("eu", "wiki", "/")) // which takes both
	page = u.get(w.chosen(page, "other"))
	forms, err := dev.Forms(page)
	if err != nil || len(forms) == 0 {
		t.Fatalf("no form: %v", err)
	}
	password := ""
	for _, user := range w.idps["other"].Users() {
		if user.Username == ana {
			password = user.Password
		}
	}
	page, err = u.Submit(t.Context(), page, forms[0], map[string]string{"username": ana, "password": password})
	if err != nil {
		t.Fatal(err)
	}
	if g := w.greeted(page); !strings.HasPrefix(g.Subject, "other/") || !slices.Equal(g.Groups, []string{"other/engineering"}) {
		t.Errorf("greeted as %+v", g)
	}
	// billing takes dev alone: the session of the other provider is not handed over.
	page = u.get(w.url("eu", "billing", "/"))
	if got := "https://" + page.Request.URL.Host; got != w.idps["dev"].server.URL {
		t.Errorf("arrived at %s with %d, want the provider of the route", page.Request.URL, page.StatusCode)
	}
	// Nor by asking for it.
	u.stopAt("/.iapmesh/sign_in")
	at, err := u.get(w.url("eu", "billing", "/")).Location()
	if err != nil {
		t.Fatal(err)
	}
	u.goOn()
	w.refused(u.get(with(t, at.String(), "provider", "other")), http.StatusBadRequest, "not for this application")
}
