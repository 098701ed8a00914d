package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"testing"
)

// What a client may not say in a header it may not say in a trailer either: application servers merge them.
func TestIdentityTrailersOfTheClientNeverArrive(t *testing.T) {
	t.Parallel()
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("http2=%v", h2), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{http2: h2, app: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				for name, values := range r.Trailer {
					fmt.Fprintln(w, name, values)
				}
				fmt.Fprintln(w, r.Header["Trailer"])
			})})
			r := w.request(http.MethodPost, "billing.example.com", "/", w.ana())
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader("a")), -1
			r.Trailer = http.Header{
				"X-Iapmesh-Jwt-Assertion": {"evil"}, "X_forwarded_user": {"evil"}, "X-Acme-Subject": {"evil"}, "Remote-User": {"evil"}, "X-Sum": {"kept"},
				"Cookie": {"__Host-iapmesh_session=evil"},
			}
			if body := w.do(r).body; strings.Contains(body, "evil") || !strings.Contains(body, "X-Sum [kept]") {
				t.Errorf("arrived: %s", body)
			}
		})
	}
}

// An application that also speaks h2c would let a client in by one request and answer it any number of others, undecided.
func TestNothingButAWebSocketIsUpgraded(t *testing.T) {
	t.Parallel()
	for _, to := range []string{"h2c", "TLS/1.0", "websocket, h2c", "h2c,websocket", "WebSocket2"} {
		t.Run(to, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{app: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Upgrade") == "" {
					fmt.Fprintln(w, r.Header)
					return
				}
				w.Header().Set("Connection", "Upgrade")
				w.Header().Set("Upgrade", r.Header.Get("Upgrade"))
				w.WriteHeader(http.StatusSwitchingProtocols)
			})})
			status, body := w.raw("GET / HTTP/1.1\r\nHost: open.example.com\r\nConnection: Upgrade\r\nUpgrade: " + to + "\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n")
			if status != http.StatusOK || strings.Contains(body, "Http2-Settings") {
				t.Errorf("%d %s", status, body)
			}
		})
	}
}

// Interim answers are the application's too.
func TestInterimAnswersCarryNothingOfTheMesh(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{app: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Link", "</a.css>; rel=preload")
		h.Set("X-Iapmesh-Response", "denied")
		h.Set("Set-Cookie", "__Host-iapmesh_session=evil; Path=/; Secure")
		w.WriteHeader(http.StatusEarlyHints)
		for _, name := range []string{"X-Iapmesh-Response", "Set-Cookie"} {
			h.Del(name)
		}
	})})
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", w.server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: open.example.com\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if dump, _ := httputil.DumpResponse(res, false); res.StatusCode != http.StatusEarlyHints || res.Header.Get("Link") == "" ||
		res.Header.Get("X-Iapmesh-Response") != "" || res.Header.Get("Set-Cookie") != "" {
		t.Errorf("%s", dump)
	}
}

// A body that the client broke is not the application's fault.
func TestABrokenBodyIsTheClients(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{app: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
	})})
	for name, rest := range map[string]string{
		"chunk extension": "1;a=\nb\r\nx\r\n0\r\n\r\n",
		"no size":         "x\r\n\r\n",
	} {
		status, body := w.raw("POST / HTTP/1.1\r\nHost: open.example.com\r\nTransfer-Encoding: chunked\r\n\r\n" + rest)
		if status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
}

// What is left of a body that nobody reads any more is no request: behind a proxy that shares connections it would be another user's.
func TestTheRestOfABodyIsNoRequest(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		host string
		want int
	}{
		"the session ends":        {"billing.example.com", http.StatusUnauthorized},
		"the application is down": {"down.example.com", http.StatusBadGateway},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{routes: routesYAML + "---\nkind: Route\nname: down\nhosts: [down.example.com]\nupstreams: [{url: 'http://127.0.0.1:1'}]\nallow: [{anyone: true}]\n"})
			cookie, sid := w.signInAs("okta/finance")
			c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", w.server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := io.WriteString(c, "POST /upload HTTP/1.1\r\nHost: "+tc.host+"\r\nContent-Length: 1000\r\nCookie: "+cookie.String()+"\r\n\r\nabc"); err != nil {
				t.Fatal(err)
			}
			if tc.want == http.StatusUnauthorized {
				w.eventually("it is open", func() bool { return w.live.Stats(nil).Requests == 1 })
				w.revoke(sid)
			}
			answers := bufio.NewReader(c)
			first, err := http.ReadResponse(answers, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, first.Body); err != nil || first.StatusCode != tc.want {
				t.Fatalf("%d: %v", first.StatusCode, err)
			}
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: open.example.com\r\n\r\n") // the connection may have gone by now
			if second, err := http.ReadResponse(answers, nil); err == nil {
				defer second.Body.Close()
				t.Errorf("it was answered, with %d", second.StatusCode)
			}
		})
	}
}
