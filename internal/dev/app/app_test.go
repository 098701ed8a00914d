package app_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/iapmesh/iapmesh/internal/dev/app"
)

func serve(t *testing.T, h http.Handler) *httptest.Server {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// send returns an answer with its body read.
func send(t *testing.T, r *http.Request) (*http.Response, string) {
	t.Helper()
	answer, err := http.DefaultClient.Do(r.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, string(body)
}

func request(t *testing.T, method, url string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestEchoShowsWhatReachedIt(t *testing.T) {
	t.Parallel()
	s := serve(t, app.NewEcho(app.Config{Region: "eu-west"}))
	r := request(t, http.MethodPatch, s.URL+"/a//b/../c%2Fd?x=1&x=2", strings.NewReader("twelve bytes"))
	r.Host = "echo.localhost"
	r.Header.Set("X-Custom", "yes")
	r.Header.Set(app.RegionHeader, "us-east")
	answer, body := send(t, r)
	var e app.Echo
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		t.Fatalf("%d %s: %v", answer.StatusCode, body, err)
	}
	if e.Method != "PATCH" || e.Path != "/a//b/../c/d" || !strings.HasSuffix(e.RequestURI, "/a//b/../c%2Fd?x=1&x=2") ||
		len(e.Query["x"]) != 2 || e.Headers.Get("X-Custom") != "yes" || e.BodyBytes != 12 || e.Host != "echo.localhost" ||
		e.Region != "eu-west" || e.ServedBy != "us-east" || e.Remote == "" || e.Verified || e.Reason == "" {
		t.Errorf("echo: %s", body)
	}
}

func TestEchoAnswersAsItIsTold(t *testing.T) {
	t.Parallel()
	s := serve(t, app.NewEcho(app.Config{}))
	began := time.Now()
	answer, body := send(t, request(t, http.MethodGet, s.URL+"/?status=418&delay=30ms&bytes=100000", nil))
	if answer.StatusCode != http.StatusTeapot || len(body) != 100_000 || time.Since(began) < 30*time.Millisecond {
		t.Errorf("status %d, %d bytes after %v", answer.StatusCode, len(body), time.Since(began))
	}
	for _, query := range []string{"status=99", "status=600", "status=x", "delay=2h", "delay=-1s", "bytes=-1", "bytes=999999999999"} {
		if answer, _ := send(t, request(t, http.MethodGet, s.URL+"/?"+query, nil)); answer.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: status %d", query, answer.StatusCode)
		}
	}
}

func TestPagesGreetTheVerifiedUserOnly(t *testing.T) {
	t.Parallel()
	now := time.Now()
	m := newMint(t)
	tk := goodToken(m.announce("k1"), now)
	tk.claims["name"] = "Ana <script>"
	assertion := tk.sign(t)
	for _, test := range []struct {
		name      string
		app       http.Handler
		path      string
		assertion string
		status    int
		want      []string
	}{
		{"echo", app.NewEcho(m.config(now)), "/", assertion, 200, []string{"Hello, Ana &lt;script&gt;", "dev/engineering", "us-east"}},
		{"echo, nobody", app.NewEcho(m.config(now)), "/", "", 200, []string{"whoever you are", "not verified: no X-Iapmesh"}},
		{"upload", app.NewEcho(m.config(now)), "/upload", assertion, 200, []string{`type="file"`}},
		{"billing", app.NewBilling(m.config(now)), "/", assertion, 200, []string{"ana@example.com", "dev/engineering", "€ 681.00", "us-east"}},
		{"billing, nobody", app.NewBilling(m.config(now)), "/", "", 401, []string{"does not know you"}},
		{"billing, forged", app.NewBilling(m.config(now)), "/", assertion[:len(assertion)-4] + "AAAA", 401, []string{"does not know you"}},
	} {
		r := request(t, http.MethodGet, serve(t, test.app).URL+test.path, nil)
		r.Header.Set("Accept", "text/html,*/*;q=0.8")
		r.Header.Set(app.RegionHeader, "us-east")
		r.Header.Set("X-Forwarded-Email", "root@example.com") // believed by nobody
		if test.assertion != "" {
			r.Header.Set(app.AssertionHeader, test.assertion)
		}
		answer, body := send(t, r)
		if answer.StatusCode != test.status || strings.Contains(body, "<script") || strings.Contains(body, "root@example.com") {
			t.Errorf("%s: %d %s", test.name, answer.StatusCode, body)
		}
		for _, want := range test.want {
			if !strings.Contains(body, want) {
				t.Errorf("%s: the page lacks %q:\n%s", test.name, want, body)
			}
		}
		if policy := answer.Header.Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") {
			t.Errorf("%s: policy %q", test.name, policy)
		}
	}
}

func TestBillingAsData(t *testing.T) {
	t.Parallel()
	now := time.Now()
	m := newMint(t)
	key := m.announce("k1")
	s := serve(t, app.NewBilling(m.config(now)))
	r := request(t, http.MethodGet, s.URL, nil)
	answer, body := send(t, r)
	if answer.StatusCode != http.StatusUnauthorized || answer.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("without assertion: %d %s", answer.StatusCode, body)
	}
	r.Header.Set(app.AssertionHeader, goodToken(key, now).sign(t))
	_, body = send(t, r)
	var invoice app.Invoice
	if err := json.Unmarshal([]byte(body), &invoice); err != nil || invoice.User != "ana@example.com" || invoice.Total != 68_100 ||
		len(invoice.Groups) != 1 || invoice.Groups[0] != "dev/engineering" {
		t.Errorf("invoice %s, error %v", body, err)
	}
}

