package replica

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// ServerConfig is all that a Server needs. Reader, MeshID and Scope are required.
type ServerConfig struct {
	Reader store.Reader
	MeshID string
	// Scope says which keys a node may hold, by a state that is not older than at: it waits for one if it must. version names
	// that set: while it stays the same, admit answers the same. When it changes, the follower gets a whole state anew. It is
	// asked at each change.
	Scope func(ctx context.Context, node string, at store.Revision) (version string, admit func(key string) bool, err error)
	// Recheck, if not nil, ends a stream with its error. It is asked at each change and at each ping.
	Recheck func(node string) error
	// Own, if not nil, names the key of a node's own record. A stream that Recheck ends as Denied still carries the changes up to the
	// one of that key, as far as it comes within a second: so that a node that is revoked hears it, and stops.
	Own func(node string) string
	// Age is how old the Reader's state is at most; false if that is not known, as it is without Age.
	Age func() (time.Duration, bool)
	// Leader is who leads, as far as this node knows.
	Leader     func() (id, address string)
	Logger     *slog.Logger
	Registerer prometheus.Registerer

	farewell time.Duration // for tests: how long a node that may not follow any more is told why; 1 s
}

// Server streams the state to followers.
type Server struct {
	cfg     ServerConfig
	metrics *serverMetrics

	mu      sync.Mutex
	streams map[string]*outgoing // by node: one each, the newest
}

// NewServer makes a Server.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Reader == nil || cfg.MeshID == "" || cfg.Scope == nil {
		return nil, fault.New(fault.Invalid, "replica server: Reader, MeshID and Scope are required")
	}
	if cfg.Recheck == nil {
		cfg.Recheck = func(string) error { return nil }
	}
	if cfg.Age == nil {
		cfg.Age = func() (time.Duration, bool) { return 0, false }
	}
	if cfg.Leader == nil {
		cfg.Leader = func() (string, string) { return "", "" }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.farewell = cmp.Or(cfg.farewell, time.Second)
	m, err := newServerMetrics(cfg.Registerer)
	if err != nil {
		m.unregister()
		return nil, err
	}
	return &Server{cfg: cfg, metrics: m, streams: map[string]*outgoing{}}, nil
}

type followStream = grpc.BidiStreamingServer[iapmeshv1.FollowRequest, iapmeshv1.FollowResponse]

// outgoing is the stream to one follower. Changes and pongs share it.
type outgoing struct {
	*Server
	node   string
	stream followStream
	ctx    context.Context
	stop   context.CancelCauseFunc

	mu    sync.Mutex // held while a message is sent
	ended bool       // nothing may be sent any more; guarded by mu
}

// Follow serves one follower until its stream ends; node is who it is by its certificate. A node's new stream ends its older one.
func (s *Server) Follow(node string, stream grpc.BidiStreamingServer[iapmeshv1.FollowRequest, iapmeshv1.FollowResponse]) error {
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	start := m.GetStart()
	switch {
	case start == nil:
		return fault.New(fault.Invalid, "follow: the first message is no start")
	case start.GetMeshId() != s.cfg.MeshID:
		return fault.New(fault.Invalid, "follow: this is mesh %.80q, not %.80q", s.cfg.MeshID, start.GetMeshId())
	}
	ctx, stop := context.WithCancelCause(stream.Context())
	defer stop(nil)
	o := &outgoing{Server: s, node: node, stream: stream, ctx: ctx, stop: stop}
	s.enter(o)
	defer s.leave(o)
	go func() { stop(o.answer()) }() // ends with the stream, at the latest when this handler has returned
	err = o.follow(start)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if errors.Is(err, io.EOF) { // the follower said that it has done
		return nil
	}
	return err
}

func (s *Server) enter(o *outgoing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.streams[o.node]; old != nil {
		old.stop(fault.New(fault.Unavailable, "follow: the node follows by a newer stream"))
	}
	s.streams[o.node] = o
	s.metrics.followers.Set(float64(len(s.streams)))
}

func (s *Server) leave(o *outgoing) {
	s.mu.Lock()
	if s.streams[o.node] == o {
		delete(s.streams, o.node)
	}
	s.metrics.followers.Set(float64(len(s.streams)))
	s.mu.Unlock()
	o.mu.Lock()
	o.ended = true
	o.mu.Unlock()
}

