package e2e_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/iapmesh/iapmesh/internal/dev"
	"github.com/iapmesh/iapmesh/internal/dev/app"
	"github.com/iapmesh/iapmesh/internal/dev/mesh"
)

const requestWithin = time.Minute

// region is one region's node as users reach it.
type region struct {
	mesh.Region
	mesh *devMesh
}

// url is a page of a host, on this region's port.
func (r region) url(host, path string) string {
	_, port, err := net.SplitHostPort(r.Proxy)
	if err != nil {
		r.mesh.t.Fatal(err)
	}
	return "https://" + host + ":" + port + path
}

// person is somebody with a browser.
type person struct {
	dev.User
	t       testing.TB
	mesh    *devMesh
	browser *dev.Browser
	api     *http.Client // the browser's cookies, no redirects
	streams *http.Client // the same over HTTP/1.1, as WebSockets want

	mu      sync.Mutex
	answers []string // ids of all requests that were answered by a decision
}

// person gives a user a new browser, without cookies.
func (m *devMesh) person(name string) *person {
	m.t.Helper()
	p := &person{User: m.user(name), t: m.t, mesh: m, browser: dev.NewBrowser(dev.Config{CA: m.roots, Timeout: requestWithin})}
	p.api = dev.Client(dev.Config{CA: m.roots, Timeout: requestWithin, NoRedirects: true})
	p.streams = dev.Client(dev.Config{CA: m.roots, NoHTTP2: true, NoRedirects: true})
	p.api.Jar, p.streams.Jar = p.browser.Client.Jar, p.browser.Client.Jar
	m.t.Cleanup(func() {
		for _, c := range []*http.Client{p.browser.Client, p.api, p.streams} {
			c.CloseIdleConnections()
		}
	})
	return p
}

// answer is what came back, read whole.
type answer struct {
	Status int
	URL    string // where it was found
	ID     string // of the request
	Body   []byte
}

func read(r *http.Response) (answer, error) {
	body, err := io.ReadAll(r.Body)
	return answer{Status: r.StatusCode, URL: r.Request.URL.String(), ID: r.Header.Get("X-Request-Id"), Body: body}, err
}

// signsIn opens a page of a host in a region as a browser does, filling in the form if one is shown.
func (p *person) signsIn(in region, host string) answer {
	p.t.Helper()
	page, err := p.browser.SignIn(p.t.Context(), in.url(host, "/"), p.Username, p.Password)
	if err != nil {
		p.t.Fatal(err)
	}
	a, err := read(page)
	if err != nil {
		p.t.Fatal(err)
	}
	return a
}

// tries asks for a path as a program with the browser's cookies does.
func (p *person) tries(in region, host, path string) (answer, error) {
	r, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, in.url(host, path), nil)
	if err != nil {
		return answer{}, err
	}
	r.Header.Set("Accept", "application/json")
	response, err := p.api.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	a, err := read(response)
	if err == nil && (a.Status == http.StatusOK || a.Status == http.StatusForbidden) {
		p.mu.Lock()
		p.answers = append(p.answers, a.ID)
		p.mu.Unlock()
	}
	return a, err
}

func (p *person) answered() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.answers)
}

// asks is tries, and must get an answer of that status.
func (p *person) asks(in region, host, path string, want int) answer {
	p.t.Helper()
	a, err := p.tries(in, host, path)
	if err != nil {
		p.t.Fatal(err)
	}
	if a.Status != want {
		p.t.Fatalf("%s asks %s%s in %s: status %d, want %d: %s", p.Username, host, path, in.Name, a.Status, want, tail(string(a.Body), 20))
	}
	return a
}

// isServed asks echo, which must see this person by a verified assertion, from this region.
func (p *person) isServed(in region) app.Echo {
	p.t.Helper()
	a := p.asks(in, p.mesh.Hosts.Echo, "/hello", http.StatusOK)
	var e app.Echo
	if err := json.Unmarshal(a.Body, &e); err != nil {
		p.t.Fatalf("echo answers %s: %v", a.Body, err)
	}
	switch {
	case !e.Verified:
		p.t.Fatalf("echo could not verify %s in %s: %s", p.Username, in.Name, e.Reason)
	case e.Claims.Email != p.Username:
		p.t.Fatalf("echo sees %s in %s, want %s", e.Claims.Email, in.Name, p.Username)
	case e.ServedBy != in.Name:
		p.t.Fatalf("echo was served by %q, want %q", e.ServedBy, in.Name)
	}
	for name, values := range e.Headers {
		if strings.Contains(strings.Join(values, " "), "__Host-iapmesh") {
			p.t.Fatalf("echo got our cookie in %s", name)
		}
	}
	return e
}

// sessionKID is the id of the key that signed the browser's session at echo.
func (p *person) sessionKID(in region) string {
	p.t.Helper()
	c, ok := p.browser.Cookie(in.url(p.mesh.Hosts.Echo, "/"), "__Host-iapmesh_session")
	if !ok {
		p.t.Fatalf("%s has no session cookie", p.Username)
	}
	return kidOf(p.t, c.Value)
}

