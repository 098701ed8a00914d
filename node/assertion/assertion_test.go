package assertion_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/assertion"
)

// read verifies a token as an application does: by the key set of its own host.
func (m *mesh) read(token, host string) (jose.Header, map[string]any) {
	m.t.Helper()
	parsed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		m.t.Fatal(err)
	}
	body, _ := assertion.JWKS(m.view, host)
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(body, &set); err != nil {
		m.t.Fatal(err)
	}
	payload, err := parsed.Verify(&set)
	if err != nil {
		m.t.Fatalf("by the key set of %s: %v", host, err)
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		m.t.Fatal(err)
	}
	return parsed.Signatures[0].Protected, claims
}

func (m *mesh) issue(i *assertion.Issuer, s assertion.Subject, route, host string) string {
	m.t.Helper()
	token, err := i.For(m.view, s, m.view.Config.Route(route), host)
	if err != nil {
		m.t.Fatal(err)
	}
	return token
}

func TestAssertionIsWhatTheProtocolSays(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	issuer := m.issuer("eu")
	header, claims := m.read(m.issue(issuer, ana(), "billing", "billing.example.com"), "billing.example.com")
	if header.Algorithm != "ES256" || header.KeyID != m.active("").KID || header.ExtraHeaders["typ"] != "JWT" {
		t.Errorf("header %+v", header)
	}
	if id, ok := claims["jti"].(string); !ok || len(id) < 16 {
		t.Errorf("jti %v", claims["jti"])
	}
	delete(claims, "jti")
	if diff := cmp.Diff(map[string]any{
		"iss": "https://mesh.example.com", "aud": "billing.example.com", "sub": "okta/00u1", "email": "ana@example.com", "name": "Ana",
		"groups": []any{"okta/finance"}, "sid": "s1", "iat": float64(m.now.Unix()), "exp": float64(m.now.Add(5 * time.Minute).Unix()),
	}, claims); diff != "" {
		t.Error(diff)
	}

	nobody := ana()
	nobody.Identity.Groups = nil
	if _, claims := m.read(m.issue(issuer, nobody, "payroll", "payroll.example.com"), "payroll.example.com"); claims["aud"] != "urn:payroll" ||
		!cmp.Equal(claims["groups"], []any{}) {
		t.Errorf("a route's own audience, no groups: %v", claims)
	}
}

func TestWhatIsUsedAgain(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(m *mesh, s *assertion.Subject, host *string)
		again  bool
	}{
		"nothing changed":  {func(*mesh, *assertion.Subject, *string) {}, true},
		"another view":     {func(m *mesh, _ *assertion.Subject, _ *string) { m.commit(func(*keyring.Contents) {}) }, true},
		"an equal subject": {func(_ *mesh, s *assertion.Subject, _ *string) { *s = ana() }, true},
		"59 % of its life": {func(m *mesh, _ *assertion.Subject, _ *string) { m.now = m.now.Add(3*time.Minute - 1) }, true},
		"60 % of its life": {func(m *mesh, _ *assertion.Subject, _ *string) { m.now = m.now.Add(3 * time.Minute) }, false},
		"another host":     {func(_ *mesh, _ *assertion.Subject, host *string) { *host = "other.example.com" }, false},
		"another session":  {func(_ *mesh, s *assertion.Subject, _ *string) { s.Session = "s2" }, false},
		"another user": {func(_ *mesh, s *assertion.Subject, _ *string) {
			*s = ana()
			s.Identity.Subject = "okta/00u2"
		}, false},
		"other groups": {func(_ *mesh, s *assertion.Subject, _ *string) {
			*s = ana()
			s.Identity.Groups = []string{"okta/staff"}
		}, false},
		"another e-mail": {func(_ *mesh, s *assertion.Subject, _ *string) {
			*s = ana()
			s.Identity.Email = "ana@example.org"
		}, false},
		"another issuer": {func(m *mesh, _ *assertion.Subject, _ *string) {
			m.apply(strings.Replace(meshYAML, "https://mesh.", "https://other.", 1))
		}, false},
		"a successor is announced": {func(m *mesh, _ *assertion.Subject, _ *string) { m.announce("") }, true},
		"a successor signs":        {func(m *mesh, _ *assertion.Subject, _ *string) { m.promote(m.announce("")) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t)
			issuer := m.issuer("eu")
			s, host := ana(), "billing.example.com"
			first := m.issue(issuer, s, "billing", host)
			tc.change(m, &s, &host)
			second := m.issue(issuer, s, "billing", host)
			if again := first == second; again != tc.again {
				t.Errorf("used again: %t", again)
			}
			if header, claims := m.read(second, "billing.example.com"); header.KeyID != m.active("").KID || claims["sub"] != s.Identity.Subject {
				t.Errorf("kid %s, sub %v", header.KeyID, claims["sub"])
			}
		})
	}
}

