package nodetest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/iapmesh/iapmesh/internal/dev"
	"github.com/iapmesh/iapmesh/internal/dev/app"
)

// Session is a user in a browser.
type Session struct {
	mesh    *Mesh
	User    string
	Subject string // <idp>/<subject>
	browser *dev.Browser
}

// URL is a page of a host, by this region's own port.
func (r *Region) URL(host, path string) string {
	_, port, err := net.SplitHostPort(r.config.Listen.Proxy)
	r.mesh.must("proxy address", err)
	return "https://" + host + ":" + port + path
}

// SignIn signs a user in by the browser, at echo.
func (r *Region) SignIn(user string) *Session {
	r.mesh.t.Helper()
	s, echo := r.signIn(user, EchoHost)
	if !echo.Verified {
		r.mesh.t.Fatalf("sign in as %s in %s: the assertion does not verify: %s", user, r.Name, echo.Reason)
	}
	s.Subject = echo.Claims.Subject
	return s
}

// SignInAt signs a user in by the browser, at a host of the caller's choice.
func (r *Region) SignInAt(user, host string) *Session {
	r.mesh.t.Helper()
	s, _ := r.signIn(user, host)
	return s
}

func (r *Region) signIn(user, host string) (*Session, app.Echo) {
	m := r.mesh
	m.t.Helper()
	s := &Session{mesh: m, User: user, browser: m.world.browser()}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	resp, err := s.browser.SignIn(ctx, r.URL(host, "/whoami"), user, m.world.password(user))
	m.must("sign in as "+user+" in "+r.Name, err)
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		m.t.Fatalf("sign in as %s in %s: %s at %s: %.300s", user, r.Name, resp.Status, resp.Request.URL, body)
	}
	return s, decodeEcho(m, resp)
}

func decodeEcho(m *Mesh, resp *http.Response) app.Echo {
	m.t.Helper()
	body, err := io.ReadAll(resp.Body)
	m.must("read echo's answer", err)
	var echo app.Echo
	if err := json.Unmarshal(body, &echo); err != nil {
		m.t.Fatalf("echo's answer (%s, at %s): %v: %.300s", resp.Status, resp.Request.URL, err, body)
	}
	return echo
}

// Get makes a program's request with the session's cookies: it is told 401, and never sent to sign in.
func (s *Session) Get(r *Region, host, path string) *http.Response {
	s.mesh.t.Helper()
	resp, err := s.Try(r, host, path)
	s.mesh.must("request "+r.URL(host, path), err)
	return resp
}

// Try is Get where nobody may answer.
func (s *Session) Try(r *Region, host, path string) (*http.Response, error) {
	m := s.mesh
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	m.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL(host, path), nil)
	m.must("make a request", err)
	req.Header.Set("Accept", "application/json")
	resp, err := s.browser.Client.Do(req)
	if err != nil {
		return nil, err
	}
	m.t.Cleanup(func() { resp.Body.Close() })
	return resp, nil
}

// Serves demands that the region answers the session's request to echo with a status.
func (r *Region) Serves(s *Session, status int) app.Echo {
	r.mesh.t.Helper()
	resp := s.Get(r, EchoHost, "/whoami")
	if resp.StatusCode != status {
		body, _ := io.ReadAll(resp.Body)
		r.mesh.t.Fatalf("%s answers %s's request with %s, want %d: %.300s", r.Name, s.User, resp.Status, status, body)
	}
	if status != http.StatusOK {
		return app.Echo{}
	}
	return decodeEcho(r.mesh, resp)
}

// EventuallyRefuses waits until the region refuses the session.
func (r *Region) EventuallyRefuses(s *Session) {
	r.mesh.t.Helper()
	r.mesh.Eventually(r.Name+" refuses "+s.User, func() bool {
		return s.Get(r, EchoHost, "/whoami").StatusCode == http.StatusUnauthorized
	})
}

// AwaitRefusal waits until a node that was just started answers that it serves nobody. It never serves before.
func (r *Region) AwaitRefusal(s *Session) {
	r.mesh.t.Helper()
	r.mesh.Eventually(r.Name+" answers that it serves nobody", func() bool {
		resp, err := s.Try(r, EchoHost, "/whoami")
		if err == nil && resp.StatusCode == http.StatusOK {
			r.mesh.t.Fatalf("%s serves", r.Name)
		}
		return err == nil && resp.StatusCode == http.StatusMisdirectedRequest
	})
}

// Stream opens echo's event stream and returns a channel that closes when it ends.
func (r *Region) Stream(s *Session) <-chan struct{} {
	r.mesh.t.Helper()
	resp := s.Get(r, EchoHost, "/sse?interval=20ms")
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		r.mesh.t.Fatalf("%s: event stream: %s", r.Name, resp.Status)
	}
	first := make([]byte, 1)
	_, err := io.ReadFull(resp.Body, first)
	r.mesh.must("read the first event", err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, resp.Body) // however it ends
	}()
	return ended
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
