package nodetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing/iotest"
	"time"

	"github.com/iapmesh/iapmesh/internal/dev"
	"github.com/iapmesh/iapmesh/internal/dev/app"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node"
)

// Session is a user in a browser.
type Session struct {
	mesh    *Mesh
	User    string
	Subject string // <idp>/<subject>
	browser *dev.Browser

	mu      sync.Mutex
	answers map[string][]Answer // by region; guarded by mu
	starts  map[*Region]int     // which start of the node the browser's connections are from; guarded by mu
}

// Answer is what a request of the session came to.
type Answer struct {
	Request string // its id, as the trail has it
	Status  int
}

// Answers are those of a region, in their order: now and then one more than a test has asked for, where it had to be asked again.
func (s *Session) Answers(r *Region) []Answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.answers[r.Name])
}

func (s *Session) note(r *Region, resp *http.Response) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[r.Name] = append(s.answers[r.Name], Answer{resp.Header.Get("X-Request-Id"), resp.StatusCode})
}

// reconnect gives up the browser's connections to a node that was started anew since: that they are dead, a browser notices by using them.
func (s *Session) reconnect(r *Region) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if starts, used := s.starts[r]; used && starts != r.starts {
		s.browser.Client.CloseIdleConnections()
	}
	s.starts[r] = r.starts
}

func (m *Mesh) newSession(user string) *Session {
	return &Session{mesh: m, User: user, browser: m.world.browser(), answers: map[string][]Answer{}, starts: map[*Region]int{}}
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
	s.Subject = r.verified(s, echo).Claims.Subject
	return s
}

// verified is an answer of echo's with an assertion that it could verify. It fetches the mesh's keys within two seconds or not at all, and
// not again within one: so it is asked again where it says that it lacks a key.
func (r *Region) verified(s *Session, echo app.Echo) app.Echo {
	r.mesh.t.Helper()
	await(unhurried, func() bool {
		if echo.Verified || !strings.Contains(echo.Reason, "key set") {
			return true
		}
		echo = r.Serves(s, http.StatusOK)
		return false
	})
	if !echo.Verified {
		r.mesh.t.Fatalf("%s, by %s: the assertion does not verify: %s", s.User, r.Name, echo.Reason)
	}
	return echo
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
	s := m.newSession(user)
	s.reconnect(r)
	var resp *http.Response
	await(unhurried, func() bool {
		resp = r.browse("sign in as "+user, func(ctx context.Context) (*http.Response, error) {
			return s.browser.SignIn(ctx, r.URL(host, "/whoami"), user, m.world.password(user))
		})
		s.note(r, resp)
		return resp.StatusCode != http.StatusServiceUnavailable && !late(resp) // by which a node says that it cannot now, as where its view is old
	})
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		m.t.Fatalf("sign in as %s in %s: %s at %s: %.300s", user, r.Name, resp.Status, resp.Request.URL, body)
	}
	return s, decodeEcho(m, resp)
}

// browse lets a browser make its way to an answer, from the beginning again where a connection was lost.
func (r *Region) browse(what string, f func(context.Context) (*http.Response, error)) (resp *http.Response) {
	r.mesh.t.Helper()
	var err error
	await(unhurried, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		resp, err = f(ctx)
		return !lost(err)
	})
	r.mesh.must(what+" in "+r.Name, err)
	return resp
}