// assertionKID is the id of the key that signed what echo was told.
func assertionKID(t *testing.T, e app.Echo) string {
	t.Helper()
	return kidOf(t, e.Headers.Get(app.AssertionHeader))
}

func kidOf(t testing.TB, token string) string {
	t.Helper()
	head, _, _ := strings.Cut(token, ".")
	data, err := base64.RawURLEncoding.DecodeString(head)
	if err != nil {
		t.Fatalf("token: %v", err)
	}
	var header struct {
		KID string `json:"kid"`
	}
	if err := json.Unmarshal(data, &header); err != nil || header.KID == "" {
		t.Fatalf("token header %s: %v", data, err)
	}
	return header.KID
}

// stream is something that stays open.
type stream struct {
	name  string
	ended chan struct{} // closed when it ends
	at    time.Time     // when; after ended
	err   error         // how
}

func (s *stream) end(err error) {
	s.at, s.err = time.Now(), err
	close(s.ended)
}

func (s *stream) isOpen(t *testing.T) {
	t.Helper()
	select {
	case <-s.ended:
		t.Fatalf("%s has ended: %v", s.name, s.err)
	default:
	}
}

// opensWebSocket opens one at echo, proves that it echoes, and watches it.
func (p *person) opensWebSocket(in region) *stream {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), requestWithin)
	defer cancel()
	target := in.url(p.mesh.Hosts.Echo, "/ws")
	conn, _, err := websocket.Dial(ctx, target, &websocket.DialOptions{
		HTTPClient: p.streams, HTTPHeader: http.Header{"Origin": {in.url(p.mesh.Hosts.Echo, "")}},
	})
	if err != nil {
		p.t.Fatalf("WebSocket in %s: %v", in.Name, err)
	}
	p.t.Cleanup(func() { _ = conn.CloseNow() })
	if err := conn.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
		p.t.Fatalf("WebSocket in %s: %v", in.Name, err)
	}
	if _, got, err := conn.Read(ctx); err != nil || string(got) != "hello" {
		p.t.Fatalf("WebSocket in %s: %q, %v", in.Name, got, err)
	}
	s := &stream{name: "the WebSocket in " + in.Name, ended: make(chan struct{})}
	go func() {
		_, _, err := conn.Read(context.WithoutCancel(p.t.Context()))
		s.end(err)
	}()
	return s
}

// opensEvents opens echo's server-sent events, waits for the first, and watches the rest.
func (p *person) opensEvents(in region) *stream {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(p.t.Context()))
	p.t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, in.url(p.mesh.Hosts.Echo, "/sse?interval=100ms"), nil)
	if err != nil {
		p.t.Fatal(err)
	}
	r.Header.Set("Accept", "text/event-stream")
	response, err := p.streams.Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	if response.StatusCode != http.StatusOK {
		response.Body.Close()
		p.t.Fatalf("events in %s: status %d", in.Name, response.StatusCode)
	}
	lines := bufio.NewScanner(response.Body)
	if !lines.Scan() {
		p.t.Fatalf("events in %s: %v", in.Name, lines.Err())
	}
	s := &stream{name: "the events in " + in.Name, ended: make(chan struct{})}
	go func() {
		defer response.Body.Close()
		for lines.Scan() {
		}
		s.end(fmt.Errorf("end of stream: %w", errOr(lines.Err(), io.EOF)))
	}()
	return s
}

// uploads sends a body without end to echo, waits until echo says that it reads, and watches.
func (p *person) uploads(in region) *stream {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(p.t.Context()))
	p.t.Cleanup(cancel)
	body, send := io.Pipe()
	p.t.Cleanup(func() { _ = send.Close() })
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, in.url(p.mesh.Hosts.Echo, "/upload?progress=1000&rate=200000"), body)
	if err != nil {
		p.t.Fatal(err)
	}
	go func() {
		for piece := make([]byte, 4000); ; {
			if _, err := send.Write(piece); err != nil { // the client has stopped reading it
				return
			}
		}
	}()
	r.Header.Set("Accept", "application/json")
	response, err := p.api.Do(r) // HTTP/2: the answer begins while the body goes on
	if err != nil {
		p.t.Fatalf("upload in %s: %v", in.Name, err)
	}
	if response.StatusCode != http.StatusOK {
		response.Body.Close()
		p.t.Fatalf("upload in %s: status %d", in.Name, response.StatusCode)
	}
	lines := bufio.NewScanner(response.Body)
	if !lines.Scan() {
		p.t.Fatalf("upload in %s: %v", in.Name, lines.Err())
	}
	s := &stream{name: "the upload in " + in.Name, ended: make(chan struct{})}
	go func() {
		defer response.Body.Close()
		for lines.Scan() {
		}
		s.end(fmt.Errorf("end of answer: %w", errOr(lines.Err(), io.EOF)))
	}()
	return s
}

func errOr(err, otherwise error) error {
	if err == nil {
		return otherwise
	}
	return err
}
