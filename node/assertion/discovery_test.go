package assertion_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/assertion"
	"github.com/iapmesh/iapmesh/node/state"
)

func (m *mesh) get(handler http.Handler, method, url string, header http.Header) *http.Response {
	r := httptest.NewRequest(method, url, nil)
	for k, v := range header {
		r.Header[k] = v
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	return w.Result()
}

func (m *mesh) newest() *state.View { return m.view }

func TestKeySetHoldsWhatVerifies(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	old := m.active("").KID
	next := m.announce("")
	kids := func() []string {
		body, _ := assertion.JWKS(m.view, "payroll.example.com")
		var set jose.JSONWebKeySet
		if err := json.Unmarshal(body, &set); err != nil {
			t.Fatal(err)
		}
		var kids []string
		for _, k := range set.Keys {
			if k.Algorithm != "ES256" || k.Use != "sig" || !k.IsPublic() || !k.Valid() {
				t.Errorf("key %+v", k)
			}
			kids = append(kids, k.KeyID)
		}
		return kids
	}
	both := []string{old, next}
	slices.Sort(both)
	if diff := cmp.Diff(both, kids()); diff != "" {
		t.Errorf("announced and active:\n%s", diff)
	}
	m.promote(next)
	if diff := cmp.Diff(both, kids()); diff != "" {
		t.Errorf("verify-only and active:\n%s", diff)
	}
	m.commit(func(c *keyring.Contents) {
		k := *c.SigningKeys[old]
		k.State = keyring.SigningRetired
		c.SigningKeys[old] = &k
	})
	if diff := cmp.Diff([]string{next}, kids()); diff != "" {
		t.Errorf("retired:\n%s", diff)
	}
	m.commit(func(c *keyring.Contents) { clear(c.SigningKeys) })
	if body, _ := assertion.JWKS(m.view, "payroll.example.com"); string(body) != `{"keys":[]}` {
		t.Errorf("no key: %s", body)
	}
}

func TestKeySetIsServedForCaches(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	h := assertion.JWKSHandler(m.newest)
	const url = "https://billing.example.com:8443" + assertion.PathJWKS
	first := m.get(h, http.MethodGet, url, nil)
	etag := first.Header.Get("ETag")
	want := map[string]string{
		"Content-Type": "application/json", "Cache-Control": "public, max-age=90", "Access-Control-Allow-Origin": "*",
	}
	for k, v := range want {
		if got := first.Header.Get(k); got != v || first.StatusCode != http.StatusOK {
			t.Errorf("%d, %s: %q", first.StatusCode, k, got)
		}
	}
	m.commit(func(*keyring.Contents) {})
	if again := m.get(h, http.MethodGet, url, http.Header{"If-None-Match": {`"x", ` + etag}}); again.StatusCode != http.StatusNotModified {
		t.Errorf("the same keys in another view: %d", again.StatusCode)
	}
	m.announce("billing")
	if again := m.get(h, http.MethodGet, url, http.Header{"If-None-Match": {etag}}); again.StatusCode != http.StatusOK || again.Header.Get("ETag") == etag {
		t.Errorf("another key: %d", again.StatusCode)
	}
	for method, status := range map[string]int{http.MethodHead: 200, http.MethodOptions: 204, http.MethodPost: 405, http.MethodDelete: 405} {
		if got := m.get(h, method, url, nil); got.StatusCode != status || got.Header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s: %d", method, got.StatusCode)
		}
	}
	if got := m.get(assertion.JWKSHandler(func() *state.View { return nil }), http.MethodGet, url, nil); got.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("before the first view: %d", got.StatusCode)
	}
}

func TestDocument(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	h := assertion.DocumentHandler(m.newest)
	got := m.get(h, http.MethodGet, "https://Billing.example.com:18443/.well-known/iapmesh", nil)
	var doc assertion.Document
	if err := json.NewDecoder(got.Body).Decode(&doc); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(assertion.Document{
		Issuer: "https://mesh.example.com", JWKSURI: "https://billing.example.com:18443/.well-known/iapmesh/jwks.json",
		SignInEndpoint:  "https://auth.example.com:18443/.iapmesh/sign_in",
		SignOutEndpoint: "https://billing.example.com:18443/.iapmesh/sign_out",
		AssertionHeader: "X-Iapmesh-Jwt-Assertion", AssertionAlgs: []string{"ES256"}, AssertionMaxLife: 300,
	}, doc); diff != "" {
		t.Error(diff)
	}
	for url, status := range map[string]int{
		"https://auth.example.com/":       200,
		"https://a.pay.example.com/":      200,
		"https://a.b.pay.example.com/":    404,
		"https://evil.example.org/":       404,
		"https://billing.example.com:443": 200,
	} {
		if got := m.get(h, http.MethodGet, url, nil); got.StatusCode != status {
			t.Errorf("%s: %d", url, got.StatusCode)
		}
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Host = "billing.example.com:443/evil"
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != http.StatusBadRequest {
		t.Errorf("a port that is none: %d", w.Code)
	}
}
