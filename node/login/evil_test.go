package login_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/iapmesh/iapmesh/node/session"
)

// evil is a provider that says whatever a test wants it to.
type evil struct {
	w         *world
	server    *httptest.Server
	key       *ecdsa.PrivateKey
	discovery func(map[string]any)
	claims    func(map[string]any)
	sign      func(payload []byte) string
	answer    func(http.ResponseWriter) bool // of the token endpoint; true: it has answered
	asked     atomic.Int64
	nonce     atomic.Pointer[string]
}

func (w *world) evil() *evil {
	w.t.Helper()
	w.stopClock() // what it says is right or wrong by seconds
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	e := &evil{w: w, key: key}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(rw http.ResponseWriter, _ *http.Request) {
		e.asked.Add(1)
		doc := map[string]any{
			"issuer": e.server.URL, "authorization_endpoint": e.server.URL + "/authorize", "token_endpoint": e.server.URL + "/token",
			"jwks_uri": e.server.URL + "/keys", "id_token_signing_alg_values_supported": []string{"ES256", "HS256", "none"},
		}
		if e.discovery != nil {
			e.discovery(doc)
		}
		rw.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(rw).Encode(doc)
	})
	mux.HandleFunc("/keys", func(rw http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(rw).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"}}})
	})
	mux.HandleFunc("/authorize", func(rw http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		nonce := q.Get("nonce")
		e.nonce.Store(&nonce)
		http.Redirect(rw, r, q.Get("redirect_uri")+"?"+url.Values{"state": {q.Get("state")}, "code": {"c"}}.Encode(), http.StatusFound)
	})
	mux.HandleFunc("/token", func(rw http.ResponseWriter, _ *http.Request) {
		if e.answer != nil && e.answer(rw) {
			return
		}
		now := w.now().Unix()
		claims := map[string]any{"iss": e.server.URL, "aud": "iapmesh", "sub": "1", "nonce": *e.nonce.Load(), "iat": now, "exp": now + 300}
		if e.claims != nil {
			e.claims(claims)
		}
		maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
		payload, err := json.Marshal(claims)
		if err != nil {
			w.t.Error(err)
		}
		sign := e.sign
		if sign == nil {
			sign = e.es256
		}
		rw.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(rw).Encode(map[string]any{"access_token": "a", "token_type": "Bearer", "id_token": sign(payload)})
	})
	e.server = w.serve(mux)
	w.apply(strings.Replace(w.yaml(), w.idps["dev"].server.URL, e.server.URL, 1))
	return e
}

func (e *evil) signed(payload []byte, key jose.SigningKey) string {
	signer, err := jose.NewSigner(key, (&jose.SignerOptions{}).WithHeader("kid", "k"))
	if err != nil {
		e.w.t.Fatal(err)
	}
	s, err := signer.Sign(payload)
	if err != nil {
		e.w.t.Fatal(err)
	}
	token, err := s.CompactSerialize()
	if err != nil {
		e.w.t.Fatal(err)
	}
	return token
}

func (e *evil) es256(payload []byte) string {
	return e.signed(payload, jose.SigningKey{Algorithm: jose.ES256, Key: e.key})
}