// lost reports whether a connection was lost, as where a server gives up on one whose first frame takes two seconds. A single answer that is
// cut off is another thing, and so is what the browser itself refuses.
func lost(err error) bool {
	return fault.Is(err, fault.Internal) && !strings.Contains(err.Error(), "stream error")
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

// Get makes a program's request with the session's cookies: it is told 401, and never sent to sign in. It is made again where a connection
// was lost, or this machine was too slow for it.
func (s *Session) Get(r *Region, host, path string) (resp *http.Response) {
	s.mesh.t.Helper()
	var err error
	await(unhurried, func() bool {
		resp, err = s.Try(r, host, path)
		return !lost(err) && (err != nil || !late(resp))
	})
	s.mesh.must("request "+r.URL(host, path), err)
	return resp
}

// late reports whether the node has given up on what it bounds by seconds: the disk, which keeps the decision's record, or the application,
// which always runs.
func late(resp *http.Response) bool {
	return slices.Contains([]string{"not_recorded", "upstream_unreachable", "upstream_timeout"}, resp.Header.Get("X-Iapmesh-Response"))
}

// Poll is Get while what the answer stands on is about to change: it returns 0 where the mesh has cut off what it had begun to answer.
func (s *Session) Poll(r *Region, host, path string) (status int) {
	s.mesh.t.Helper()
	resp, err := s.Try(r, host, path)
	if err != nil {
		return 0
	}
	return resp.StatusCode
}

// Try is Get where nobody may answer, and made once. The answer's body, as far as it came, is in memory.
func (s *Session) Try(r *Region, host, path string) (*http.Response, error) {
	s.mesh.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	resp, err := s.do(ctx, r, host, path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	whole := io.Reader(bytes.NewReader(body))
	if err != nil {
		whole = io.MultiReader(whole, iotest.ErrReader(err))
	}
	resp.Body = io.NopCloser(whole)
	return resp, nil
}

func (s *Session) do(ctx context.Context, r *Region, host, path string) (*http.Response, error) {
	s.mesh.t.Helper()
	s.reconnect(r)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL(host, path), nil)
	s.mesh.must("make a request", err)
	req.Header.Set("Accept", "application/json")
	resp, err := s.browser.Client.Do(req)
	if err == nil {
		s.note(r, resp)
	}
	return resp, err
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

// EventuallyServes is Serves for a session of a key that may be younger than the region's view: until that has come, it is answered 503.
func (r *Region) EventuallyServes(s *Session) (echo app.Echo) {
	r.mesh.t.Helper()
	r.mesh.Eventually(r.Name+" serves "+s.User, func() bool {
		resp := s.Get(r, EchoHost, "/whoami")
		switch resp.StatusCode {
		case http.StatusOK:
			echo = decodeEcho(r.mesh, resp)
		case http.StatusServiceUnavailable:
			return false
		default:
			r.mesh.t.Fatalf("%s answers %s's request with %s, want 200", r.Name, s.User, resp.Status)
		}
		return true
	})
	return echo
}

// Verifies demands that the region serves the session, and that echo can verify what it says of the user.
func (r *Region) Verifies(s *Session) app.Echo {
	r.mesh.t.Helper()
	return r.verified(s, r.Serves(s, http.StatusOK))
}

// EventuallyRefuses waits until the region refuses the session.
func (r *Region) EventuallyRefuses(s *Session) {
	r.mesh.t.Helper()
	r.mesh.Eventually(r.Name+" refuses "+s.User, func() bool {
		return s.Poll(r, EchoHost, "/whoami") == http.StatusUnauthorized
	})
}

// AwaitRefusal waits until a node that was just started answers that it serves nobody, or ends because it may never again. It never serves
// before.
func (r *Region) AwaitRefusal(s *Session) {
	r.mesh.t.Helper()
	r.mesh.Eventually(r.Name+" answers that it serves nobody", func() bool {
		over := !r.Running()
		resp, err := s.Try(r, EchoHost, "/whoami")
		if err == nil && resp.StatusCode == http.StatusOK {
			r.mesh.t.Fatalf("%s serves", r.Name)
		}
		var turnedAway *node.TurnedAwayError
		return err == nil && resp.StatusCode == http.StatusMisdirectedRequest || over && errors.As(r.ended, &turnedAway)
	})
}

// Stream opens echo's event stream and returns a channel that closes when it ends: by the mesh's doing, for the browser lets it go on until
// the test ends.
func (r *Region) Stream(s *Session) <-chan struct{} {
	r.mesh.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	r.mesh.t.Cleanup(cancel)
	overdue := time.AfterFunc(Patience, cancel) // until the first event alone
	var resp *http.Response
	await(unhurried, func() bool {
		var err error
		resp, err = s.do(ctx, r, EchoHost, "/sse?interval=20ms")
		if lost(err) && ctx.Err() == nil {
			return false
		}
		r.mesh.must("open the event stream", err)
		if late(resp) {
			resp.Body.Close()
		}
		return !late(resp)
	})
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		r.mesh.t.Fatalf("%s: event stream: %s", r.Name, resp.Status)
	}
	_, err := io.ReadFull(resp.Body, make([]byte, 1))
	r.mesh.must("read the first event", err)
	if !overdue.Stop() {
		r.mesh.t.Fatalf("%s: event stream: no event within %s", r.Name, Patience)
	}
	go func() {
		defer close(ended)
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, resp.Body) // however it ends
	}()
	r.mesh.t.Cleanup(func() {
		cancel()
		<-ended
	})
	return ended
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
