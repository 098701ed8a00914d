package resource_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/resource"
)

func compile(t *testing.T, text string) (*resource.Configuration, error) {
	t.Helper()
	docs, err := resource.Parse("m.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return resource.Compile(docs, []string{"eu-west"})
}

func routes(hostsAndPaths ...string) string {
	var b strings.Builder
	for _, hp := range hostsAndPaths {
		name, at, _ := strings.Cut(hp, "=")
		host, path, _ := strings.Cut(at, "/")
		fmt.Fprintf(&b, "---\nkind: Route\nname: %s\nhosts: ['%s']\npath: /%s\nupstreams: [{url: 'http://a:1'}]\nallow: [{anyone: true}]\n", name, host, path)
	}
	return b.String()
}

func TestMatch(t *testing.T) {
	t.Parallel()
	c, err := compile(t, routes(
		"root=a.example.com/", "api=a.example.com/api", "v2=a.example.com/api/v2/",
		"only=b.example.com/x", "wild=*.example.com/", "wildapi=*.example.com/api", "inner=*.b.example.com/", "bare=localhost/",
	))
	if err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string]string{
		"a.example.com/":            "root",
		"a.example.com/apis":        "root", // segments, not characters
		"a.example.com/api":         "api",
		"a.example.com/api/":        "api",
		"a.example.com/api/v2":      "v2",
		"a.example.com/api/v20":     "api",
		"a.example.com/api/v2/z":    "v2",
		"b.example.com/x/y":         "only",
		"b.example.com/y":           "wild", // the exact host has no route for it
		"b.example.com/api/1":       "wildapi",
		"c.example.com/":            "wild",
		"c.b.example.com/":          "inner",
		"c.d.example.com/":          "",
		"example.com/":              "",
		".example.com/":             "",
		"localhost/x":               "bare",
		"A.EXAMPLE.COM/":            "", // folding is the caller's
		"a.example.com.evil.com/":   "",
		"evil-a.example.com.x/":     "",
		"xexample.com/":             "",
		"a.example.com:443/":        "",
		"a.example.com./":           "",
		"*.example.com/":            "wild", // a literal star is a label like another, and names no other route
		"nothing.example.org/hello": "",
	} {
		host, path, _ := strings.Cut(at, "/")
		got := ""
		if r := c.Match(host, "/"+path); r != nil {
			got = r.Name
		}
		if got != want {
			t.Errorf("%s: route %q, want %q", at, got, want)
		}
	}
}

func TestSelected(t *testing.T) {
	t.Parallel()
	r := &resource.Route{Name: "billing-eu", Tags: map[string]string{"team": "finance", "empty": ""}}
	for selector, want := range map[string]bool{
		"": true, "billing-eu": true, "billing-*": true, "*": true, "tag:team=finance": true, "x,billing-eu": true, "x, billing-eu": true,
		"tag:empty=": true, "billing": false, "eu": false, "tag:team=ops": false, "tag:team": false, "tag:none=": false, "x,,y": false, " ": false, ",": false,
		"Billing-eu": false, "tag:billing-eu": false,
	} {
		if got := r.Selected(selector); got != want {
			t.Errorf("%q: %v, want %v", selector, got, want)
		}
	}
}

const settings = "kind: Settings\nname: mesh\nissuer: https://auth.example.com\nsign_in_host: auth.example.com\n"

func TestCompileChecksDocumentsTogether(t *testing.T) {
	t.Parallel()
	signsIn := "---\nkind: Route\nname: r\nhosts: [r.example.com]\nupstreams: [{url: 'http://a:1'}]\nidentity_providers: [oktta]\n"
	okta := "---\nkind: IdentityProvider\nname: okta\noidc: {issuer: 'https://o.example.com', client_id: c}\n"
	for name, tc := range map[string]struct{ yaml, want string }{
		"the same host and path":      {routes("a=h.example.com/x", "b=h.example.com/x/"), "h.example.com/x belongs to Route/a already"},
		"the sign-in host":            {settings + routes("a=auth.example.com/"), "is the sign-in host"},
		"an unknown provider":         {settings + okta + signsIn, `no IdentityProvider "oktta" (did you mean "okta"?)`},
		"a provider without Settings": {okta + strings.ReplaceAll(signsIn, "oktta", "okta"), "so a Settings"},
		"an unknown zone":             {"kind: Route\nname: r\nzone: nowhere\nhosts: [r.example.com]\nupstreams: [{url: 'http://a:1'}]\n", "nowhere"},
		"a wrong policy":              {"kind: Policy\nname: p\ncedar: 'permit(principal'\n", "p"},
		"two problems":                {routes("a=h.example.com/x", "b=h.example.com/x/") + signsIn, "so a Settings"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c, err := compile(t, tc.yaml); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%+v, %v, want invalid, with %q", c, err, tc.want)
			}
		})
	}
}

