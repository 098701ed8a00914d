package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/node/session"
)

// raw sends bytes as they are and returns the answer's status and text.
func (w *world) raw(text string) (int, string) {
	return send(w.t, w.server.Listener.Addr().String(), text)
}

func send(t testing.TB, address, text string) (int, string) {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// No client may claim to be somebody, in any spelling that an application server folds into a header that it believes.
func TestIdentityHeadersOfTheClientNeverArrive(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	cookie := w.ana()
	names := []string{
		"X-Iapmesh-Jwt-Assertion", "X_Iapmesh_Jwt_Assertion", "X.Iapmesh.Jwt.Assertion", "x-iapmesh_jwt.assertion", "X-Iapmesh-Region", "X-Iapmesh-Anything",
		"Cf-Access-Jwt-Assertion", "CF_ACCESS_JWT_ASSERTION", "Cf-Access-Authenticated-User-Email",
		"X-Forwarded-User", "X_Forwarded_User", "X.Forwarded.User", "X-Forwarded_User", "X-Forwarded-Email", "X-Forwarded-Groups",
		"X-Forwarded-Preferred-Username", "X-Forwarded-Access-Token", "X-Forwarded-Uri", "X-Forwarded-Method", "X-Forwarded-Port", "X-Forwarded-Prefix",
		"X-Forwarded-For", "X_Forwarded_For", "X-Forwarded-Host", "X-Forwarded-Proto", "X_Forwarded_Proto", "X-Forwarded", "Forwarded",
		"X-Auth-Request-User", "X_Auth_Request_Email", "X-Auth-Request-Groups", "X-Auth-Request-Access-Token",
		"Remote-User", "Remote_User", "Remote.User", "REMOTE_USER", "Remote-Groups", "Remote-Email", "Remote-Name", "X-Remote-User",
		"X-Goog-Iap-Jwt-Assertion", "X_Goog_IAP_JWT_Assertion", "X-Goog-Authenticated-User-Email", "X-Goog-Authenticated-User-Id",
		"X-Pomerium-Jwt-Assertion", "X_Pomerium_Claim_Email", "X-Webauth-User", "X-Amzn-Oidc-Data", "X-Ms-Client-Principal", "X-Ms-Client-Principal-Name",
		"X-Acme-Subject", "X_Acme_Subject", "x.acme.subject", "X!Acme~Subject",
		"X-Real-Ip", "True-Client-Ip", "Proxy", "X-Original-Url", "X-Rewrite-Url", "X-Http-Method-Override", "X_HTTP_Method_Override",
		"X-Original-Method", "X_Original_Forwarded_For", "X-Envoy-External-Address", "X-Appengine-User-Email", "X-Ssl-Client-Dn", "SSL_CLIENT_VERIFY", "X-Client-Cert",
		"OIDC_CLAIM_email", "Oidc-Access-Token", "X-Consumer-Username", "X-Authenticated-Userid", "X-Credential-Identifier", "Iv-User", "SM_USER", "Sm_universalid",
		"Shib-Identity-Provider", "WL-Proxy-Client-IP", "WL_Proxy_SSL", "Http-Remote-User", "X-Userinfo", "X-Id-Token", "X-Apigateway-Api-Userinfo", "X-Endpoint-Api-Userinfo",
		"X-Auth-User", "X-Auth-Email", "X-Auth-Username", "X-Auth-Groups", "X-Sso-User", "Fastly-Client-Ip", "Fly-Client-Ip", "X-Azure-Clientip", "X-Originating-Ip",
		"Proxy-Client-Ip", "X-Proxyuser-Ip", "X-Scheme", "X-Url-Scheme", "Front-End-Https",
		"X-Request-Id", "Transfer_Encoding", "Content_Length", "Authorization_", "Host_",
	}
	for _, host := range []string{"billing.example.com", "open.example.com"} { // with a user, and without: ours absent is no reason to keep theirs
		for _, name := range names {
			t.Run(host+" "+name, func(t *testing.T) {
				r := w.request(http.MethodGet, host, "/", nil)
				r.Header = http.Header{name: {"evil"}, "Connection": {"keep-alive"}}
				if host == "billing.example.com" {
					r.AddCookie(cookie)
				}
				for header, values := range w.do(r).echo(t).Headers {
					if slices.Contains(values, "evil") && !strings.HasSuffix(name, "_") {
						t.Errorf("%s arrived as %s", name, header)
					}
				}
			})
		}
	}
}

func TestConnectionNamesNoneOfOurHeadersAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	r := w.request(http.MethodGet, "billing.example.com", "/", w.ana())
	r.Header["Connection"] = []string{"X-Iapmesh-Jwt-Assertion, X-Forwarded-For, X-Forwarded-User, Remote-Name, Cookie, X-Request-Id", "X-Acme-Subject, X-Iapmesh-Region"}
	saw := w.do(r).echo(t)
	for _, name := range []string{"X-Iapmesh-Jwt-Assertion", "X-Forwarded-For", "X-Forwarded-User", "Remote-Name", "X-Request-Id", "X-Acme-Subject", "X-Iapmesh-Region"} {
		if saw.Headers.Get(name) == "" {
			t.Errorf("%s was named away", name)
		}
	}
	if saw.Headers.Get("Connection") != "" {
		t.Errorf("Connection arrived: %q", saw.Headers["Connection"])
	}
}

