package dev_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/internal/dev"
	"github.com/iapmesh/iapmesh/internal/dev/ca"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// site serves h for echo.localhost and auth.localhost over TLS on n ports, and returns a configuration that trusts it.
func site(t *testing.T, h http.Handler, n int) (dev.Config, []string) {
	t.Helper()
	authority, err := ca.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := authority.Leaf("echo.localhost", "auth.localhost")
	if err != nil {
		t.Fatal(err)
	}
	var ports []string
	for range n {
		s := httptest.NewUnstartedServer(h)
		s.TLS = &tls.Config{Certificates: []tls.Certificate{leaf}}
		s.EnableHTTP2 = true
		s.StartTLS()
		t.Cleanup(s.Close)
		_, port, err := net.SplitHostPort(s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, port)
	}
	return dev.Config{CA: authority.Pool()}, ports
}

func TestClientFindsLocalhostNames(t *testing.T) {
	t.Parallel()
	config, ports := site(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Host, " ", r.Proto) }), 1)
	for _, test := range []struct {
		name, host, want string
		config           func(*dev.Config)
	}{
		{"name", "echo.localhost", "echo.localhost:%s HTTP/2.0", func(*dev.Config) {}},
		{"upper case", "ECHO.localhost", "ECHO.localhost:%s HTTP/2.0", func(*dev.Config) {}},
		{"h1", "auth.localhost", "auth.localhost:%s HTTP/1.1", func(c *dev.Config) { c.NoHTTP2 = true }},
		{"not in the certificate", "other.localhost", "", func(*dev.Config) {}},
		{"steered elsewhere", "echo.localhost", "", func(c *dev.Config) { c.Hosts = map[string]string{"echo.localhost": "127.0.0.2"} }},
		{"untrusted", "echo.localhost", "", func(c *dev.Config) { c.CA = nil }},
	} {
		c := config
		test.config(&c)
		client := dev.Client(c)
		answer, err := client.Get("https://" + test.host + ":" + ports[0] + "/")
		if test.want == "" {
			if err == nil {
				answer.Body.Close()
				t.Errorf("%s: reached", test.name)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		client.CloseIdleConnections()
		if want := fmt.Sprintf(test.want, ports[0]); err != nil || string(body) != want {
			t.Errorf("%s: %q, error %v, want %q", test.name, body, err, want)
		}
	}
}

func TestCookiesFollowABrowsersRules(t *testing.T) {
	t.Parallel()
	parse := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	host := http.Cookie{Name: "__Host-s", Value: "v", Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode}
	with := func(change func(*http.Cookie)) http.Cookie {
		c := host
		change(&c)
		return c
	}
	for _, test := range []struct {
		name   string
		cookie http.Cookie
		set    string
		get    string
		kept   bool
	}{
		{"__Host- on its port", host, "https://echo.localhost:18443/x/y", "https://echo.localhost:18443/", true},
		{"__Host- on another region's port", host, "https://echo.localhost:18443/", "https://echo.localhost:28443/z", true},
		{"__Host- for another host", host, "https://echo.localhost:18443/", "https://auth.localhost:18443/", false},
		{"__Host- for a host below", host, "https://echo.localhost/", "https://a.echo.localhost/", false},
		{"__Host- to a plain page", host, "https://echo.example.com/", "http://echo.example.com/", false},
		{"__Host- from a plain page", host, "http://echo.localhost/", "https://echo.localhost/", false},
		{"__Host- at an IP address", host, "https://127.0.0.1:1/", "https://127.0.0.1:2/", true},
		{"__Host- not Secure", with(func(c *http.Cookie) { c.Secure = false }), "https://echo.localhost/", "https://echo.localhost/", false},
		{"__Host- with a path", with(func(c *http.Cookie) { c.Path = "/x" }), "https://echo.localhost/", "https://echo.localhost/x", false},
		{"__Host- without path", with(func(c *http.Cookie) { c.Path = "" }), "https://echo.localhost/", "https://echo.localhost/", false},
		{"__Host- with a domain", with(func(c *http.Cookie) { c.Domain = "echo.localhost" }), "https://echo.localhost/", "https://echo.localhost/", false},
		{"__host- in lower case", with(func(c *http.Cookie) { c.Name, c.Secure = "__host-s", false }), "https://echo.localhost/", "https://echo.localhost/", false},
		{"__Secure- not Secure", with(func(c *http.Cookie) { c.Name, c.Secure = "__Secure-s", false }), "https://echo.localhost/", "https://echo.localhost/", false},
		{"SameSite=None not Secure", http.Cookie{Name: "s", Value: "v", SameSite: http.SameSiteNoneMode}, "https://echo.localhost/", "https://echo.localhost/", false},
		{"4,096 bytes", with(func(c *http.Cookie) { c.Value = strings.Repeat("v", 4096-len(c.Name)) }), "https://echo.localhost/", "https://echo.localhost/", true},
		{"4,097 bytes", with(func(c *http.Cookie) { c.Value = strings.Repeat("v", 4097-len(c.Name)) }), "https://echo.localhost/", "https://echo.localhost/", false},
		{"plain", http.Cookie{Name: "s", Value: "v"}, "http://echo.localhost/", "http://echo.localhost/", true},
	} {
		jar := dev.NewJar()
		jar.SetCookies(parse(test.set), []*http.Cookie{&test.cookie})
		if got := len(jar.Cookies(parse(test.get))) == 1; got != test.kept {
			t.Errorf("%s: sent %v, want %v", test.name, got, test.kept)
		}
	}
}

func TestBrowserKeepsItsCookieOnEveryPort(t *testing.T) {
	t.Parallel()
	config, ports := site(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, err := r.Cookie("__Host-s"); err == nil {
			fmt.Fprint(w, c.Value)
			return
		}
		http.SetCookie(w, &http.Cookie{Name: "__Host-s", Value: "mine", Path: "/", Secure: true})
	}), 2)
	browser := dev.NewBrowser(config)
	for i, port := range []string{ports[0], ports[1], ports[0]} {
		page, err := browser.Get(t.Context(), "https://echo.localhost:"+port+"/")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(page.Body)
		if err != nil || (string(body) == "mine") != (i > 0) {
			t.Errorf("visit %d: %q, error %v", i, body, err)
		}
	}
	if c, ok := browser.Cookie("https://echo.localhost:1/", "__Host-s"); !ok || c.Value != "mine" {
		t.Errorf("cookie %v", c)
	}
	if _, ok := browser.Cookie("https://auth.localhost:1/", "__Host-s"); ok {
		t.Error("another host has the cookie too")
	}
	browser.Client.CloseIdleConnections()
}

