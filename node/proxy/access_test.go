package proxy_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/session"
)

const browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"

func TestWhoIsSentToSignInAndWhoIsToldOf(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	const redirect, problem = http.StatusFound, http.StatusUnauthorized
	for name, tc := range map[string]struct {
		method, host string
		header       http.Header
		want         int
	}{
		"navigation":               {"GET", "billing.example.com", http.Header{"Accept": {browser}}, redirect},
		"navigation, modern":       {"GET", "billing.example.com", http.Header{"Accept": {browser}, "Sec-Fetch-Mode": {"navigate"}}, redirect},
		"HEAD":                     {"HEAD", "billing.example.com", http.Header{"Accept": {browser}}, redirect},
		"no Accept":                {"GET", "billing.example.com", nil, problem},
		"JSON":                     {"GET", "billing.example.com", http.Header{"Accept": {"application/json"}}, problem},
		"fetch":                    {"GET", "billing.example.com", http.Header{"Accept": {browser}, "Sec-Fetch-Mode": {"cors"}}, problem},
		"XHR":                      {"GET", "billing.example.com", http.Header{"Accept": {browser}, "X-Requested-With": {"XMLHttpRequest"}}, problem},
		"form":                     {"POST", "billing.example.com", http.Header{"Accept": {browser}}, problem},
		"WebSocket":                {"GET", "billing.example.com", http.Header{"Accept": {browser}, "Connection": {"Upgrade"}, "Upgrade": {"websocket"}}, problem},
		"api route":                {"GET", "api.example.com", http.Header{"Accept": {browser}}, problem},
		"health checks are no key": {"GET", "billing.example.com", http.Header{"User-Agent": {"ELB-HealthChecker/2.0"}}, problem},
	} {
		t.Run(name, func(t *testing.T) {
			r := w.request(tc.method, tc.host, "/x", nil)
			if tc.header != nil {
				r.Header = tc.header
			}
			res := w.do(r)
			if res.StatusCode != tc.want {
				t.Fatalf("status %d, want %d", res.StatusCode, tc.want)
			}
			if tc.want == redirect && res.Header.Get("X-Begun-For") != "billing" {
				t.Errorf("%v", res.Header)
			}
			if tc.want == problem && (res.code() != "unauthenticated" || res.Header.Get("Location") != "") {
				t.Errorf("%v", res.Header)
			}
			if res.Header.Get("X-Request-Id") == "" || res.Header.Get("X-Iapmesh-Region") != "eu-west" {
				t.Errorf("%v", res.Header)
			}
		})
	}
	if seen := w.refused.list(); len(seen) != 11 || !slices.Contains(seen, "127.0.0.1 api unauthenticated") {
		t.Errorf("refusals %v", seen)
	}
	w.trail.mu.Lock()
	defer w.trail.mu.Unlock()
	if len(w.trail.records) != 0 {
		t.Errorf("a flood of the unauthenticated fills the spool: %d records", len(w.trail.records))
	}
}

func TestTheDeniedAreToldAndNeverRedirected(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	cookie, _ := w.signInAs("okta/<b>staff")
	r := w.request(http.MethodGet, "billing.example.com", "/x", cookie)
	r.Header.Set("Accept", browser)
	res := w.do(r)
	id := res.Header.Get("X-Request-Id")
	if res.StatusCode != http.StatusForbidden || res.code() != "denied" || !strings.Contains(res.body, id) || !strings.Contains(res.body, "ana@example.com") {
		t.Errorf("%d %v %s", res.StatusCode, res.Header, res.body)
	}
	if h := res.Header; h.Get("Cache-Control") != "no-store" || !strings.Contains(h.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Errorf("%v", h)
	}
	var problem struct {
		Type, Code, Title string
		Status            int
		RequestID         string `json:"request_id"`
	}
	res = w.get("billing.example.com", "/x", cookie)
	if err := json.Unmarshal([]byte(res.body), &problem); err != nil || problem.Status != 403 || problem.Code != "denied" || res.Header.Get("Content-Type") != "application/problem+json" ||
		problem.RequestID != res.Header.Get("X-Request-Id") {
		t.Errorf("%s %v: %v", res.body, res.Header, err)
	}
	records := w.kind("decision", 2)
	if records[0].Decision != "deny" || records[0].Reason != "default deny" || records[0].Actor.Subject != "okta/00u1" || records[0].RequestID != id {
		t.Errorf("%+v", records[0])
	}
	if w.kind("outcome", 2)[0].Status != http.StatusForbidden {
		t.Errorf("outcome %+v", w.kind("outcome", 2)[0])
	}
	if strings.Contains(res.body, "default deny") {
		t.Error("the policy's reason is for the record, not for the client")
	}
}

