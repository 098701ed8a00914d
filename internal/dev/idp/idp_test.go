package idp_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/oauth2"

	"github.com/iapmesh/iapmesh/internal/dev"
	"github.com/iapmesh/iapmesh/internal/dev/idp"
	"github.com/iapmesh/iapmesh/internal/fault"
)

func TestSignInYieldsVerifiedClaims(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	want := map[string]claims{
		"ana@example.com":     {Name: "Ana Costa", Groups: []string{"engineering"}},
		"bob@example.com":     {Name: "Bob Okafor", Groups: []string{"finance"}},
		"mallory@example.com": {Name: "Mallory Quint", Groups: []string{}},
	}
	for _, user := range w.provider.Users() {
		before := time.Now().Unix()
		query := w.arrived(w.browser.SignIn(t.Context(), w.authorizeURL(oauth2.SetAuthURLParam("prompt", "login")), user.Username, user.Password))
		if query.Get("state") != "the state" {
			t.Errorf("%s: state %q", user.Username, query.Get("state"))
		}
		got, token := w.exchange(query.Get("code"))
		if got.AuthTime < before || got.AuthTime > time.Now().Unix() {
			t.Errorf("%s: auth_time %d, signed in at %d", user.Username, got.AuthTime, before)
		}
		expect := want[user.Username]
		expect.Subject, expect.Email, expect.EmailVerified, expect.AMR = user.Subject, user.Username, true, []string{"pwd"}
		expect.AuthTime = got.AuthTime
		if diff := cmp.Diff(expect, got); diff != "" {
			t.Errorf("%s: id token (-want +got):\n%s", user.Username, diff)
		}
		info, err := w.oidc.UserInfo(w.ctx(), oauth2.StaticTokenSource(token))
		if err != nil {
			t.Fatal(err)
		}
		var c claims
		if err := info.Claims(&c); err != nil || !cmp.Equal(c.Groups, expect.Groups) || c.Email != user.Username {
			t.Errorf("%s: userinfo %+v, error %v", user.Username, c, err)
		}
	}
}