func TestOnlyTrustedProxiesAreBelieved(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		trusted           string
		chain             []string
		wantFor, wantHost string
		wantProto, wantID string
		wantSource        string
	}{
		"nobody is trusted":               {"", []string{"203.0.113.9"}, "127.0.0.1", "billing.example.com", "http", "", "127.0.0.1"},
		"others are trusted":              {"10.0.0.0/8", []string{"203.0.113.9"}, "127.0.0.1", "billing.example.com", "http", "", "127.0.0.1"},
		"the peer is":                     {"127.0.0.0/8", []string{"203.0.113.9"}, "203.0.113.9, 127.0.0.1", "shop.example.com", "https", "theirs-1", "203.0.113.9"},
		"the client's own claims are not": {"127.0.0.0/8", []string{"6.6.6.6, 203.0.113.9"}, "6.6.6.6, 203.0.113.9, 127.0.0.1", "shop.example.com", "https", "theirs-1", "203.0.113.9"},
		"through two proxies":             {"127.0.0.0/8, 10.0.0.0/8", []string{"6.6.6.6", "203.0.113.9, 10.1.1.1"}, "6.6.6.6, 203.0.113.9, 10.1.1.1, 127.0.0.1", "shop.example.com", "https", "theirs-1", "203.0.113.9"},
		"mapped addresses are the same":   {"127.0.0.0/8", []string{"::ffff:203.0.113.9"}, "::ffff:203.0.113.9, 127.0.0.1", "shop.example.com", "https", "theirs-1", "203.0.113.9"},
		"what is no address says nothing": {"127.0.0.0/8", []string{"unknown"}, "unknown, 127.0.0.1", "shop.example.com", "https", "theirs-1", "127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{trusted: tc.trusted})
			r := w.request(http.MethodGet, "billing.example.com", "/", w.ana())
			r.Header["X-Forwarded-For"] = tc.chain
			r.Header.Set("X-Forwarded-Host", "shop.example.com")
			r.Header.Set("X-Forwarded-Proto", "https")
			r.Header.Set("X-Request-Id", "theirs-1")
			res := w.do(r)
			h := res.echo(t).Headers
			if h.Get("X-Forwarded-For") != tc.wantFor || h.Get("X-Forwarded-Host") != tc.wantHost || h.Get("X-Forwarded-Proto") != tc.wantProto {
				t.Errorf("for %q, host %q, proto %q", h["X-Forwarded-For"], h["X-Forwarded-Host"], h["X-Forwarded-Proto"])
			}
			if id := res.Header.Get("X-Request-Id"); tc.wantID != "" && id != tc.wantID || tc.wantID == "" && id == "theirs-1" {
				t.Errorf("request id %q", id)
			}
			if got := w.kind("decision", 1)[0].SourceIP; got != tc.wantSource {
				t.Errorf("recorded source %s, want %s", got, tc.wantSource)
			}
		})
	}
}

func TestOtherCookiesAndHeadersArrive(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	r := w.request(http.MethodGet, "billing.example.com", "/", nil)
	r.Header.Set("Cookie", `a="1"; `+session.CookieName+"="+w.ana().Value+`; b=2;c=3; __host-IAPMESH_state=x`)
	r.Header.Set("Authorization", "Bearer of-the-application")
	r.Header["X_custom"] = []string{"kept"}
	saw := w.do(r).echo(t)
	if got := saw.Headers.Get("Cookie"); got != `a="1"; b=2;c=3` {
		t.Errorf("cookies %q", got)
	}
	if saw.Headers.Get("Authorization") != "Bearer of-the-application" || !slices.Equal(saw.Headers["X_custom"], []string{"kept"}) {
		t.Errorf("headers %v", saw.Headers)
	}
}

