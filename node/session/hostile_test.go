package session_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/session"
)

// parts are a token's header and claims, which tests bend before they sign them themselves.
type parts struct {
	header, claims map[string]any
}

func (m *mesh) parts() parts {
	return parts{
		header: map[string]any{"alg": "EdDSA", "kid": m.kid("eu"), "krev": "1.1", "typ": "iapmesh-session+jwt"},
		claims: map[string]any{
			"iss": "https://mesh.example.com", "aud": "session", "sub": "okta/00u1", "groups": []string{"okta/finance"}, "sid": "s1",
			"rev": m.at.String(), "iat": m.now.Unix(), "exp": m.now.Add(time.Hour).Unix(),
		},
	}
}

func encode(t testing.TB, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

// by signs header and claims with an Ed25519 key, whatever they say.
func (p parts) by(t testing.TB, private ed25519.PrivateKey) string {
	t.Helper()
	input := encode(t, p.header) + "." + encode(t, p.claims)
	return input + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(private, []byte(input)))
}

// Each is signed by a key of the mesh, but for one thing.
func TestWhatIsSignedButWrongIsRefused(t *testing.T) {
	t.Parallel()
	for name, bend := range map[string]func(m *mesh, p parts){
		"issuer":                    func(_ *mesh, p parts) { p.claims["iss"] = "https://mesh.example.com/" },
		"no issuer":                 func(_ *mesh, p parts) { delete(p.claims, "iss") },
		"audience":                  func(_ *mesh, p parts) { p.claims["aud"] = "billing.example.com" },
		"audience as a list":        func(_ *mesh, p parts) { p.claims["aud"] = []string{"session"} },
		"no audience":               func(_ *mesh, p parts) { delete(p.claims, "aud") },
		"typ of an application's":   func(_ *mesh, p parts) { p.header["typ"] = "JWT" },
		"typ of a hand-off":         func(_ *mesh, p parts) { p.header["typ"] = "iapmesh-handoff+jwt" },
		"typ in capitals":           func(_ *mesh, p parts) { p.header["typ"] = "IAPMESH-SESSION+JWT" },
		"no typ":                    func(_ *mesh, p parts) { delete(p.header, "typ") },
		"no krev":                   func(_ *mesh, p parts) { delete(p.header, "krev") },
		"krev is no revision":       func(_ *mesh, p parts) { p.header["krev"] = "soon" },
		"no kid":                    func(_ *mesh, p parts) { delete(p.header, "kid") },
		"kid that climbs":           func(_ *mesh, p parts) { p.header["kid"] = "../eu" },
		"another node's kid":        func(m *mesh, p parts) { p.header["kid"] = m.kid("bill") },
		"alg none":                  func(_ *mesh, p parts) { p.header["alg"] = "none" },
		"alg HS256":                 func(_ *mesh, p parts) { p.header["alg"] = "HS256" },
		"alg RS256":                 func(_ *mesh, p parts) { p.header["alg"] = "RS256" },
		"alg Ed25519":               func(_ *mesh, p parts) { p.header["alg"] = "Ed25519" },
		"critical extension":        func(_ *mesh, p parts) { p.header["crit"], p.header["b64"] = []string{"b64"}, false },
		"key in the header":         func(_ *mesh, p parts) { p.header["jwk"] = map[string]string{"kty": "OKP"} },
		"key by address":            func(_ *mesh, p parts) { p.header["jku"] = "https://evil.example" },
		"lives too long":            func(m *mesh, p parts) { p.claims["exp"] = m.now.Add(time.Hour + time.Second).Unix() },
		"never expires":             func(_ *mesh, p parts) { delete(p.claims, "exp") },
		"expires before its issue":  func(m *mesh, p parts) { p.claims["exp"] = m.now.Add(-time.Second).Unix() },
		"expires far beyond":        func(_ *mesh, p parts) { p.claims["exp"] = int64(1)<<62 + 1 },
		"issued in the future":      func(m *mesh, p parts) { p.claims["iat"] = m.now.Add(keyring.Skew + time.Second).Unix() },
		"issued before time":        func(_ *mesh, p parts) { p.claims["iat"] = int64(-1) << 62 },
		"issued at a fraction":      func(m *mesh, p parts) { p.claims["iat"] = float64(m.now.Unix()) + 0.5 },
		"no subject":                func(_ *mesh, p parts) { delete(p.claims, "sub") },
		"subject without provider":  func(_ *mesh, p parts) { p.claims["sub"] = "ana" },
		"group of another provider": func(_ *mesh, p parts) { p.claims["groups"] = []string{"github/finance"} },
		"no sid":                    func(_ *mesh, p parts) { delete(p.claims, "sid") },
		"sid with a slash":          func(_ *mesh, p parts) { p.claims["sid"] = "a/b" },
		"no rev":                    func(_ *mesh, p parts) { delete(p.claims, "rev") },
		"rev is a number":           func(_ *mesh, p parts) { p.claims["rev"] = 7 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t)
			v := m.verifier()
			p := m.parts()
			if _, err := v.Verify(m.view, m.route("billing"), p.by(t, m.private["eu"])); err != nil {
				t.Fatalf("unbent: %v", err)
			}
			bend(m, p)
			_, err := v.Verify(m.view, m.route("billing"), p.by(t, m.private["eu"]))
			if !errors.Is(err, session.ErrInvalid) || !fault.Is(err, fault.Unauthenticated) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestWhatIsNotSignedByTheKeyIsRefused(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	good, _ := m.signIn("eu")
	p := m.parts()
	public := m.private["eu"].Public().(ed25519.PublicKey)
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	withAlg := func(alg string) parts {
		q := parts{maps.Clone(p.header), p.claims}
		q.header["alg"] = alg
		return q
	}
	none := withAlg("none")
	hs := withAlg("HS256")
	mac := hmac.New(sha256.New, public) // the public key as if it were a secret
	input := encode(t, hs.header) + "." + encode(t, hs.claims)
	mac.Write([]byte(input))
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	foreign := func(alg jose.SignatureAlgorithm, key any) string {
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: m.kid("eu")}},
			(&jose.SignerOptions{}).WithType("iapmesh-session+jwt").WithHeader("krev", "1.1"))
		if err != nil {
			t.Fatal(err)
		}
		payload, err := json.Marshal(p.claims)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := s.Sign(payload)
		if err != nil {
			t.Fatal(err)
		}
		token, err := signed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	cut := strings.LastIndexByte(good, '.')
	for name, token := range map[string]string{
		"empty":                  "",
		"garbage":                "x",
		"two parts":              good[:cut],
		"four parts":             good + ".",
		"no signature":           good[:cut+1],
		"JSON form":              `{"protected":"` + good + `"}`,
		"stranger's key":         p.by(t, stranger),
		"alg none, unsigned":     encode(t, none.header) + "." + encode(t, none.claims) + ".",
		"alg none, signed":       none.by(t, m.private["eu"]),
		"HS256 by public key":    input + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)),
		"RS256":                  foreign(jose.RS256, rsaKey),
		"ES256":                  foreign(jose.ES256, ecKey),
		"oversized":              good + strings.Repeat("A", session.MaxToken),
		"line end within":        good[:cut-4] + "\n" + good[cut-4:],
		"padding":                good + "=",
		"duplicate header field": base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","alg":"EdDSA","kid":"k","krev":"1.1","typ":"iapmesh-session+jwt"}`)) + good[strings.IndexByte(good, '.'):],
		"claims swapped":         good[:strings.IndexByte(good, '.')+1] + encode(t, p.claims) + good[cut:],
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := m.verifier().Verify(m.view, m.route("billing"), token)
			if !errors.Is(err, session.ErrInvalid) {
				t.Errorf("%v", err)
			}
			if err != nil && cut > 0 && strings.Contains(err.Error(), good[cut-20:cut]) {
				t.Error("the error echoes the token")
			}
		})
	}
}