func TestBrowserBehavesAsOne(t *testing.T) {
	t.Parallel()
	config, ports := site(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := r.Header
		w.Header().Set("Content-Type", "text/html")
		switch r.URL.Path {
		case "/loop":
			http.Redirect(w, r, "/loop?code=secret", http.StatusFound)
		case "/form":
			fmt.Fprint(w, `<p role="alert">Mind the <b>gap</b></p><form method=post action="then?x=1"><input type=hidden name=t value="a&amp;b">
				<input name=username value=old><input type=password name=password><input type=checkbox name=remember><button name=go>Go</button></form>`)
		case "/then":
			_ = r.ParseForm()
			http.Redirect(w, r, "https://auth.localhost"+r.Host[strings.LastIndex(r.Host, ":"):]+"/end?"+r.PostForm.Encode()+
				"&origin="+url.QueryEscape(h.Get("Origin"))+"&site="+h.Get("Sec-Fetch-Site")+"&x="+r.URL.Query().Get("x"), http.StatusFound)
		case "/end":
			fmt.Fprint(w, h.Get("Origin"), "|", h.Get("Referer"), "|", h.Get("Sec-Fetch-Site"), "|", r.Method)
		}
	}), 1)
	browser := dev.NewBrowser(config)
	defer browser.Client.CloseIdleConnections()
	origin := "https://echo.localhost:" + ports[0]

	_, err := browser.Get(t.Context(), origin+"/loop")
	if !fault.Is(err, fault.Conflict) || strings.Contains(err.Error(), "secret") {
		t.Errorf("a loop of redirects: %v", err)
	}

	page, err := browser.Get(t.Context(), origin+"/form")
	if err != nil {
		t.Fatal(err)
	}
	forms, err := dev.Forms(page)
	if err != nil || len(forms) != 1 || forms[0].Alert != "Mind the gap" || !forms[0].Password {
		t.Fatalf("forms %+v, error %v", forms, err)
	}
	page, err = browser.SignIn(t.Context(), origin+"/form", "ana", "p w")
	if err != nil {
		t.Fatal(err)
	}
	want := url.Values{"t": {"a&b"}, "username": {"ana"}, "password": {"p w"}, "origin": {origin}, "site": {"same-origin"}, "x": {"1"}}
	if got := page.Request.URL.Query(); page.Request.URL.Path != "/end" || got.Encode() != want.Encode() {
		t.Errorf("arrived at %s, want %s", page.Request.URL, want.Encode())
	}
	body, err := io.ReadAll(page.Body)
	if err != nil || string(body) != "||cross-site|GET" {
		t.Errorf("after the redirect the other host saw %q, error %v", body, err)
	}
}