// follow sends the state. At any time the follower has what one version of its scope admits of one state.
func (o *outgoing) follow(start *iapmeshv1.FollowStart) error {
	if err := o.cfg.Recheck(o.node); err != nil {
		return err
	}
	after, scope := revisionOf(start.GetAfter()), start.GetScope()
	version, admit, err := o.cfg.Scope(o.ctx, o.node, after)
	if err != nil {
		return err
	}
	if version != scope {
		after, admit = store.Revision{}, nil
	}
	for {
		after, scope, err = o.until(after, scope, admit)
		if admit = nil; err != nil {
			return err
		}
	}
}

// until sends changes until one comes under another scope; then it returns from where to begin anew. The follower holds what held
// admits; nil: it holds nothing yet.
func (o *outgoing) until(after store.Revision, scope string, held func(string) bool) (store.Revision, string, error) {
	for c, err := range o.cfg.Reader.Watch(o.ctx, after) {
		if err != nil {
			return after, scope, err
		}
		if denied := o.cfg.Recheck(o.node); denied != nil {
			if !o.farewell(c, denied, held) {
				return after, scope, denied
			}
			if err := o.change(c, scope, held); err != nil {
				return after, scope, err
			}
			if o.own(c) {
				return after, scope, denied
			}
			continue
		}
		version, admit, err := o.cfg.Scope(o.ctx, o.node, c.Revision)
		if err != nil {
			return after, scope, err
		}
		held = admit
		if c.Reset {
			scope = version
			o.metrics.resets.Inc()
		} else if version != scope {
			return store.Revision{}, scope, nil
		} else {
			o.metrics.sent.Inc()
		}
		if err := o.change(c, scope, admit); err != nil {
			return after, scope, err
		}
	}
	return after, scope, fault.New(fault.Unavailable, "follow: the state ended")
}

// farewell reports whether a change still goes to a node that may not follow any more: what it may hold does not grow by it.
func (o *outgoing) farewell(c store.Change, denied error, held func(string) bool) bool {
	return o.cfg.Own != nil && held != nil && !c.Reset && fault.Is(denied, fault.Denied)
}

// own reports whether a change is to the node's own record.
func (o *outgoing) own(c store.Change) bool {
	return slices.ContainsFunc(c.Entries, func(e store.Entry) bool { return e.Key == o.cfg.Own(o.node) })
}

func (o *outgoing) change(c store.Change, scope string, admit func(string) bool) error {
	admitted := make([]store.Entry, 0, len(c.Entries))
	for _, e := range c.Entries {
		if admit(e.Key) {
			admitted = append(admitted, e)
		}
	}
	c.Entries = admitted
	for part := range (update{Change: c, scope: scope}).parts() {
		if err := o.send(&iapmeshv1.FollowResponse{Message: &iapmeshv1.FollowResponse_Change{Change: part}}); err != nil {
			return err
		}
	}
	return nil
}

func (o *outgoing) send(m *iapmeshv1.FollowResponse) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := context.Cause(o.ctx); o.ended || err != nil {
		return err
	}
	return o.stream.Send(m)
}

// answer answers pings until the stream ends, one after another: who does not read answers gets none.
func (o *outgoing) answer() error {
	for {
		m, err := o.stream.Recv()
		if err != nil {
			return err
		}
		ping := m.GetPing()
		if ping == nil {
			return fault.New(fault.Invalid, "follow: a second start")
		}
		if err := o.cfg.Recheck(o.node); err != nil {
			if o.cfg.Own != nil && fault.Is(err, fault.Denied) {
				select { // the change that says so is on its way
				case <-o.ctx.Done():
				case <-time.After(o.cfg.farewell):
				}
			}
			return err
		}
		// The age first: the revision may then be later than the one that it speaks of, never earlier.
		age, known := o.cfg.Age()
		_, at, err := o.cfg.Reader.List(o.ctx, "\x00") // for the revision alone
		if err != nil {
			return err
		}
		pong := &iapmeshv1.Pong{Nonce: ping.GetNonce(), Revision: revisionProto(at), Stale: !known}
		if known {
			pong.AgeMs = uint64(max(0, (age+time.Millisecond-1)/time.Millisecond))
		}
		pong.LeaderId, pong.LeaderAddress = o.cfg.Leader()
		if err := o.send(&iapmeshv1.FollowResponse{Message: &iapmeshv1.FollowResponse_Pong{Pong: pong}}); err != nil {
			return err
		}
	}
}