func TestDigestNamesContentAlone(t *testing.T) {
	t.Parallel()
	one, two := routes("a=h.example.com/x"), routes("b=h.example.com/y")
	ab, err := compile(t, one+two)
	if err != nil {
		t.Fatal(err)
	}
	ba, err := compile(t, two+one)
	if err != nil {
		t.Fatal(err)
	}
	other, err := compile(t, one)
	if err != nil {
		t.Fatal(err)
	}
	if ab.Digest != ba.Digest || ab.Digest == other.Digest {
		t.Errorf("digests %x, %x, %x: want the first two equal, the third not", ab.Digest, ba.Digest, other.Digest)
	}
}

func TestEachFieldIsHeldToItsRule(t *testing.T) {
	t.Parallel()
	route := "kind: Route\nname: r\nhosts: [r.example.com]\nupstreams: [{url: 'http://a:1'}]\n"
	provider := "kind: IdentityProvider\nname: p\noidc: {issuer: 'https://o.example.com', client_id: c}\n"
	for _, tc := range []struct{ base, from, to, want string }{
		{route, "name: r", "name: R", "name"},
		{route, "name: r", "name: -r", "name"},
		{route, "hosts: [r.example.com]", "hosts: []", "hosts: at least one"},
		{route, "r.example.com", "R.example.com", "hosts: host"},
		{route, "r.example.com", "'r.example.com:443'", "hosts: host"},
		{route, "r.example.com", "'a.*.example.com'", "hosts: host"},
		{route, "r.example.com", "'*'", "hosts: host"},
		{route, "upstreams: [{url: 'http://a:1'}]", "upstreams: []", "upstreams: at least one"},
		{route, "http://a:1", "ftp://a:1", "upstreams[0].url"},
		{route, "http://a:1", "http://:1", "upstreams[0].url"},
		{route, "http://a:1", "http://a:1/x", "upstreams[0].url"},
		{route, "http://a:1", "http://u:p@a:1", "upstreams[0].url"},
		{route, "http://a:1", "http://a:1?", "upstreams[0].url"},
		{route, "http://a:1", "http://a:1#", "upstreams[0].url"},
		{route, "url: 'http://a:1'", "url: 'http://a:1', region: EU", "region"},
		{route, "url: 'http://a:1'", "url: 'https://a:1', ca: x", "upstreams[0].ca"},
		{route, "hosts:", "path: x\nhosts:", "path"},
		{route, "hosts:", "path: /a/../b\nhosts:", "path"},
		{route, "hosts:", "path: /a//b\nhosts:", "path"},
		{route, "hosts:", "path: /a%2fb\nhosts:", "path"},
		{route, "hosts:", "path: /.iapmesh/x\nhosts:", "belongs to iapmesh"},
		{route, "hosts:", "on_stale: allow\nhosts:", "needs max_staleness"},
		{route, "hosts:", "max_staleness: 1s\nhosts:", "at least 2s"},
		{route, "hosts:", "max_staleness: -5s\nhosts:", "duration"},
		{route, "hosts:", "max_staleness: 5s\non_stale: denny\nhosts:", `did you mean "deny"?`},
		{route, "hosts:", "audit: {durable: after}\nhosts:", "audit.durable"},
		{route, "hosts:", "audit: {on_failure: ignore}\nhosts:", "audit.on_failure"},
		{route, "hosts:", "allow_paths: [dots]\nhosts:", "allow_paths"},
		{route, "hosts:", "assertion: {headers: [host]}\nhosts:", "cannot be set"},
		{route, "hosts:", "assertion: {headers: [x_user]}\nhosts:", "cannot be set"},
		{route, "hosts:", "assertion: {headers: [x-iapmesh-jwt-assertion]}\nhosts:", "cannot be set"},
		{route, "hosts:", "assertion: {headers: [X-A], claim_headers: {x-a: email}}\nhosts:", "set twice"},
		{route, "hosts:", "assertion: {claim_headers: {X-A: mail}}\nhosts:", `did you mean "email"?`},
		{provider, "name: p", "name: p.q", "no dot"},
		{provider, "https://o", "http://o", "oidc.issuer"},
		{provider, "client_id: c", "client_id: ''", "oidc.client_id"},
		{provider, "client_id: c", "client_id: c, ca: x", "oidc.ca"},
		{provider, "client_id: c", "client_id: c, scopes: [email]", "openid"},
		{settings, "name: mesh", "name: other", "named mesh"},
		{settings, "issuer: https://auth.example.com", "issuer: https://u@auth.example.com", "issuer"},
		{settings, "sign_in_host: auth.example.com", "sign_in_host: '*.example.com'", "sign_in_host"},
		{settings, "kind: Settings", "kind: Settings\nsession_lifetime: 2h", "session_lifetime"},
		{settings, "kind: Settings", "kind: Settings\nsession_lifetime: 1s", "session_lifetime"},
		{settings, "kind: Settings", "kind: Settings\njwks_max_age: 2h", "jwks_max_age"},
		{settings, "kind: Settings", "kind: Settings\nsession_key_rotation: 1s", "session_key_rotation"},
		{settings, "kind: Settings", "kind: Settings\nca_rotation: 23h", "ca_rotation 23h0m0s: want at least 24h0m0s, or 0s"},
		{settings, "kind: Settings", "kind: Settings\naudience_key_rotation: 1s", "audience_key_rotation"},
		{settings, "kind: Settings", "kind: Settings\ngossip_key_rotation: 59s", "gossip_key_rotation"},
		{settings, "kind: Settings", "kind: Settings\nregions: [EU]", "region"},
		{settings, "kind: Settings", "kind: Settings\ntrusted_proxies: [10.0.0.1]", "trusted_proxies"},
		{"kind: Policy\nname: p\ncedar: x\n", "cedar: x", "cedar: ' '", "cedar: is required"},
		{"kind: Schedule\nname: s\ntime_zone: Europe/Paris\n", "Europe/Paris", "Local", "time_zone"},
		{"kind: Schedule\nname: s\ntime_zone: Europe/Paris\n", "Europe/Paris", "Mars/Base", "time_zone"},
		{"kind: Service\nname: s\nspiffe: 'spiffe://m/s'\n", "spiffe://m/s", "http://m/s", "spiffe"},
	} {
		t.Run(tc.to, func(t *testing.T) {
			t.Parallel()
			if _, err := resource.Parse("m.yaml", []byte(tc.base)); err != nil {
				t.Fatalf("the base: %v", err)
			}
			_, err := resource.Parse("m.yaml", []byte(strings.Replace(tc.base, tc.from, tc.to, 1)))
			if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want invalid, with %q", err, tc.want)
			}
		})
	}
}

