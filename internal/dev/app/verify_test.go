package app_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/iapmesh/iapmesh/internal/dev/app"
)

const (
	issuer   = "https://auth.localhost"
	audience = "echo.localhost"
)

// mint is a mesh's key set and what it signs.
type mint struct {
	t       *testing.T
	server  *httptest.Server
	mu      sync.Mutex // guards all below
	keys    []jose.JSONWebKey
	fetches int
	down    bool
}

func newMint(t *testing.T) *mint {
	m := &mint{t: t}
	m.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.fetches++
		if m.down {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: m.keys})
	}))
	t.Cleanup(m.server.Close)
	return m
}

func (m *mint) change(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

func (m *mint) fetched() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fetches
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (m *mint) announce(kid string) *ecdsa.PrivateKey {
	key := newKey(m.t)
	m.change(func() {
		m.keys = append(m.keys, jose.JSONWebKey{Key: key.Public(), KeyID: kid, Algorithm: "ES256", Use: "sig"})
	})
	return key
}

func (m *mint) config(now time.Time) app.Config {
	return app.Config{JWKS: []string{m.server.URL}, Issuer: issuer, Audience: audience, Now: func() time.Time { return now }}
}

type token struct {
	alg    jose.SignatureAlgorithm
	key    any
	kid    string
	typ    jose.ContentType
	claims map[string]any
}

func goodToken(key any, now time.Time) token {
	return token{jose.ES256, key, "k1", "JWT", map[string]any{
		"iss": issuer, "aud": []string{audience}, "sub": "dev/u1", "email": "ana@example.com", "name": "Ana Costa",
		"groups": []string{"dev/engineering"}, "sid": "s1", "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
	}}
}

func (tk token) sign(t testing.TB) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithType(tk.typ)
	if tk.kid != "" {
		options = options.WithHeader("kid", tk.kid)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: tk.alg, Key: tk.key}, options)
	if err != nil {
		t.Fatal(err)
	}
	s, err := jwt.Signed(signer).Claims(tk.claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ask(h http.Handler, assertions ...string) app.Echo {
	r := httptest.NewRequest(http.MethodGet, "http://echo.localhost/x", nil)
	for _, a := range assertions {
		r.Header.Add(app.AssertionHeader, a)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var e app.Echo
	_ = json.Unmarshal(w.Body.Bytes(), &e) // an answer that is no JSON says unverified without a reason
	return e
}

func TestOnlyAGoodAssertionIsVerified(t *testing.T) {
	t.Parallel()
	now := time.Now()
	m := newMint(t)
	key := m.announce("k1")
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	m.change(func() {
		m.keys = append(m.keys,
			jose.JSONWebKey{Key: rsaKey.Public(), KeyID: "rsa", Algorithm: "RS256", Use: "sig"},
			jose.JSONWebKey{Key: newKey(t).Public(), KeyID: "encryption", Use: "enc"})
	})
	h := app.NewEcho(m.config(now))

	good := ask(h, goodToken(key, now).sign(t))
	if !good.Verified || good.Claims == nil || good.Claims.Subject != "dev/u1" || good.Claims.Email != "ana@example.com" ||
		!slices.Equal(good.Claims.Groups, []string{"dev/engineering"}) || good.Claims.SessionID != "s1" {
		t.Fatalf("a good assertion: %+v", good.Caller)
	}
	claim := func(name string, value any) string {
		tk := goodToken(key, now)
		if tk.claims[name] = value; value == nil {
			delete(tk.claims, name)
		}
		return tk.sign(t)
	}
	other := func(change func(*token)) string {
		tk := goodToken(key, now)
		change(&tk)
		return tk.sign(t)
	}
	parts := strings.Split(goodToken(key, now).sign(t), ".")
	tampered := []byte(parts[1])
	tampered[20] ^= 1
	for _, test := range []struct {
		name       string
		assertions []string
		reason     string
	}{
		{"none", nil, "no X-Iapmesh"},
		{"two", []string{goodToken(key, now).sign(t), goodToken(key, now).sign(t)}, "2 X-Iapmesh"},
		{"no token", []string{"hello"}, "parse"},
		{"too long", []string{strings.Repeat("a", 17<<10)}, "at most"},
		{"tampered payload", []string{parts[0] + "." + string(tampered) + "." + parts[2]}, "verify"},
		{"signature of another token", []string{parts[0] + "." + parts[1] + "." + strings.Split(claim("jti", "x"), ".")[2]}, "verify"},
		{"no signature", []string{parts[0] + "." + parts[1] + "."}, "verify"},
		{"alg none", []string{"eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0." + parts[1] + "."}, "parse"},
		{"another key", []string{other(func(tk *token) { tk.key = newKey(t) })}, "verify"},
		{"RS256", []string{other(func(tk *token) { tk.alg, tk.key, tk.kid = jose.RS256, rsaKey, "rsa" })}, "parse"},
		{"HS256 by the public key", []string{other(func(tk *token) { tk.alg, tk.key = jose.HS256, publicBytes(t, key) })}, "parse"},
		{"encryption key", []string{other(func(tk *token) { tk.kid = "encryption" })}, "in no key set"},
		{"unknown key", []string{other(func(tk *token) { tk.kid = "k2" })}, "in no key set"},
		{"no key id", []string{other(func(tk *token) { tk.kid = "" })}, "names no key"},
		{"a session token", []string{other(func(tk *token) { tk.typ = "iapmesh-session+jwt" })}, "type"},
		{"another issuer", []string{claim("iss", "https://auth.example.com")}, "issuer"},
		{"another audience", []string{claim("aud", "billing.localhost")}, "audience"},
		{"no audience", []string{claim("aud", nil)}, "audience"},
		{"expired", []string{claim("exp", now.Add(-61*time.Second).Unix())}, "expired"},
		{"no expiry", []string{claim("exp", nil)}, "lacks"},
		{"no issue time", []string{claim("iat", nil)}, "lacks"},
		{"no subject", []string{claim("sub", nil)}, "lacks"},
		{"from the future", []string{claim("iat", now.Add(2*time.Minute).Unix())}, "issued in the future"},
		{"not yet valid", []string{claim("nbf", now.Add(2*time.Minute).Unix())}, "not valid yet"},
	} {
		got := ask(h, test.assertions...)
		if got.Verified || got.Claims != nil || !strings.Contains(got.Reason, test.reason) {
			t.Errorf("%s: %+v, want a reason with %q", test.name, got.Caller, test.reason)
		}
	}
	for name, assertion := range map[string]string{
		"audience among others": claim("aud", []string{"a", audience}),
		"within the leeway":     claim("exp", now.Add(-50*time.Second).Unix()),
		"no groups":             claim("groups", nil),
	} {
		if got := ask(h, assertion); !got.Verified || got.Claims.Groups == nil {
			t.Errorf("%s: %+v", name, got.Caller)
		}
	}
}

func TestWhoExpectsNothingBelievesNothing(t *testing.T) {
	t.Parallel()
	now := time.Now()
	m := newMint(t)
	assertion := goodToken(m.announce("k1"), now).sign(t)
	for name, change := range map[string]func(*app.Config){
		"no issuer":   func(c *app.Config) { c.Issuer = "" },
		"no audience": func(c *app.Config) { c.Audience = "" },
		"no key set":  func(c *app.Config) { c.JWKS = nil },
	} {
		c := m.config(now)
		change(&c)
		if got := ask(app.NewEcho(c), assertion); got.Verified || got.Reason == "" {
			t.Errorf("%s: %+v", name, got.Caller)
		}
	}
}

func TestKeysAreCachedRenewedAndKept(t *testing.T) {
	t.Parallel()
	now := time.Now()
	m, dead := newMint(t), newMint(t)
	dead.change(func() { dead.down = true })
	first := m.announce("k1")
	c := m.config(now)
	c.JWKS = append(c.JWKS, dead.server.URL)
	c.Now = func() time.Time { return now }
	h := app.NewEcho(c)
	verified := func(key *ecdsa.PrivateKey, kid string) bool {
		t.Helper()
		tk := goodToken(key, now)
		tk.kid = kid
		return ask(h, tk.sign(t)).Verified
	}
	for range 3 {
		if !verified(first, "k1") {
			t.Fatal("not verified though one of two key sets answers")
		}
	}
	if n := m.fetched(); n != 1 {
		t.Errorf("%d fetches for three requests", n)
	}
	second := m.announce("k2")
	if verified(second, "k2") || m.fetched() != 1 {
		t.Error("unknown keys are fetched more than once a second: anybody can make the application call the mesh")
	}
	now = now.Add(time.Second)
	if !verified(second, "k2") || m.fetched() != 2 {
		t.Errorf("a new key is not found after %d fetches", m.fetched())
	}
	m.change(func() { m.down = true })
	now = now.Add(2 * time.Minute)
	if !verified(first, "k1") || m.fetched() != 3 {
		t.Error("known keys are forgotten as soon as the mesh is out of reach")
	}
	m.change(func() { m.down, m.keys = false, m.keys[1:] })
	now = now.Add(2 * time.Minute)
	if verified(first, "k1") || !verified(second, "k2") {
		t.Error("a key that the mesh has withdrawn still verifies")
	}
	m.change(func() { m.down = true })
	now = now.Add(2 * time.Hour)
	if verified(second, "k2") {
		t.Error("a key set that could not be renewed for two hours still verifies")
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func FuzzAssertion(f *testing.F) {
	now := time.Now()
	key := newKey(f)
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k1", Use: "sig"}}})
	if err != nil {
		f.Fatal(err)
	}
	// No server: its goroutines would blur the coverage that guides the fuzzer.
	client := &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(set))}, nil
	})}
	h := app.NewEcho(app.Config{JWKS: []string{"http://mesh"}, Client: client, Issuer: issuer, Audience: audience, Now: func() time.Time { return now }})
	good := goodToken(key, now).sign(f)
	payload := strings.Split(good, ".")[1]
	for _, seed := range []string{"", "a.b.c", good, good[:len(good)-2], "eyJhbGciOiJub25lIn0." + payload + ".", `{"payload":"e30"}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, assertion string) {
		// ECDSA signatures can be varied without the key; what they sign cannot.
		if got := ask(h, assertion); got.Verified && (got.Claims.Subject != "dev/u1" || !strings.Contains(assertion, payload)) {
			t.Errorf("verified %q: %+v", assertion, got.Caller)
		}
	})
}

func FuzzParseKeys(f *testing.F) {
	good, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: newKey(f).Public(), KeyID: "k1"}}})
	if err != nil {
		f.Fatal(err)
	}
	private, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: newKey(f), KeyID: "k1"}}})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{good, private, nil, []byte(`{}`), []byte(`{"keys":[{}]}`), []byte(`{"keys":[null,1,{"kty":"EC","crv":"P-256","x":"AA","y":"AA","kid":"a"}]}`)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := app.ParseKeys(data)
		if err != nil && keys != nil {
			t.Error("keys and an error")
		}
		for kid, key := range keys {
			if _, err := key.ECDH(); kid == "" || err != nil { // ECDH refuses a point off its curve
				t.Errorf("key %q: %v", kid, err)
			}
		}
	})
}

// publicBytes is the uncompressed point (SEC 1): what an application that mixes up algorithms would take for an HMAC key.
func publicBytes(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	b, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}