// A node signs with the key of its own slot, which verifies on the hosts of its selector and nowhere else.
func TestANodeCannotSpeakToAnotherApplication(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	token := m.issue(m.issuer("bill"), ana(), "billing", "billing.example.com")
	m.read(token, "billing.example.com")
	for _, host := range []string{"payroll.example.com", "a.pay.example.com", "auth.example.com", "unknown.example.com"} {
		body, _ := assertion.JWKS(m.view, host)
		if strings.Contains(string(body), m.active("billing").KID) {
			t.Errorf("%s is shown the key of billing's nodes", host)
		}
		if !strings.Contains(string(body), m.active("").KID) {
			t.Errorf("%s is not shown the key for every route", host)
		}
	}
}

func TestWithoutAKeyNothingIsAsserted(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(m *mesh){
		"no key":      func(m *mesh) { m.commit(func(c *keyring.Contents) { clear(c.SigningKeys) }) },
		"no secret":   func(m *mesh) { m.commit(func(c *keyring.Contents) { clear(c.Secrets) }) },
		"no settings": func(m *mesh) { m.apply("kind: Zone\nname: z\n") },
		"revoked key": func(m *mesh) {
			m.commit(func(c *keyring.Contents) {
				k, err := keyring.RevokeSigningKey(*m.active(""), "", m.now)
				if err != nil {
					m.t.Error(err)
				}
				c.SigningKeys[k.KID] = &k
			})
		},
		"no member": func(m *mesh) { m.sealing["eu"] = m.sealing["bill"]; m.seal("", m.active("").KID, nil) },
		"another key's secret": func(m *mesh) {
			other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				m.t.Error(err)
			}
			der, err := x509.MarshalPKCS8PrivateKey(other)
			if err != nil {
				m.t.Error(err)
			}
			m.seal("", m.active("").KID, der)
		},
		"garbage": func(m *mesh) { m.seal("", m.active("").KID, []byte("garbage")) },
		"quarantined": func(m *mesh) {
			m.commit(func(c *keyring.Contents) {
				n := *c.Nodes["eu"]
				n.State = keyring.NodeQuarantined
				c.Nodes["eu"] = &n
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t)
			route := m.view.Config.Route("billing")
			issuer := m.issuer("eu")
			if name == "no settings" || name == "revoked key" || name == "quarantined" {
				m.issue(issuer, ana(), "billing", "billing.example.com") // in the cache, and not to be taken from there
			}
			change(m)
			token, err := issuer.For(m.view, ana(), route, "billing.example.com")
			if !fault.Is(err, fault.Unavailable) || token != "" {
				t.Errorf("%q, %v", token, err)
			}
		})
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	issuer := m.issuer("eu")
	first := m.view
	m.promote(m.announce(""))
	second := m.view
	old, next := first.Keyring.ActiveAssertionKey("eu-west", "").KID, m.active("").KID
	route := first.Config.Route("billing")
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range 200 {
				view, kid := first, old
				if (i/10+worker)%2 == 0 {
					view, kid = second, next
				}
				token, err := issuer.For(view, ana(), route, "billing.example.com")
				if err != nil {
					t.Error(err)
					return
				}
				if parsed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256}); err != nil || parsed.Signatures[0].Protected.KeyID != kid {
					t.Errorf("signed by another view's key: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkAssertionUsedAgain(b *testing.B) {
	m := newMesh(b)
	issuer, who, route := m.issuer("eu"), ana(), m.view.Config.Route("billing")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := issuer.For(m.view, who, route, "billing.example.com"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAssertionSigned(b *testing.B) {
	m := newMesh(b)
	issuer, who, route := m.issuer("eu"), ana(), m.view.Config.Route("billing")
	b.ReportAllocs()
	for b.Loop() {
		m.now = m.now.Add(5 * time.Minute)
		if _, err := issuer.For(m.view, who, route, "billing.example.com"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkJWKS(b *testing.B) {
	m := newMesh(b)
	for b.Loop() {
		assertion.JWKS(m.view, "billing.example.com")
	}
}