// A schedule that is not set is the default; one of zero is none. Both come back from canonical JSON as they were.
func TestSchedulesOfCustody(t *testing.T) {
	t.Parallel()
	type periods struct{ ca, audience, gossip time.Duration }
	for extra, want := range map[string]periods{
		"":                 {resource.DefaultCARotation, resource.DefaultAudienceKeyRotation, resource.DefaultGossipKeyRotation},
		"ca_rotation: 0s":  {0, resource.DefaultAudienceKeyRotation, resource.DefaultGossipKeyRotation},
		"ca_rotation: 24h": {24 * time.Hour, resource.DefaultAudienceKeyRotation, resource.DefaultGossipKeyRotation},
		"audience_key_rotation: 0s\ngossip_key_rotation: 1m": {resource.DefaultCARotation, 0, time.Minute},
	} {
		docs, err := resource.Parse("m.yaml", []byte("kind: Settings\nname: mesh\nissuer: https://auth.example.com\nsign_in_host: auth.example.com\n"+extra+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		doc, err := resource.FromJSON(docs[0].Ref(), docs[0].JSON, "m.yaml")
		if err != nil {
			t.Fatal(err)
		}
		c, err := resource.Compile([]resource.Document{doc}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var got periods
		if got.ca, got.audience, got.gossip = c.Settings.Custody(); got != want {
			t.Errorf("%q: %v, want %v", extra, got, want)
		}
	}
	var none *resource.Settings
	if ca, audience, gossip := none.Custody(); ca == 0 || audience == 0 || gossip == 0 {
		t.Error("a mesh without Settings rotates nothing")
	}
}
