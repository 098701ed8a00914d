package proxy_test

import (
	"net/http"
	"testing"

	"github.com/iapmesh/iapmesh/node/proxy"
)

// Sign-in records and decides by the same address as the request path.
func TestClientIPIsWhatTrustedProxiesSay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{trusted: "10.0.0.0/8"})
	for name, tc := range map[string]struct{ peer, chain, want string }{
		"a stranger":      {"192.0.2.7:1234", "203.0.113.9", "192.0.2.7"},
		"a trusted proxy": {"10.1.2.3:1234", "203.0.113.9, 10.9.9.9", "203.0.113.9"},
		"in IPv6 clothes": {"[::ffff:10.1.2.3]:1234", "::ffff:203.0.113.9", "203.0.113.9"},
		"no address":      {"@", "203.0.113.9", "invalid IP"},
	} {
		r := &http.Request{RemoteAddr: tc.peer, Header: http.Header{"X-Forwarded-For": {tc.chain}}}
		if got := proxy.ClientIP(r, w.views.Load()).String(); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
		if got := proxy.ClientIP(r, nil).String(); got == "203.0.113.9" {
			t.Errorf("%s: believed before there are settings", name)
		}
	}
}

// The sign-in host serves no application: whatever is asked of it is the sign-in's to answer.
func TestEveryPathOfTheSignInHostIsItsOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{routes: routesYAML + "---\nkind: Route\nname: everything\nhosts: [\"*.example.com\"]\nupstreams: [{url: http://APP}]\nallow: [{anyone: true}]\n"})
	for path, want := range map[string]string{"/": "sign-in: /", "/favicon.ico": "sign-in: /favicon.ico", "/.iapmesh/callback": "sign-in: /.iapmesh/callback"} {
		if res := w.get("auth.example.com", path, w.ana()); res.body != want {
			t.Errorf("%s: %d %s", path, res.StatusCode, res.body)
		}
	}
	for _, path := range []string{"/a%41", "/%2e/x"} {
		if res := w.get("auth.example.com", path, w.ana()); res.StatusCode < 400 {
			t.Errorf("%s: %d %s", path, res.StatusCode, res.body)
		}
	}
}
