package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/iapmesh/iapmesh/keyring"
)

// cutWithin is how soon a stream should end once its permission has. A busy machine may take longer: what is not cut at all goes on
// for good, and is waited for as long as patience has it.
const cutWithin = 50 * time.Millisecond

func (w *world) webSocket(cookie *http.Cookie) *websocket.Conn {
	w.t.Helper()
	c, res, err := websocket.Dial(w.t.Context(), w.server.URL+"/ws", &websocket.DialOptions{
		Host: "billing.example.com", HTTPHeader: http.Header{"Cookie": {cookie.String()}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if res.Header.Get("X-Request-Id") == "" || res.Header.Get("X-Iapmesh-Region") != "eu-west" {
		w.t.Errorf("%v", res.Header)
	}
	w.t.Cleanup(func() { c.CloseNow() })
	return c
}

func TestWebSocketsPassAndEndWithTheirPermission(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(w *world, sid string){
		"the session is revoked": func(w *world, sid string) { w.revoke(sid) },
		"the user is revoked": func(w *world, _ string) {
			w.commit(func(c *keyring.Contents) {
				c.Revocations[keyring.RevokeSubject]["okta/00u1"] = &keyring.Revocation{Kind: keyring.RevokeSubject, Value: "okta/00u1", Revision: w.at}
			})
		},
		"the policy changed": func(w *world, _ string) {
			w.apply(settingsYAML + strings.ReplaceAll(routesYAML, "groups: [okta/finance]", "groups: [okta/other]"))
		},
		"the route is gone": func(w *world, _ string) {
			w.apply(settingsYAML + strings.Replace(routesYAML, "name: billing", "name: billing2", 1))
		},
		"the path is another route's": func(w *world, _ string) {
			w.apply(settingsYAML + routesYAML + "---\nkind: Route\nname: sockets\nhosts: [billing.example.com]\npath: /ws\nupstreams: [{url: http://APP}]\nallow: [{groups: [okta/other]}]\n")
		},
		"the node is quarantined": func(w *world, _ string) {
			w.commit(func(c *keyring.Contents) {
				n := *c.Nodes["eu"]
				n.State = keyring.NodeQuarantined
				c.Nodes["eu"] = &n
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{})
			cookie, sid := w.signInAs("okta/finance")
			c := w.webSocket(cookie)
			for i := range 3 {
				message := fmt.Sprint("hello ", i)
				if err := c.Write(t.Context(), websocket.MessageText, []byte(message)); err != nil {
					t.Fatal(err)
				}
				if _, got, err := c.Read(t.Context()); err != nil || string(got) != message {
					t.Fatalf("%q: %v", got, err)
				}
			}
			start := time.Now()
			end(w, sid)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if _, _, err := c.Read(ctx); err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("the WebSocket goes on: %v", err)
			}
			if took := time.Since(start); took > cutWithin {
				t.Logf("cut after %s", took)
			}
			o := w.kind("outcome", 1)[0]
			if o.Status != http.StatusSwitchingProtocols || o.Reason == "" || o.BytesIn == 0 || o.BytesOut == 0 {
				t.Errorf("outcome %+v", o)
			}
			w.eventually("nothing is open", func() bool { s := w.live.Stats(nil); return s.Streams+s.Requests == 0 })
		})
	}
}

// A client that reads nothing must not keep its WebSocket either: the connection itself is closed.
func TestAWebSocketWhoseClientIsStuckEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{app: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(rw, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer c.CloseNow()
		for c.Write(context.Background(), websocket.MessageBinary, make([]byte, 1<<20)) == nil {
		}
	})})
	cookie, sid := w.signInAs("okta/finance")
	w.webSocket(cookie)
	w.eventually("it is open", func() bool { return w.live.Stats(nil).Streams == 1 })
	w.revoke(sid)
	w.eventually("it is closed", func() bool { return w.live.Stats(nil).Streams == 0 })
}