// An application must not speak for the mesh to its users either.
func TestApplicationsSetNoneOfTheMeshsHeadersAndCookies(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{app: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("X-Iapmesh-Response", "denied")
		h.Set("X-Iapmesh-Region", "mars")
		h.Set("X-Iapmesh-Receipt", "invoice 7 paid")
		h.Set("X-Request-Id", "mine")
		h["Set-Cookie"] = []string{"theirs=1", "__Host-iapmesh_session=evil; Path=/; Secure", " __HOST-iapmesh_state=evil"}
	})})
	res := w.get("billing.example.com", "/", w.ana())
	h := res.Header
	if h.Get("X-Iapmesh-Response") != "" || !slices.Equal(h["X-Iapmesh-Region"], []string{"eu-west"}) || !slices.Equal(h["Set-Cookie"], []string{"theirs=1"}) ||
		h.Get("X-Iapmesh-Receipt") != "" || slices.Contains(h["X-Request-Id"], "mine") {
		t.Errorf("%v", h)
	}
	if got := w.kind("outcome", 1)[0].UpstreamReceipt; got != "invoice 7 paid" {
		t.Errorf("receipt %q", got)
	}
}

func TestPathsThatTwoParsersReadDifferentlyAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{routes: strings.ReplaceAll(routesYAML, "hosts: [open.example.com]", "hosts: [open.example.com]\nallow_paths: [encoded_slash, double_slash, semicolon]") + `---
kind: Route
name: private
hosts: [open.example.com]
path: /private
upstreams: [{url: http://APP}]
allow: [{groups: [okta/finance]}]
allow_paths: [encoded_slash, double_slash, semicolon]
---
kind: Route
name: public
hosts: [open.example.com]
path: /p
upstreams: [{url: http://APP}]
allow: [{anyone: true, paths: [/p/public/]}]
allow_paths: [encoded_slash, semicolon]
`})
	cookie := w.ana()
	const ok, bad, other = http.StatusOK, http.StatusBadRequest, http.StatusUnauthorized
	for _, tc := range []struct {
		target         string
		strict, opened int // by a route that permits nothing, and by one that permits all forms
	}{
		{"/", ok, ok}, {"/a", ok, ok}, {"/a/", ok, ok}, {"/a/b?x=/../y", ok, ok}, {"/a?b?c", ok, ok}, {"/a?", ok, ok}, {"/?//%2f;%00\\", ok, ok},
		{"/%41", ok, ok}, {"/caf%C3%A9", ok, ok}, {"/a%20b", ok, ok}, {"/a%3Fb", ok, ok}, {"/a%23b", ok, ok}, {"/100%25", ok, ok}, {"/a|b", ok, ok},
		{"/a^b", ok, ok}, {"/a[1]", ok, ok}, {"/{a}", ok, ok}, {"/a+b,c:d@e!$&'()*=~", ok, ok}, {"/.well-known/x", ok, ok}, {"/...", ok, ok}, {"/a..b", ok, ok}, {"/.hidden", ok, ok},
		{"/.", bad, bad}, {"/..", bad, bad}, {"/a/../b", bad, bad}, {"/a/..", bad, bad}, {"/a/./b", bad, bad}, {"/../a", bad, bad},
		{"/a/%2e%2e/b", bad, bad}, {"/a/.%2e/b", bad, bad}, {"/%2E/b", bad, bad}, {"/a%2eb", bad, bad},
		{"/a/..;/b", bad, bad}, {"/a/..;x=1/b", bad, bad}, {"/a/..%3b/b", bad, bad}, {"/a/;/b", bad, bad}, {"/;", bad, bad}, {"/a%2f..%2fb", bad, bad}, {"/a%2f%2e%2e%2fb", bad, bad},
		{"/a%5cb", bad, bad}, {"/a%5C..%5Cb", bad, bad}, {"/a\\b", bad, bad}, {"/a%00b", bad, bad}, {"/a%0ab", bad, bad}, {"/a%7fb", bad, bad},
		{"/a%252fb", bad, bad}, {"/a%252e%252e/b", bad, bad}, {"/%2561dmin", bad, bad}, {"/a%25%32%66", bad, bad},
		{"/a%c0%aeb", bad, bad}, {"/a%e0%80%aeb", bad, bad}, {"/caf%E9", bad, bad}, {"/a#b", bad, bad}, {"/a?b#c", bad, bad},
		{"/a%2fb", bad, ok}, {"/a%2Fb", bad, ok}, {"/a//b", bad, ok}, {"//a", bad, ok}, {"/a;v=1/b", bad, ok}, {"/a%3bv=1", bad, ok}, {"//a;b%2fc", bad, ok}, {"/a%2f/b", bad, ok},
		// A permitted form opens no other route: both readings must lead to the same one.
		{"/private/x", ok, other}, {"/private;v=1/x", bad, bad}, {"/private%2fx", bad, bad}, {"//private/x", bad, other},
		// Nor does it widen what a policy allows: both readings must be allowed.
		{"/p/public/x", ok, ok}, {"/p/public%2fx", bad, other}, {"/p/public;v=1/x", bad, other}, {"/p/public/x;v=1", bad, ok}, {"/p/public/..%2fx", bad, bad},
	} {
		for host, want := range map[string]int{"billing.example.com": tc.strict, "open.example.com": tc.opened} {
			t.Run(host+tc.target, func(t *testing.T) {
				text := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n", tc.target, host)
				if host == "billing.example.com" {
					text += "Cookie: " + cookie.String() + "\r\n"
				}
				status, body := w.raw(text + "\r\n")
				if status != want {
					t.Fatalf("status %d, want %d: %s", status, want, body)
				}
				if status == ok && !strings.Contains(body, `"request_uri": `+quoted(tc.target)) {
					t.Errorf("forwarded otherwise: %s", body)
				}
			})
		}
	}
}