func TestWebSocketReturnsMessages(t *testing.T) {
	t.Parallel()
	s := serve(t, app.NewEcho(app.Config{Origins: []string{"app.example.com"}}))
	dial := func(origin string) (*websocket.Conn, *http.Response, error) {
		header := http.Header{}
		if origin != "" {
			header.Set("Origin", origin)
		}
		return websocket.Dial(t.Context(), s.URL+"/ws", &websocket.DialOptions{HTTPHeader: header})
	}
	for _, origin := range []string{"", "https://echo.localhost:18443", "https://echo.localhost", "https://app.example.com", s.URL} {
		conn, _, err := dial(origin)
		if err != nil {
			t.Fatalf("origin %q: %v", origin, err)
		}
		for _, kind := range []websocket.MessageType{websocket.MessageText, websocket.MessageBinary} {
			sent := bytes.Repeat([]byte("x"), 10_000)
			if err := conn.Write(t.Context(), kind, sent); err != nil {
				t.Fatal(err)
			}
			got, message, err := conn.Read(t.Context())
			if err != nil || got != kind || !bytes.Equal(message, sent) {
				t.Errorf("origin %q: sent %v, got %v of %d bytes, error %v", origin, kind, got, len(message), err)
			}
		}
		if err := conn.Close(websocket.StatusNormalClosure, ""); err != nil && !errors.Is(err, context.DeadlineExceeded) { // it waits 5 s, which a busy machine may take
			t.Errorf("origin %q: close: %v", origin, err)
		}
	}
	for _, origin := range []string{"https://evil.example.com", "https://localhost.evil.com", "https://echo.localhost.evil.com"} {
		if _, answer, err := dial(origin); err == nil || answer.StatusCode != http.StatusForbidden {
			t.Errorf("origin %q: error %v", origin, err)
		}
	}
}

func TestEventsStream(t *testing.T) {
	t.Parallel()
	s := serve(t, app.NewEcho(app.Config{}))
	answer, body := send(t, request(t, http.MethodGet, s.URL+"/sse?interval=1ms&count=3", nil))
	if answer.Header.Get("Content-Type") != "text/event-stream" || strings.Count(body, "event: tick\n") != 3 ||
		!strings.Contains(body, "id: 3\nevent: tick\ndata: {\"n\":3,") || !strings.HasSuffix(body, "\n\n") {
		t.Errorf("events:\n%s", body)
	}
	// Each tick arrives when it is sent, not with the end, which never comes here.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := http.DefaultClient.Do(request(t, http.MethodGet, s.URL+"/sse?interval=5ms", nil).WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	lines := bufio.NewScanner(stream.Body)
	for n := 1; n <= 3; {
		if !lines.Scan() {
			t.Fatalf("the stream ended before tick %d: %v", n, lines.Err())
		}
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			var tick app.Tick
			if err := json.Unmarshal([]byte(data), &tick); err != nil || tick.N != n {
				t.Errorf("tick %d: %s, error %v", n, data, err)
			}
			n++
		}
	}
	for _, query := range []string{"interval=x", "count=-1", "interval=2h"} {
		if answer, _ := send(t, request(t, http.MethodGet, s.URL+"/sse?"+query, nil)); answer.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: status %d", query, answer.StatusCode)
		}
	}
}

func TestUploadIsReadAsItArrives(t *testing.T) {
	t.Parallel()
	s := serve(t, app.NewEcho(app.Config{}))
	body := bytes.Repeat([]byte("0123456789"), 50_000)
	sum := sha256.Sum256(body)

	_, answer := send(t, request(t, http.MethodPut, s.URL+"/upload", bytes.NewReader(body)))
	var last app.Upload
	if err := json.Unmarshal([]byte(answer), &last); err != nil || !last.Done || last.Bytes != 500_000 || last.SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("answer %s, error %v", answer, err)
	}

	// The second half is sent only once the application has told of the first.
	reader, writer := io.Pipe()
	defer writer.Close()
	written := make(chan error, 1)
	go func() { _, err := writer.Write(body[:250_000]); written <- err }()
	stream, err := http.DefaultClient.Do(request(t, http.MethodPost, s.URL+"/upload?progress=100000", reader))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	lines := json.NewDecoder(stream.Body)
	var first app.Upload
	if err := lines.Decode(&first); err != nil || first.Done || first.Bytes < 100_000 || first.Bytes > 250_000 {
		t.Fatalf("progress %+v, error %v", first, err)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	go func() { _, err := writer.Write(body[250_000:]); writer.Close(); written <- err }()
	for last = (app.Upload{}); !last.Done; {
		if err := lines.Decode(&last); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-written; err != nil || last.Bytes != 500_000 || last.SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("end %+v, error %v", last, err)
	}

	began := time.Now()
	send(t, request(t, http.MethodPost, s.URL+"/upload?rate=100000", bytes.NewReader(body[:20_000])))
	if took := time.Since(began); took < 80*time.Millisecond { // the first 10,000 bytes are free
		t.Errorf("20,000 bytes at 100,000/s took %v", took)
	}
}