func TestServerSentEventsStreamAndEnd(t *testing.T) {
	t.Parallel()
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("HTTP/2 ", http2), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{http2: http2})
			cookie, sid := w.signInAs("okta/finance")
			r := w.request(http.MethodGet, "billing.example.com", "/sse?interval=10ms", cookie)
			r.Header.Set("Accept", "text/event-stream")
			res, err := w.server.Client().Transport.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			lines := bufio.NewScanner(res.Body)
			for seen := 0; seen < 3 && lines.Scan(); {
				if strings.HasPrefix(lines.Text(), "data:") {
					seen++
				}
			}
			if s := w.live.Stats(nil); s.Streams != 1 {
				t.Errorf("%+v", s)
			}
			start := time.Now()
			w.revoke(sid)
			for lines.Scan() {
			}
			if lines.Err() == nil {
				t.Error("ended as if it were whole")
			}
			if took := time.Since(start); took > cutWithin {
				t.Logf("cut after %s", took)
			}
			if o := w.kind("outcome", 1)[0]; o.Status != 200 || !strings.Contains(o.Reason, "revoked") {
				t.Errorf("outcome %+v", o)
			}
		})
	}
}

func TestUploadsStreamBothWays(t *testing.T) {
	t.Parallel()
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("HTTP/2 ", http2), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{http2: http2})
			body := bytes.Repeat([]byte("iapmesh "), 1<<19) // 4 MiB
			r := w.request(http.MethodPost, "billing.example.com", "/upload?progress=1000000", w.ana())
			piece, feed := io.Pipe()
			r.Body, r.ContentLength = piece, -1
			go func() {
				for len(body) > 0 {
					n := min(len(body), 1<<18)
					if _, err := feed.Write(body[:n]); err != nil {
						return
					}
					body = body[n:]
				}
				feed.Close()
			}()
			sum := sha256.Sum256(body)
			res := w.do(r)
			if !strings.Contains(res.body, hex.EncodeToString(sum[:])) || strings.Count(res.body, "\n") < 4 {
				t.Errorf("%d %s", res.StatusCode, res.body)
			}
			if o := w.kind("outcome", 1)[0]; o.BytesIn != 4<<20 || o.BytesOut != int64(len(res.body)) {
				t.Errorf("outcome %+v", o)
			}
		})
	}
}

// The client has stopped sending, and so nothing would ever end the read of its body.
func TestAnUploadWhoseClientIsStuckEnds(t *testing.T) {
	t.Parallel()
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("HTTP/2 ", http2), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{http2: http2})
			cookie, sid := w.signInAs("okta/finance")
			r := w.request(http.MethodPost, "billing.example.com", "/upload", cookie)
			piece, feed := io.Pipe()
			defer feed.Close()
			r.Body, r.ContentLength = piece, -1
			answered := make(chan int, 1)
			go func() {
				res, err := w.server.Client().Transport.RoundTrip(r)
				if err != nil {
					answered <- 0
					return
				}
				res.Body.Close()
				answered <- res.StatusCode
			}()
			if _, err := feed.Write(make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			w.eventually("it is open", func() bool { return w.live.Stats(nil).Requests == 1 })
			w.revoke(sid)
			select {
			case status := <-answered:
				if status != http.StatusUnauthorized {
					t.Errorf("status %d", status)
				}
			case <-time.After(patience):
				t.Fatal("the upload goes on")
			}
			w.eventually("nothing is open", func() bool { return w.live.Stats(nil).Requests == 0 })
		})
	}
}

func TestAClientThatLeavesEndsTheApplicationsWork(t *testing.T) {
	t.Parallel()
	began, left := make(chan struct{}), make(chan struct{})
	w := newWorld(t, options{app: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
		close(left)
	})})
	ctx, cancel := context.WithCancel(t.Context())
	r := w.request(http.MethodGet, "billing.example.com", "/", w.ana()).WithContext(ctx)
	go func() {
		if res, err := w.server.Client().Transport.RoundTrip(r); err == nil {
			res.Body.Close()
		}
	}()
	<-began
	cancel()
	select {
	case <-left:
	case <-time.After(patience):
		t.Fatal("the application works on")
	}
	if o := w.kind("outcome", 1)[0]; o.Status != 499 {
		t.Errorf("outcome %+v", o)
	}
}

func TestWhatApplicationsMayAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{app: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/trailers":
			w.Header().Set("Trailer", "X-Sum")
			body, _ := io.ReadAll(r.Body)
			fmt.Fprint(w, "body")
			w.Header().Set("X-Sum", string(body)+r.Trailer.Get("X-Theirs"))
		case "/redirect":
			http.Redirect(w, r, "https://elsewhere.example.com/", http.StatusFound)
		case "/gzip":
			w.Header().Set("Content-Encoding", r.Header.Get("Accept-Encoding"))
		case "/slow":
			w.Header().Set("Content-Length", "10")
			fmt.Fprint(w, "first")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		case "/continue":
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s", r.Header.Get("Expect"), body)
		case "/abort":
			panic(http.ErrAbortHandler)
		}
	})})
	cookie := w.ana()

	r := w.request(http.MethodPost, "billing.example.com", "/trailers", cookie)
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader("a")), -1
	r.Trailer = http.Header{"X-Theirs": {"b"}}
	if res := w.do(r); res.body != "body" || res.Trailer.Get("X-Sum") != "ab" {
		t.Errorf("trailers: %q %v", res.body, res.Trailer)
	}
	if res := w.get("billing.example.com", "/redirect", cookie); res.StatusCode != 302 || res.Header.Get("Location") != "https://elsewhere.example.com/" {
		t.Errorf("redirect: %d %v", res.StatusCode, res.Header)
	}
	r = w.request(http.MethodGet, "billing.example.com", "/gzip", cookie)
	r.Header.Set("Accept-Encoding", "br")
	if res := w.do(r); res.Header.Get("Content-Encoding") != "br" {
		t.Errorf("encoding: %v", res.Header)
	}
	r = w.request(http.MethodPut, "billing.example.com", "/continue", cookie)
	r.Header.Set("Expect", "100-continue")
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader("body")), 4
	if res := w.do(r); res.body != "100-continue body" {
		t.Errorf("expect: %d %q", res.StatusCode, res.body)
	}
	if res := w.get("billing.example.com", "/abort", cookie); res.StatusCode != http.StatusBadGateway || res.code() != "upstream_unreachable" {
		t.Errorf("abort: %d %v", res.StatusCode, res.Header)
	}

	// What is there of a body goes out, whatever its length says.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	res, err := w.server.Client().Transport.RoundTrip(w.request(http.MethodGet, "billing.example.com", "/slow", cookie).WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	first := make([]byte, 5)
	if _, err := io.ReadFull(res.Body, first); err != nil || string(first) != "first" {
		t.Errorf("slow: %q %v", first, err)
	}
}

func TestApplicationsThatDoNotAnswer(t *testing.T) {
	t.Parallel()
	stuck := make(chan struct{})
	defer close(stuck)
	w := newWorld(t, options{
		routes: `---
kind: Route
name: slow
hosts: [slow.example.com]
upstreams: [{url: "http://APP"}]
timeout: 100ms
allow: [{anyone: true}]
---
kind: Route
name: down
hosts: [down.example.com]
upstreams: [{url: "http://127.0.0.1:1"}]
allow: [{anyone: true}]
`,
		app: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-stuck:
			case <-r.Context().Done():
			}
		}),
	})
	if res := w.get("slow.example.com", "/", nil); res.StatusCode != http.StatusGatewayTimeout || res.code() != "upstream_timeout" {
		t.Errorf("slow: %d %v", res.StatusCode, res.Header)
	}
	if res := w.get("down.example.com", "/", nil); res.StatusCode != http.StatusBadGateway || res.code() != "upstream_unreachable" {
		t.Errorf("down: %d %v", res.StatusCode, res.Header)
	}
}