// Every byte counts, also of a token whose signature is in the cache.
func TestATamperedTokenIsRefused(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	good, _ := m.signIn("eu")
	v := m.verifier()
	if _, err := v.Verify(m.view, m.route("billing"), good); err != nil {
		t.Fatal(err)
	}
	for i := range len(good) {
		b := []byte(good)
		if b[i]++; b[i]-1 == 'Z' || b[i]-1 == 'z' || b[i]-1 == '9' {
			b[i] = 'A'
		}
		if _, err := v.Verify(m.view, m.route("billing"), string(b)); err == nil {
			t.Fatalf("byte %d changed, and accepted", i)
		}
	}
}

// All pairs: a token of each purpose is good for that purpose alone.
func TestATokenOfOnePurposeIsRefusedForEveryOther(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	route := m.route("billing")
	const here, there = "billing.example.com", "payroll.example.com"
	type ticket struct {
		Subject string `json:"subject"`
	}
	sign := func(p session.Purpose) string {
		token, err := m.minter("eu").Sign(m.view, p, ticket{"okta/00u1"})
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	sessionToken, _ := m.signIn("eu")
	assertionLike := m.parts()
	assertionLike.header["typ"], assertionLike.claims["aud"] = "JWT", here
	tokens := map[string]string{
		"session": sessionToken, "hand-off here": sign(session.Handoff(here)), "hand-off there": sign(session.Handoff(there)),
		"assertion": assertionLike.by(t, m.private["eu"]),
	}
	v := m.verifier()
	uses := map[string]func(token string) error{
		"session": func(token string) error { _, err := v.Verify(m.view, route, token); return err },
		"hand-off here": func(token string) error {
			return v.VerifyAs(m.view, route, session.Handoff(here), token, new(ticket))
		},
		"hand-off there": func(token string) error {
			return v.VerifyAs(m.view, route, session.Handoff(there), token, new(ticket))
		},
	}
	for made, token := range tokens {
		for used, use := range uses {
			err := use(token)
			if made == used && err != nil {
				t.Errorf("%s: %v", made, err)
			}
			if made != used && !errors.Is(err, session.ErrInvalid) {
				t.Errorf("%s used as %s: %v", made, used, err)
			}
		}
	}
}

func TestATicketIsBoundAsASessionIs(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	purpose := session.Handoff("billing.example.com")
	token, err := m.minter("bill").Sign(m.view, purpose, "body")
	if err != nil {
		t.Fatal(err)
	}
	var body string
	v := m.verifier()
	verify := func(route string) error { return v.VerifyAs(m.view, m.route(route), purpose, token, &body) }
	if err := verify("billing"); err != nil || body != "body" {
		t.Errorf("%v, %q", err, body)
	}
	if err := verify("payroll"); !errors.Is(err, session.ErrInvalid) {
		t.Errorf("a route that its node does not speak for: %v", err)
	}
	if err := v.VerifyAs(m.view, nil, purpose, token, &body); err == nil {
		t.Error("accepted without a route")
	}
	if err := v.VerifyAs(m.view, m.route("billing"), session.Purpose{}, token, &body); err == nil {
		t.Error("accepted without a purpose")
	}
	if _, err := m.minter("eu").Sign(m.view, session.Purpose{}, "body"); err == nil {
		t.Error("signed without a purpose")
	}
	m.now = m.now.Add(time.Minute + keyring.Skew)
	if err := verify("billing"); !errors.Is(err, session.ErrExpired) {
		t.Errorf("after its minute: %v", err)
	}
	m.now = m.now.Add(-keyring.Skew)
	m.editNode("bill", func(n *keyring.Node) { n.State = keyring.NodeQuarantined })
	if err := verify("billing"); !errors.Is(err, session.ErrRevoked) {
		t.Errorf("by a quarantined node: %v", err)
	}
}
