package proxy_test

import (
	"net/http"
	"strings"
	"testing"
)

const twoProviders = `---
kind: IdentityProvider
name: partner
oidc: {issuer: https://partner.example.com, client_id: iapmesh}
---
kind: Route
name: partners
hosts: [billing.example.com]
path: /partners
upstreams: [{url: http://APP}]
identity_providers: [partner]
allow: [{authenticated: true}]
---
kind: Route
name: half-open
hosts: [billing.example.com]
path: /about
upstreams: [{url: http://APP}]
identity_providers: [partner]
allow: [{anyone: true}]
`

// Signed in, but by a provider that the route does not name: no redirect, which could go in circles, but a way out.
func TestASessionOfAnotherProviderIsDenied(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{routes: routesYAML + twoProviders})
	r := w.request(http.MethodGet, "billing.example.com", "/partners/list?of=all", w.ana())
	r.Header.Set("Accept", "text/html")
	res := w.do(r)
	if res.StatusCode != http.StatusForbidden || res.code() != "other_provider" || !strings.Contains(res.body, `href="/.iapmesh/sign_in?rd=%2Fpartners%2Flist%3Fof%3Dall"`) {
		t.Errorf("%d %s %s", res.StatusCode, res.code(), res.body)
	}
	if len(res.Cookies()) != 0 {
		t.Errorf("the session, which counts elsewhere, is taken away: %v", res.Cookies())
	}
	if d := w.kind("decision", 1)[0]; d.Decision != "deny" || d.Route != "partners" || d.Actor.Subject != "okta/00u1" || !strings.Contains(d.Reason, "okta") {
		t.Errorf("recorded %+v", d)
	}
	if res := w.get("billing.example.com", "/partners", w.ana()); res.StatusCode != http.StatusForbidden || res.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("a program: %d %s", res.StatusCode, res.body)
	}
	if res := w.get("billing.example.com", "/", w.ana()); res.StatusCode != http.StatusOK {
		t.Errorf("its own route: %d", res.StatusCode)
	}
}

// Where anyone may, they may too, as anyone: the application is not told who they are to somebody else.
func TestASessionOfAnotherProviderIsNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{routes: routesYAML + twoProviders})
	for host, path := range map[string]string{"billing.example.com": "/about", "open.example.com": "/"} {
		saw := w.get(host, path, w.ana()).echo(t)
		if got := saw.Headers.Get("X-Iapmesh-Jwt-Assertion"); got != "" {
			t.Errorf("%s%s: asserted", host, path)
		}
	}
	for _, d := range w.kind("decision", 2) {
		if d.Decision != "allow" || d.Actor.Subject != "" {
			t.Errorf("recorded %+v", d)
		}
	}
}