func TestOpenRoutesNeedNoSession(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{routes: strings.ReplaceAll(routesYAML, "hosts: [open.example.com]", "hosts: [open.example.com]\nidentity_providers: [okta]")})
	saw := w.get("open.example.com", "/", nil).echo(t)
	if saw.Headers.Get("X-Iapmesh-Jwt-Assertion") != "" {
		t.Error("nobody is asserted")
	}
	cookie, sid := w.signInAs("okta/staff")
	if saw = w.get("open.example.com", "/", cookie).echo(t); saw.Headers.Get("X-Iapmesh-Jwt-Assertion") == "" {
		t.Error("a user of an open route is not asserted")
	}
	w.revoke(sid)
	if saw = w.get("open.example.com", "/", cookie).echo(t); saw.Headers.Get("X-Iapmesh-Jwt-Assertion") != "" || saw.Headers.Get("Cookie") != "" {
		t.Error("a revoked user is asserted")
	}
	if r := w.kind("decision", 3); r[0].Actor.Subject != "" || r[1].Actor.Subject != "okta/00u1" || r[2].Actor.Subject != "" {
		t.Errorf("%+v", r)
	}
}

func TestARevokedSessionSignsInAnewAndItsCookieGoes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	cookie, sid := w.signInAs("okta/finance")
	w.get("billing.example.com", "/", cookie).echo(t)
	w.revoke(sid)
	r := w.request(http.MethodGet, "billing.example.com", "/", cookie)
	r.Header.Set("Accept", browser)
	res := w.do(r)
	if res.StatusCode != http.StatusFound || !strings.HasPrefix(res.Header.Get("Set-Cookie"), session.CookieName+"=; Path=/; Max-Age=0") {
		t.Errorf("navigation: %d %v", res.StatusCode, res.Header)
	}
	if res = w.get("billing.example.com", "/", cookie); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("program: %d", res.StatusCode)
	}
	for _, token := range []string{"garbage", strings.Repeat("x", 3000), cookie.Value[:len(cookie.Value)-4] + "AAAA"} {
		if res = w.get("billing.example.com", "/", &http.Cookie{Name: session.CookieName, Value: token}); res.StatusCode != http.StatusUnauthorized {
			t.Errorf("%.20s…: %d", token, res.StatusCode)
		}
	}
}

// A node that does not know a new key yet waits for it, and never sends the user to sign in.
func TestAKeyYoungerThanTheView(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	cookie := w.ana()
	newest := w.views.Load()
	older := *newest
	var kid string
	for id, k := range newest.Keyring.SigningKeys {
		if k.Kind != keyring.SigningAssertion {
			kid = id
		}
	}
	before := keyring.Contents{Nodes: w.records.Nodes, SigningKeys: map[string]*keyring.SigningKey{"a1": w.records.SigningKeys["a1"]}}
	older.Revision.Index = newest.Keyring.SigningKeys[kid].Revision.Index - 1
	older.Keyring = keyring.NewSnapshot(older.Revision, before)

	w.views.set(&older)
	r := w.request(http.MethodGet, "billing.example.com", "/", cookie)
	r.Header.Set("Accept", browser)
	if res := w.do(r); res.StatusCode != http.StatusServiceUnavailable || res.code() != "unknown_key" || res.Header.Get("Retry-After") == "" {
		t.Errorf("the key never comes: %d %v", res.StatusCode, res.Header)
	}
	w.views.setOnceAwaited(newest)
	if res := w.do(w.request(http.MethodGet, "billing.example.com", "/", cookie)); res.StatusCode != http.StatusOK {
		t.Errorf("the key comes: %d %s", res.StatusCode, res.body)
	}
	if w.views.Load() != newest {
		t.Error("it was not waited for")
	}
}

func TestStaleViews(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		onStale string
		age     time.Duration
		known   bool
		want    int
		reason  string
	}{
		"fresh":               {"deny", time.Second, true, 200, "allowed by"},
		"at the limit":        {"deny", 5 * time.Second, true, 200, "allowed by"},
		"old":                 {"deny", 6 * time.Second, true, 503, "stale: the view is 6s old"},
		"unknown":             {"deny", 0, false, 503, "stale: the view's age is not known"},
		"old, and allowed":    {"allow", 6 * time.Second, true, 200, "stale, which the route allows: the view is 6s old"},
		"unknown and allowed": {"allow", 0, false, 200, "stale, which the route allows: the view's age is not known"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{
				routes: strings.Replace(routesYAML, "hosts: [billing", "max_staleness: 5s\non_stale: "+tc.onStale+"\nhosts: [billing", 1),
				age:    func() (time.Duration, bool) { return tc.age, tc.known },
			})
			res := w.get("billing.example.com", "/", w.ana())
			if res.StatusCode != tc.want || tc.want == 503 && res.code() != "stale" {
				t.Errorf("%d %v", res.StatusCode, res.Header)
			}
			r := w.kind("decision", 1)[0]
			if !strings.Contains(r.Reason, tc.reason) || (r.Decision == "allow") != (tc.want == 200) || (r.ViewAgeMS == -1) != !tc.known {
				t.Errorf("%+v", r)
			}
			if res := w.get("open.example.com", "/", nil); res.StatusCode != 200 {
				t.Errorf("a route without a limit: %d", res.StatusCode)
			}
		})
	}
}

func TestOwnPathsAreServedOnEveryHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	cookie, sid := w.signInAs("okta/finance")
	for _, host := range []string{"billing.example.com", "x.apps.example.com", "auth.example.com"} {
		if res := w.get(host, "/.well-known/iapmesh", nil); res.StatusCode != 200 || !strings.Contains(res.body, `"jwks_uri":"https://`+host) {
			t.Errorf("%s document: %d %s", host, res.StatusCode, res.body)
		}
		if res := w.get(host, "/.well-known/iapmesh/jwks.json", nil); res.StatusCode != 200 || !strings.Contains(res.body, `"kid":"a1"`) {
			t.Errorf("%s key set: %d %s", host, res.StatusCode, res.body)
		}
		if res := w.get(host, "/.well-known/iapmesh/other", nil); res.StatusCode != 404 || host != "auth.example.com" && res.code() != "not_found" {
			t.Errorf("%s other: %d", host, res.StatusCode)
		}
		if res := w.get(host, "/.iapmesh/callback?x=1", nil); res.body != "sign-in: /.iapmesh/callback" {
			t.Errorf("%s sign-in: %s", host, res.body)
		}
		if res := w.get(host, "/.iapmesh/user", nil); res.StatusCode != 401 {
			t.Errorf("%s nobody: %d", host, res.StatusCode)
		}
		var user struct {
			Subject, Email, SID, KID, Region string
			Groups                           []string
			Expires                          time.Time
		}
		res := w.get(host, "/.iapmesh/user", cookie)
		if err := json.Unmarshal([]byte(res.body), &user); err != nil || user.Subject != "okta/00u1" || user.Email != "ana@example.com" || user.SID != sid ||
			user.Region != "eu-west" || user.KID == "" || user.Expires.IsZero() || !slices.Equal(user.Groups, []string{"okta/finance"}) {
			t.Errorf("%s user: %d %s: %v", host, res.StatusCode, res.body, err)
		}
	}
	w.revoke(sid)
	if res := w.get("billing.example.com", "/.iapmesh/user", cookie); res.StatusCode != 401 {
		t.Errorf("revoked: %d", res.StatusCode)
	}
}

func TestANodeServesOnlyWhatItsKeyCovers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	edit := func(f func(*keyring.Node)) {
		w.commit(func(c *keyring.Contents) {
			n := *c.Nodes["eu"]
			f(&n)
			c.Nodes["eu"] = &n
		})
	}
	edit(func(n *keyring.Node) { n.RouteSelector = "billing" })
	if res := w.get("open.example.com", "/", nil); res.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("another route: %d", res.StatusCode)
	}
	if res := w.get("billing.example.com", "/", nil); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("its route: %d", res.StatusCode)
	}
	edit(func(n *keyring.Node) { n.RouteSelector, n.State = "", keyring.NodeQuarantined })
	if res := w.get("open.example.com", "/", nil); res.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("quarantined: %d", res.StatusCode)
	}
}

func TestUpstreamsOfTheRegionComeFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{routes: `---
kind: Route
name: near
hosts: [near.example.com]
upstreams: [{url: "http://192.0.2.1:1", region: us-east}, {url: "http://APP", region: eu-west}, {url: "http://192.0.2.1:2"}]
allow: [{anyone: true}]
---
kind: Route
name: anywhere
hosts: [anywhere.example.com]
upstreams: [{url: "http://192.0.2.1:1", region: us-east}, {url: "http://APP"}]
allow: [{anyone: true}]
---
kind: Route
name: far
hosts: [far.example.com]
upstreams: [{url: "http://APP", region: us-east}]
preserve_host: true
allow: [{anyone: true}]
---
kind: Route
name: local
hosts: [local.example.com]
upstreams: [{url: "http://app.localhost:PORT"}]
allow: [{anyone: true}]
`})
	for _, host := range []string{"near.example.com", "anywhere.example.com", "far.example.com", "local.example.com"} {
		saw := w.get(host, "/", nil).echo(t)
		if (saw.Host == host) != (host == "far.example.com") {
			t.Errorf("%s: the application saw Host %s", host, saw.Host)
		}
	}
}

func TestConfigurationsComeAndGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.get("open.example.com", "/", nil).echo(t)
	w.apply(settingsYAML + strings.ReplaceAll(routesYAML, "open.example.com", "other.example.com"))
	if res := w.get("open.example.com", "/", nil); res.StatusCode != http.StatusNotFound {
		t.Errorf("a host that went: %d", res.StatusCode)
	}
	w.get("other.example.com", "/", nil).echo(t)
	if w.views.Load().Config.Route("open") == (*resource.Route)(nil) {
		t.Error("the route is gone")
	}
}