func TestWrongPasswordShowsTheFormAgain(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	for _, test := range []struct{ name, username, password string }{
		{"wrong password", "ana@example.com", "not this"},
		{"another's password", "ana@example.com", w.password("bob@example.com")},
		{"unknown user", "eve@example.com", w.password("ana@example.com")},
		{"empty", "", ""},
	} {
		page, err := w.browser.SignIn(t.Context(), w.authorizeURL(), test.username, test.password)
		if !fault.Is(err, fault.Unauthenticated) || page == nil || page.StatusCode != http.StatusUnauthorized {
			t.Fatalf("%s: error %v", test.name, err)
		}
		forms, err := dev.Forms(page)
		if err != nil || len(forms) != 1 || forms[0].Alert != "Wrong username or password." {
			t.Fatalf("%s: forms %+v, error %v", test.name, forms, err)
		}
		if forms[0].Fields["username"] != test.username || forms[0].Fields["password"] != "" {
			t.Errorf("%s: the form came back with %v", test.name, forms[0].Fields)
		}
		// The same form then takes the right one.
		page, err = w.browser.Submit(t.Context(), page, forms[0],
			map[string]string{"username": "ANA@example.com ", "password": w.password("ana@example.com")})
		if w.arrived(page, err).Get("code") == "" {
			t.Errorf("%s: no code after the right password", test.name)
		}
		w.provider.EndSessions()
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	good := w.authorizeURL()
	change := func(name, value string) string {
		u, err := url.Parse(good)
		if err != nil {
			t.Fatal(err)
		}
		q := u.Query()
		q.Set(name, value)
		u.RawQuery = q.Encode()
		return u.String()
	}
	for _, test := range []struct {
		name, url string
		redirect  string // error code that the client is told; empty: the browser stays, for the client is not known
	}{
		{"another host", change("redirect_uri", "https://evil.localhost/.iapmesh/callback"), ""},
		{"another port", change("redirect_uri", "https://auth.localhost:1/.iapmesh/callback"), ""},
		{"user information", change("redirect_uri", strings.Replace(w.oauth.RedirectURL, "https://", "https://evil@", 1)), ""},
		{"longer path", change("redirect_uri", w.oauth.RedirectURL+"/x"), ""},
		{"added query", change("redirect_uri", w.oauth.RedirectURL+"?x=1"), ""},
		{"no redirect URI", change("redirect_uri", ""), ""},
		{"unknown client", change("client_id", "other"), ""},
		{"plain PKCE", change("code_challenge_method", "plain"), "invalid_request"},
		{"no PKCE", change("code_challenge", ""), "invalid_request"},
		{"implicit flow", change("response_type", "id_token token"), "unauthorized_client"},
		{"no session and no prompt", change("prompt", "none"), "login_required"},
	} {
		page, err := w.client.Get(test.url)
		if err != nil {
			t.Fatal(err)
		}
		if location := page.Header.Get("Location"); strings.HasPrefix(location, "/login") {
			page.Body.Close()
			if page, err = w.client.Get(w.provider.Issuer() + location); err != nil {
				t.Fatal(err)
			}
		}
		page.Body.Close()
		location, err := page.Location()
		switch {
		case test.redirect == "" && (err == nil || page.StatusCode != http.StatusBadRequest):
			t.Errorf("%s: status %d, location %v", test.name, page.StatusCode, location)
		case test.redirect != "" && err != nil:
			t.Errorf("%s: status %d without location", test.name, page.StatusCode)
		case test.redirect != "":
			answer := location.Query()
			if location.RawQuery == "" { // the implicit flow's errors travel in the fragment
				if answer, err = url.ParseQuery(location.Fragment); err != nil {
					t.Fatal(err)
				}
			}
			if answer.Get("error") != test.redirect || answer.Get("state") != "the state" || answer.Get("code") != "" {
				t.Errorf("%s: the client is told %v", test.name, location)
			}
		}
	}
}

func TestCodesWorkOnceForWhoAskedAndSoon(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	newCode := func() string {
		return w.arrived(w.browser.SignIn(t.Context(), w.authorizeURL(), "ana@example.com", w.password("ana@example.com"))).Get("code")
	}
	refused := func(name string, config oauth2.Config, code, verifier, want string) {
		t.Helper()
		_, err := config.Exchange(w.ctx(), code, oauth2.VerifierOption(verifier))
		var answer *oauth2.RetrieveError
		if !errors.As(err, &answer) || answer.ErrorCode != want {
			t.Errorf("%s: error %v, want %s", name, err, want)
		}
	}
	code := newCode()
	w.exchange(code)
	refused("second use", w.oauth, code, verifier, "invalid_grant")
	code = newCode()
	refused("another verifier", w.oauth, code, verifier+"x", "invalid_grant")
	refused("the right verifier after a wrong one", w.oauth, code, verifier, "invalid_grant")
	wrongSecret := w.oauth
	wrongSecret.ClientSecret = "guess"
	wrongSecret.Endpoint.AuthStyle = oauth2.AuthStyleInHeader
	refused("wrong secret", wrongSecret, newCode(), verifier, "invalid_client")
	otherURI := w.oauth
	otherURI.RedirectURL = "https://auth.localhost:1/"
	refused("another redirect URI", otherURI, newCode(), verifier, "invalid_grant")
	code = newCode()
	w.clock.Add(61)
	refused("after a minute", w.oauth, code, verifier, "invalid_grant")
}

func TestSessionSparesTheFormUntilItIsAskedForOrOver(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	showsForm := func(options ...oauth2.AuthCodeOption) bool {
		t.Helper()
		page, err := w.browser.Get(t.Context(), w.authorizeURL(options...))
		if err != nil {
			t.Fatal(err)
		}
		return page.Request.URL.Path == "/login"
	}
	param := oauth2.SetAuthURLParam
	first, _ := w.exchange(w.arrived(w.browser.SignIn(t.Context(), w.authorizeURL(), "ana@example.com", w.password("ana@example.com"))).Get("code"))
	w.clock.Add(30)
	again, _ := w.exchange(w.arrived(w.browser.Get(t.Context(), w.authorizeURL())).Get("code"))
	if first.AuthTime != again.AuthTime || first.Subject != again.Subject {
		t.Errorf("auth_time %d of %s, then %d of %s: want those of the one sign-in", first.AuthTime, first.Subject, again.AuthTime, again.Subject)
	}
	if w.arrived(w.browser.Get(t.Context(), w.authorizeURL(param("prompt", "none")))).Get("code") == "" {
		t.Error("prompt=none: no code despite the session")
	}
	for name, shown := range map[string]bool{
		"max_age=3600": showsForm(param("max_age", "3600")),
		"no parameter": showsForm(),
	} {
		if shown {
			t.Errorf("%s: form despite the session", name)
		}
	}
	for name, shown := range map[string]bool{
		"prompt=login":          showsForm(param("prompt", "login")),
		"prompt=select_account": showsForm(param("prompt", "select_account")),
		"max_age=10":            showsForm(param("max_age", "10")),
		"max_age=0":             showsForm(param("max_age", "0")),
	} {
		if !shown {
			t.Errorf("%s: no form", name)
		}
	}
	w.clock.Add(15 * 60)
	if !showsForm() {
		t.Error("no form after the session's end")
	}
}

func TestEndSessionSignsOut(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	signIn := func() *oauth2.Token {
		_, token := w.exchange(w.arrived(w.browser.SignIn(t.Context(), w.authorizeURL(), "ana@example.com", w.password("ana@example.com"))).Get("code"))
		return token
	}
	signedOut := func() bool {
		page, err := w.browser.Get(t.Context(), w.authorizeURL())
		if err != nil {
			t.Fatal(err)
		}
		return page.Request.URL.Path == "/login"
	}
	token := signIn()
	redirect, err := url.Parse(w.oauth.RedirectURL)
	if err != nil {
		t.Fatal(err)
	}
	back := "https://" + redirect.Host + "/"
	idToken, _ := token.Extra("id_token").(string)
	page, err := w.browser.Get(t.Context(), w.provider.Issuer()+"/end_session?"+
		url.Values{"id_token_hint": {idToken}, "post_logout_redirect_uri": {back}, "state": {"s"}}.Encode())
	if err != nil || page.Request.URL.String() != back+"?state=s" {
		t.Fatalf("arrived at %v, error %v", page.Request.URL, err)
	}
	if !signedOut() {
		t.Error("still signed in")
	}
	if _, err := w.oidc.UserInfo(w.ctx(), oauth2.StaticTokenSource(token)); err == nil {
		t.Error("the access token still works")
	}
	signIn()
	if page, err = w.browser.Get(t.Context(), w.provider.Issuer()+"/end_session"); err != nil || page.Request.URL.Path != "/signed_out" {
		t.Fatalf("arrived at %v, error %v", page.Request.URL, err)
	}
	if !signedOut() {
		t.Error("still signed in")
	}
	page, err = w.browser.Get(t.Context(), w.provider.Issuer()+"/end_session?"+
		url.Values{"client_id": {"iapmesh"}, "post_logout_redirect_uri": {"https://evil.localhost/"}}.Encode())
	if err != nil || page.StatusCode != http.StatusBadRequest {
		t.Errorf("foreign post_logout_redirect_uri: status %d, error %v", page.StatusCode, err)
	}
}

func TestFormsFromElsewhereAreRefused(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	page, err := w.browser.Get(t.Context(), w.authorizeURL())
	if err != nil {
		t.Fatal(err)
	}
	forms, err := dev.Forms(page)
	if err != nil || len(forms) != 1 {
		t.Fatalf("forms %v, error %v", forms, err)
	}
	values := url.Values{"request": {forms[0].Fields["request"]}, "username": {"ana@example.com"}, "password": {w.password("ana@example.com")}}
	for _, header := range []http.Header{{"Sec-Fetch-Site": {"cross-site"}}, {"Origin": {"https://evil.localhost"}}} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.provider.Issuer()+"/login", strings.NewReader(values.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		r.Header = header.Clone()
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		answer, err := w.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusForbidden || len(answer.Cookies()) != 0 {
			t.Errorf("%v: status %d, cookies %v", header, answer.StatusCode, answer.Cookies())
		}
	}
}

func TestThePageSaysWhatItIsAndTellsNoPassword(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	page, err := w.browser.Get(t.Context(), w.authorizeURL(oauth2.SetAuthURLParam("login_hint", "bob@example.com")))
	if err != nil {
		t.Fatal(err)
	}
	forms, err := dev.Forms(page)
	if err != nil || len(forms) != 1 || forms[0].Fields["username"] != "bob@example.com" {
		t.Errorf("forms %+v, error %v: want the hinted username filled in", forms, err)
	}
	body, err := io.ReadAll(page.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Development identity provider", "ana@example.com", "mallory@example.com", "engineering", `<label for="password">`} {
		if !strings.Contains(string(body), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, u := range w.provider.Users() {
		if len(u.Password) < 16 || strings.Contains(string(body), u.Password) {
			t.Errorf("%s: the password is short or shown", u.Username)
		}
	}
	policy := page.Header.Get("Content-Security-Policy")
	if !strings.Contains(policy, "form-action 'self' https://*.localhost:*;") || strings.Contains(policy, "unsafe") {
		t.Errorf("policy %q", policy)
	}
}

func TestDirectoryKeepsKeyAndPasswords(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	config := idp.Config{Issuer: "https://127.0.0.1:1", ClientID: "c", ClientSecret: "s", Dir: dir}
	keys := func(p *idp.Provider) string {
		w := httptest.NewRecorder()
		p.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "https://127.0.0.1:1/keys", nil))
		var set struct{ Keys []map[string]string }
		if err := json.Unmarshal(w.Body.Bytes(), &set); err != nil || len(set.Keys) != 1 || set.Keys[0]["d"] != "" {
			t.Fatalf("key set %s, error %v", w.Body, err)
		}
		return set.Keys[0]["kid"] + set.Keys[0]["n"]
	}
	first, err := idp.New(config)
	if err != nil {
		t.Fatal(err)
	}
	second, err := idp.New(config)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first.Users(), second.Users()); diff != "" {
		t.Errorf("users (-first +second):\n%s", diff)
	}
	if keys(first) != keys(second) {
		t.Error("another signing key after a restart")
	}
	path := filepath.Join(dir, "dev-idp.json")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
	if err := os.WriteFile(path, []byte(`{"signing_key":"damaged"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := idp.New(config); !fault.Is(err, fault.Invalid) {
		t.Errorf("damaged file: error %v, want Invalid", err)
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*idp.Config){
		"plain issuer":          func(c *idp.Config) { c.Issuer = "http://127.0.0.1:1" },
		"issuer with a path":    func(c *idp.Config) { c.Issuer += "/x" },
		"no client":             func(c *idp.Config) { c.ClientID = "" },
		"no secret":             func(c *idp.Config) { c.ClientSecret = "" },
		"plain redirect URI":    func(c *idp.Config) { c.RedirectURIs = []string{"http://auth.localhost/"} },
		"redirect URI fragment": func(c *idp.Config) { c.RedirectURIs = []string{"https://auth.localhost/#"} },
		"redirect URI user":     func(c *idp.Config) { c.RedirectURIs = []string{"https://a@auth.localhost/"} },
		"user twice":            func(c *idp.Config) { c.Users = []idp.User{{Username: "a"}, {Username: "a"}} },
		"user without name":     func(c *idp.Config) { c.Users = []idp.User{{}} },
		"subject with a colon":  func(c *idp.Config) { c.Users = []idp.User{{Username: "a", Subject: "b:c"}} },
	} {
		config := idp.Config{Issuer: "https://127.0.0.1:1", ClientID: "c", ClientSecret: "s"}
		change(&config)
		if _, err := idp.New(config); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: error %v, want Invalid", name, err)
		}
	}
}
