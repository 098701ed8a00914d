package login_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/node/login"
)

func TestASignInLinkLeadsToNoStranger(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	u := w.user()
	u.stopAt("/authorize")
	for name, rd := range map[string]string{
		"another host":               "https://evil.example/",
		"plain http":                 "http://billing.localhost/",
		"no scheme":                  "//evil.example/",
		"backslash":                  `/\evil.example/`,
		"backslash after slashes":    `https:/\evil.example/`,
		"backslash ends the host":    `https://evil.example\.billing.localhost/`,
		"backslash before user":      `https://evil.example\@billing.localhost/`,
		"user":                       "https://billing.localhost@evil.example/",
		"user before our host":       "https://evil.example@billing.localhost/",
		"subdomain of a stranger":    "https://billing.localhost.evil.example/",
		"subdomain of a route":       "https://evil.billing.localhost/",
		"suffix":                     "https://evilbilling.localhost/",
		"two labels under a wild":    "https://a.b.docs.localhost/",
		"leading space":              " https://evil.example/",
		"tab in the scheme":          "ht\ttps://evil.example/",
		"tab after a slash":          "/\t/evil.example/",
		"line end":                   "/\r\nLocation: https://evil.example/",
		"NUL":                        "/\x00/evil.example",
		"encoded slashes":            "/%2f%2fevil.example",
		"encoded backslash":          "/%5cevil.example",
		"fragment ends the host":     "https://evil.example#.billing.localhost/",
		"query ends the host":        "https://evil.example?.billing.localhost/",
		"port of no number":          "https://billing.localhost:80@evil.example/",
		"script":                     "javascript:alert(1)",
		"data":                       "data:text/html,x",
		"opaque":                     "https:evil.example",
		"full-width dot":             "https://billing。localhost/",
		"address in brackets":        "https://[::1]/",
		"route that nobody signs in": "/public/x",
		"host of no route":           "https://nothing.localhost/",
		"far too long":               "/" + strings.Repeat("a", 2000),
		"relative":                   "evil.example",
	} {
		page := u.get(w.url("eu", "billing", "/.iapmesh/sign_in?rd="+url.QueryEscape(rd)))
		if page.StatusCode != http.StatusBadRequest {
			location, _ := page.Location()
			t.Errorf("%s: %q leads on with %d to %v", name, rd, page.StatusCode, location)
		}
	}
}

func TestASignInLinkLeadsBackToItsTarget(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, test := range map[string]struct{ rd, want string }{
		"nothing":           {"", w.url("eu", "billing", "/")},
		"a path":            {"/a/b?c=d%20e", w.url("eu", "billing", "/a/b?c=d%20e")},
		"an address":        {"https://billing.localhost/a", w.url("eu", "billing", "/a")},
		"its port is ours":  {"https://billing.localhost:1/a", w.url("eu", "billing", "/a")},
		"another host":      {"https://Wiki.localhost?x", w.url("eu", "wiki", "/?x")},
		"a final dot":       {"https://wiki.localhost./p", w.url("eu", "wiki", "/p")},
		"slashes in a name": {"/a?u=//evil.example", w.url("eu", "billing", "/a?u=//evil.example")},
	} {
		t.Run(name, func(t *testing.T) {
			u := w.user()
			page := u.get(w.url("eu", "billing", "/.iapmesh/sign_in?rd="+url.QueryEscape(test.rd)))
			if strings.Contains(test.want, "wiki") {
				page = u.get(w.chosen(page, "dev"))
			}
			page, err := u.submit(page, ana)
			if err != nil {
				t.Fatal(err)
			}
			w.greeted(page)
			if got := page.Request.URL.String(); got != test.want {
				t.Errorf("arrived at %s, want %s", got, test.want)
			}
		})
	}
}

func TestTheHostHeaderIsTakenApartOneWay(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"a.example": "a.example ", "A.Example.": "a.example ", "a.example:443": "a.example ", "a.example:8443": "a.example :8443",
		"": "", "a.example:": "", "a.example:0": "", "a.example:08443": "", "a.example:99999": "", "a.example:-1": "", "a.example:80:81": "",
		"a b": "", "a/b": "", "a@b": "", "a\\b": "", "[::1]:443": "", "a.example:8443@evil": "", ".": "",
	} {
		host, port, ok := login.SplitHost(in)
		if got := host + " " + port; ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q, %v", in, got, ok)
		}
	}
}

func FuzzReturnAddress(f *testing.F) {
	for _, s := range []string{
		"/", "/a?b=c", "https://wiki.localhost/x", `/\evil`, "//evil", "https://a@b/", "https://a:1/?x#y", "https://a\\b", "/%5c", "/a\r\nb", "https://a.?b",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, address string) {
		out, err := login.ParseReturn("billing.localhost", address, ":8443")
		if err != nil {
			return
		}
		u, err := url.Parse(out)
		if err != nil {
			t.Fatalf("%q: %q: %v", address, out, err)
		}
		if u.Scheme != "https" || u.User != nil || u.Fragment != "" || u.Port() != "8443" || !strings.HasPrefix(u.Path, "/") || strings.HasPrefix(u.Path, "//") {
			t.Errorf("%q leads to %q", address, out)
		}
		if strings.ContainsAny(out, " \t\r\n\\\x00#") {
			t.Errorf("%q leads to %q, which browsers read in their own way", address, out)
		}
		if host, _, ok := login.SplitHost(u.Host); !ok || strings.HasPrefix(address, "/") && host != "billing.localhost" {
			t.Errorf("%q leads to host %q", address, u.Host)
		}
		again, err := login.ParseReturn(u.Hostname(), u.RequestURI(), ":8443")
		if err != nil {
			t.Fatalf("%q: read again: %v", out, err)
		}
		if v, err := url.Parse(again); err != nil || v.Host != u.Host || v.Path != u.Path || v.RawQuery != u.RawQuery {
			t.Errorf("%q: read again %q: %v", out, again, err)
		}
	})
}