func TestAnIdTokenIsBelievedOnlyIfAllOfItHolds(t *testing.T) {
	t.Parallel()
	set := func(name string, value any) func(*evil) {
		return func(e *evil) { e.claims = func(c map[string]any) { c[name] = value } }
	}
	later := func(name string, seconds int64) func(*evil) {
		return func(e *evil) { e.claims = func(c map[string]any) { c[name] = e.w.now().Unix() + seconds } }
	}
	for name, test := range map[string]struct {
		spoil func(*evil)
		ok    bool
	}{
		"as it should be":                {func(*evil) {}, true},
		"just expired, by another clock": {later("exp", -30), true},
		"expired":                        {later("exp", -90), false},
		"issued in the future":           {later("iat", 90), false},
		"another nonce":                  {set("nonce", "x"), false},
		"no nonce":                       {set("nonce", nil), false},
		"another issuer":                 {set("iss", "https://evil.example"), false},
		"another audience":               {set("aud", "billing"), false},
		"two audiences, nobody named":    {set("aud", []string{"iapmesh", "billing"}), false},
		"no audience":                    {set("aud", nil), false},
		"for another party":              {set("azp", "billing"), false},
		"for us, by name":                {set("azp", "iapmesh"), true},
		"no subject":                     {set("sub", nil), false},
		"a subject in two spellings":     {func(e *evil) { e.claims = func(c map[string]any) { c["SUB"] = "2"; c["sub"] = nil } }, false},
		"another access token's hash":    {set("at_hash", "AAAAAAAAAAAAAAAAAAAAAA"), false},
		"more groups than a session fits": {func(e *evil) {
			e.claims = func(c map[string]any) {
				c["groups"] = strings.Fields(strings.Repeat(strings.Repeat("g", 200)+" ", 1001))
			}
		}, false},
		"unsigned": {func(e *evil) {
			e.sign = func(payload []byte) string {
				return "eyJhbGciOiJub25lIn0." + strings.SplitN(e.es256(payload), ".", 3)[1] + "."
			}
		}, false},
		"signed by a secret that all know": {func(e *evil) {
			e.sign = func(payload []byte) string {
				return e.signed(payload, jose.SigningKey{Algorithm: jose.HS256, Key: []byte(clientSecret + strings.Repeat("x", 32))})
			}
		}, false},
		"signed by another key": {func(e *evil) {
			e.sign = func(payload []byte) string {
				other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
				if err != nil {
					e.w.t.Error(err)
				}
				return e.signed(payload, jose.SigningKey{Algorithm: jose.ES256, Key: other})
			}
		}, false},
		"no id token": {func(e *evil) { e.sign = func([]byte) string { return "" } }, false},
		"an answer without end": {func(e *evil) {
			e.answer = func(rw http.ResponseWriter) bool {
				rw.Header().Set("Content-Type", "application/json")
				_, _ = rw.Write([]byte(`{"id_token":"` + strings.Repeat("a", 2<<20) + `"}`))
				return true
			}
		}, false},
		"a redirect": {func(e *evil) {
			e.answer = func(rw http.ResponseWriter) bool {
				rw.Header().Set("Location", e.server.URL+"/token2")
				rw.WriteHeader(http.StatusTemporaryRedirect)
				return true
			}
		}, false},
		"an error with a secret": {func(e *evil) {
			e.answer = func(rw http.ResponseWriter) bool {
				http.Error(rw, `{"error":"invalid_client"}`, http.StatusUnauthorized)
				return true
			}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			e := w.evil()
			test.spoil(e)
			u := w.user()
			page := u.get(w.url("eu", "billing", "/"))
			_, has := u.Cookie(w.url("eu", "auth", "/"), session.CookieName)
			if has != test.ok || test.ok != (page.StatusCode == http.StatusOK) {
				t.Errorf("answers %d, session %v, want %v: %s", page.StatusCode, has, test.ok, body(t, page))
			}
		})
	}
}

func TestADiscoveryThatLeadsAstrayIsRefused(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(map[string]any){
		"another issuer":            func(d map[string]any) { d["issuer"] = "https://evil.example" },
		"authorization in the open": func(d map[string]any) { d["authorization_endpoint"] = "http://127.0.0.1/a" },
		"tokens in the open":        func(d map[string]any) { d["token_endpoint"] = "http://127.0.0.1/t" },
		"keys from a file":          func(d map[string]any) { d["jwks_uri"] = "file:///etc/passwd" },
		"no authorization endpoint": func(d map[string]any) { d["authorization_endpoint"] = "" },
		"more than a document":      func(d map[string]any) { d["x"] = strings.Repeat("a", 2<<20) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			e := w.evil()
			e.discovery = spoil
			for range 3 {
				w.refused(w.user().get(w.url("eu", "billing", "/")), http.StatusServiceUnavailable, "does not answer")
			}
			if n := e.asked.Load(); n != 1 {
				t.Errorf("asked %d times within a moment: users would add to what ails the provider", n)
			}
		})
	}
}

func TestWhatChangesBetweenTwoStepsCounts(t *testing.T) {
	t.Parallel()
	t.Run("the route takes another provider", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		u := w.user()
		ticket := u.ticketURL(w.url("eu", "billing", "/"), ana)
		w.apply(strings.Replace(w.yaml(), "identity_providers: [dev]", "identity_providers: [other]", 1))
		w.refused(u.get(ticket), http.StatusBadRequest, "cannot be finished")
	})
	t.Run("the route is gone", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		u := w.user()
		callback := u.callbackURL(w.url("eu", "billing", "/"), ana)
		w.apply(strings.Replace(w.yaml(), "hosts: [billing.localhost]", "hosts: [bills.localhost]", 1))
		w.refused(u.get(callback), http.StatusNotFound, "no longer here")
	})
	t.Run("time passes on the way to the sign-in host", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		u := w.user()
		u.stopAt("/.iapmesh/sign_in")
		at, err := u.get(w.url("eu", "billing", "/x")).Location()
		if err != nil {
			t.Fatal(err)
		}
		u.goOn()
		w.clock.Add(601)
		page := u.get(at.String())
		w.refused(page, http.StatusBadRequest, "cannot be finished")
		if got := links(t, page); len(got) != 1 || got[0] != w.url("eu", "billing", "/x") {
			t.Errorf("links %q", got)
		}
	})
}
