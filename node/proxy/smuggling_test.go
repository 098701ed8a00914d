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