// quoted is a string as echo's JSON has it.
func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, "&", `\u0026`, "<", `\u003c`).Replace(s) + `"`
}

func TestRequestLinesAndHosts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	for name, tc := range map[string]struct {
		text string
		want int
	}{
		"as usual":               {"GET / HTTP/1.1\r\nHost: open.example.com\r\n", 200},
		"case":                   {"GET / HTTP/1.1\r\nHost: OPEN.example.COM\r\n", 200},
		"port":                   {"GET / HTTP/1.1\r\nHost: open.example.com:8443\r\n", 200},
		"final dot":              {"GET / HTTP/1.1\r\nHost: open.example.com.\r\n", 200},
		"final dot and port":     {"GET / HTTP/1.1\r\nHost: open.example.com.:443\r\n", 200},
		"wildcard":               {"GET / HTTP/1.1\r\nHost: x.apps.example.com\r\n", 401},
		"wildcard, two labels":   {"GET / HTTP/1.1\r\nHost: y.x.apps.example.com\r\n", 404},
		"unknown":                {"GET / HTTP/1.1\r\nHost: evil.example.com\r\n", 404},
		"unknown, own path":      {"GET /.well-known/iapmesh HTTP/1.1\r\nHost: evil.example.com\r\n", 404},
		"none":                   {"GET / HTTP/1.1\r\n", 400},
		"empty":                  {"GET / HTTP/1.1\r\nHost:\r\n", 400},
		"two":                    {"GET / HTTP/1.1\r\nHost: open.example.com\r\nHost: billing.example.com\r\n", 400},
		"not a port":             {"GET / HTTP/1.1\r\nHost: open.example.com:80x\r\n", 400},
		"user":                   {"GET / HTTP/1.1\r\nHost: a@open.example.com\r\n", 400},
		"slash":                  {"GET / HTTP/1.1\r\nHost: open.example.com/x\r\n", 400},
		"absolute form":          {"GET http://open.example.com/ HTTP/1.1\r\nHost: open.example.com\r\n", 400},
		"absolute, another host": {"GET http://open.example.com/ HTTP/1.1\r\nHost: billing.example.com\r\n", 400},
		"no slash":               {"GET a HTTP/1.1\r\nHost: open.example.com\r\n", 400},
		"asterisk":               {"OPTIONS * HTTP/1.1\r\nHost: open.example.com\r\n", 405},
		"connect":                {"CONNECT open.example.com:443 HTTP/1.1\r\nHost: open.example.com:443\r\n", 405},
		"connect, path":          {"CONNECT / HTTP/1.1\r\nHost: open.example.com\r\n", 405},
		"trace":                  {"TRACE / HTTP/1.1\r\nHost: open.example.com\r\n", 405},
		"track":                  {"TRACK / HTTP/1.1\r\nHost: open.example.com\r\n", 405},
		"other methods":          {"PURGE / HTTP/1.1\r\nHost: open.example.com\r\n", 200},
	} {
		t.Run(name, func(t *testing.T) {
			if status, body := w.raw(tc.text + "Connection: close\r\n\r\n"); status != tc.want {
				t.Errorf("status %d, want %d: %s", status, tc.want, body)
			}
		})
	}
}

// FuzzPath: whatever is accepted has the same segments under net/url, and arrives byte for byte.
func FuzzPath(f *testing.F) {
	for _, seed := range []string{"/", "/a/b", "/a%2fb", "//a", "/a;b/c", "/%2e%2e/", "/a%252f", "/a|b", "/{x}?y", "/caf%C3%A9", "/..;/a", "/a?#", "/%c0%ae", "//\""} {
		f.Add(seed)
	}
	w := newWorld(f, options{plain: true, routes: strings.ReplaceAll(routesYAML, "hosts: [open.example.com]", "hosts: [open.example.com]\nallow_paths: [encoded_slash, double_slash, semicolon]"),
		app: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RequestURI) })})
	address := w.server.Listener.Addr().String()
	f.Fuzz(func(t *testing.T, target string) {
		if strings.ContainsAny(target, " \r\n\t") || strings.HasPrefix(target, "/.iapmesh") || strings.HasPrefix(target, "/.well-known/iapmesh") || len(target) > 8000 {
			t.Skip("ends the request line, or is ours")
		}
		status, body := send(t, address, "GET "+target+" HTTP/1.1\r\nHost: open.example.com\r\nConnection: close\r\n\r\n")
		if status != http.StatusOK {
			return
		}
		if body != target {
			t.Fatalf("%q arrived as %q", target, body)
		}
		u, err := url.ParseRequestURI(target)
		if err != nil {
			t.Fatalf("%q was accepted: %v", target, err)
		}
		for segment := range strings.SplitSeq(u.Path, "/") {
			name, _, _ := strings.Cut(segment, ";")
			if name == "." || name == ".." || strings.ContainsAny(name, "\\\x00") {
				t.Fatalf("%q was accepted, with the segment %q", target, segment)
			}
		}
		if again, err := url.PathUnescape(u.Path); err == nil && again != u.Path {
			t.Fatalf("%q was accepted, and reads %q when it is decoded twice", target, again)
		}
	})
}

// FuzzHeader: a name that some application server could fold into one of ours never arrives.
func FuzzHeader(f *testing.F) {
	for _, seed := range []string{"X-Forwarded-User", "X_Forwarded_User", "x.iapmesh.jwt.assertion", "REMOTE_USER", "X!Acme~Subject", "Cf|Access|Jwt|Assertion", "X-Custom", "Transfer_Encoding"} {
		f.Add(seed)
	}
	w := newWorld(f, options{plain: true, app: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, values := range r.Header {
			if slices.Contains(values, "evil") {
				fmt.Fprintln(w, name)
			}
		}
	})})
	address := w.server.Listener.Addr().String()
	f.Fuzz(func(t *testing.T, name string) {
		if strings.ContainsAny(name, ": \r\n\t") || name == "" || slices.Contains([]string{"Host", "Content-Length", "Transfer-Encoding", "Connection"}, http.CanonicalHeaderKey(name)) {
			t.Skip("another request than it seems")
		}
		_, body := send(t, address, "GET / HTTP/1.1\r\nHost: open.example.com\r\nConnection: close\r\n"+name+": evil\r\n\r\n")
		for arrived := range strings.Lines(body) {
			folded := strings.Map(func(r rune) rune {
				switch {
				case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
					return r
				case r >= 'A' && r <= 'Z':
					return r + 'a' - 'A'
				}
				return '-'
			}, strings.TrimSpace(arrived))
			for _, ours := range []string{"x-iapmesh-", "x-forwarded-", "remote-", "cf-access-", "x-acme-subject", "x-auth-request-", "x-goog-", "x-pomerium-"} {
				if strings.HasPrefix(folded, ours) && (ours != "x-goog-" || strings.HasPrefix(folded, "x-goog-iap-")) && (ours != "x-acme-subject" || folded == ours) {
					t.Fatalf("%q arrived as %q", name, arrived)
				}
			}
		}
	})
}
