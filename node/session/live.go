package session

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/state"
)

// Why something open is ended, beside ErrExpired, ErrRevoked, ErrInvalid and what Entry.Decide returns: the context's cause.
var (
	ErrRouteGone = fault.New(fault.NotFound, "the route is gone")
	ErrNodeEnded = fault.New(fault.Unavailable, "this node may no longer serve")
)

// Entry is an open request, stream or tunnel, and what let it through.
type Entry struct {
	View    *state.View     // by which it was let through
	Session *Session        // nil: no user, as for a service
	Route   *resource.Route // of View
	Stream  bool            // a WebSocket, gRPC stream or tunnel: counted apart

	// Decide decides again; an error ends the entry, and is the cause. It is called when the configuration has changed, and each
	// minute, because conditions on time change without a view. Nil: there is nothing to decide. It must be quick and safe for
	// concurrent use.
	Decide func(*state.View) error
}

// LiveConfig is that of Live.
type LiveConfig struct {
	Node       string                // id of this node: if it is no longer trusted, all ends; empty: not looked at
	Redecide   time.Duration         // default a minute
	Now        func() time.Time      // default time.Now
	Registerer prometheus.Registerer // nil: no metrics
}

const (
	liveShards    = 32
	sweepEach     = time.Second
	redecideEach  = time.Minute
	kindOfRequest = "request"
	kindOfStream  = "stream"
)

// Live is the set of all that is open. Register is for every request; Recheck for each view; Run for what ends by time alone.
type Live struct {
	cfg      LiveConfig
	metrics  *liveMetrics
	requests prometheus.Gauge
	streams  prometheus.Gauge
	latest   atomic.Pointer[state.View]
	size     atomic.Int64 // at the last snapshot
	shards   [liveShards]shard
}

// shard is a part of the set, a ring around its own first.
type shard struct {
	mu   sync.Mutex
	ring openEntry
}

// openEntry is an entry in the ring of its shard; prev and next are guarded by the shard's mu.
type openEntry struct {
	Entry
	prev, next *openEntry
	cancel     context.CancelCauseFunc
	ended      atomic.Bool
	released   atomic.Bool
	decided    atomic.Pointer[resource.Configuration] // by which Decide last said yes
}

// NewLive makes a Live.
func NewLive(cfg LiveConfig) *Live {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Redecide <= 0 {
		cfg.Redecide = redecideEach
	}
	l := &Live{cfg: cfg, metrics: newLiveMetrics(cfg.Registerer)}
	l.requests, l.streams = l.metrics.open.WithLabelValues(kindOfRequest), l.metrics.open.WithLabelValues(kindOfStream)
	for i := range l.shards {
		first := &l.shards[i].ring
		first.prev, first.next = first, first
	}
	return l
}

// Register adds an entry, and returns a context that ends, with its cause, once the entry no longer holds. Call release when it
// is over. If a newer view came between the entry's and now, the entry is checked against it at once: none slips through.
func (l *Live) Register(ctx context.Context, e Entry) (_ context.Context, release func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	o := &openEntry{Entry: e, cancel: cancel}
	o.decided.Store(e.View.Config)
	gauge := l.requests
	if e.Stream {
		gauge = l.streams
	}
	s := &l.shards[rand.Uint32N(liveShards)] //nolint:gosec // it spreads load
	s.mu.Lock()
	o.prev, o.next = s.ring.prev, &s.ring
	o.prev.next, s.ring.prev = o, o
	s.mu.Unlock()
	gauge.Inc()
	// Recheck stores the view before it walks the shards: either it meets o, or its view is seen here.
	// Two views of one revision differ where this node was told what it could not follow: the latest counts.
	if v := l.latest.Load(); v != nil && v != e.View && !v.Revision.Before(e.View.Revision) {
		if l.checkStanding(o, l.checker(v)) && e.Decide != nil && e.View.Config != v.Config {
			l.decide(o, v)
		}
	}
	return ctx, func() {
		if o.released.Swap(true) {
			return
		}
		s.mu.Lock()
		o.prev.next, o.next.prev = o.next, o.prev
		s.mu.Unlock()
		gauge.Dec()
		cancel(nil)
	}
}

// Recheck ends what no longer holds in the view: sessions, nodes and routes first, then, where the configuration has changed,
// decisions. It is state.Source's to call, with each view.
func (l *Live) Recheck(view *state.View) {
	l.latest.Store(view)
	c := l.checker(view)
	var undecided []*openEntry
	for _, o := range l.snapshot() {
		if l.checkStanding(o, c) && o.Decide != nil && o.decided.Load() != view.Config {
			undecided = append(undecided, o)
		}
	}
	for _, o := range undecided {
		l.decide(o, view)
	}
}

// checker is one view's answers, remembered: many entries share a signing key.
type checker struct {
	view      *state.View
	nodeEnded bool
	keys      map[string]*standingOf
}

type standingOf struct {
	node *keyring.Node
	err  error
}

func (l *Live) checker(view *state.View) *checker {
	c := &checker{view: view, keys: map[string]*standingOf{}}
	if l.cfg.Node != "" {
		n := view.Keyring.Nodes[l.cfg.Node]
		c.nodeEnded = n == nil || !n.Trusted()
	}
	return c
}

// checkStanding reports whether the entry is still to be decided on.
func (l *Live) checkStanding(o *openEntry, c *checker) bool {
	if o.ended.Load() || c.view.Revision.Before(o.View.Revision) { // let through by a newer view than the one that is gone through
		return false
	}
	if err := c.standing(o); err != nil {
		l.end(o, err)
		return false
	}
	return true
}

func (c *checker) standing(o *openEntry) error {
	if c.nodeEnded {
		return ErrNodeEnded
	}
	route := o.Route
	if c.view.Config != o.View.Config {
		if route = c.view.Config.Route(o.Route.Name); route == nil {
			return ErrRouteGone
		}
	}
	if o.Session == nil {
		return nil
	}
	if err := unrevoked(c.view, o.Session); err != nil {
		return err
	}
	at := c.standingOf(o.Session.KID)
	if at.err != nil {
		return at.err
	}
	if err := inTime(at.node, o.Session.IssuedAt); err != nil {
		return err
	}
	switch {
	case !c.view.Selects(at.node, route):
		return invalid("minting node %s does not speak for route %s", at.node.ID, route.Name)
	case !route.Takes(o.Session.Identity.Provider()):
		return &ProviderError{o.Session, route.Name}
	}
	return nil
}

func (c *checker) standingOf(kid string) *standingOf {
	at := c.keys[kid]
	if at == nil {
		at = &standingOf{}
		_, at.node, at.err = standing(c.view, kid, nil)
		c.keys[kid] = at
	}
	return at
}

func (l *Live) decide(o *openEntry, view *state.View) {
	if err := o.Decide(view); err != nil {
		l.end(o, fmt.Errorf("decide again: %w", err))
		return
	}
	o.decided.Store(view.Config)
}

// end cancels once; the entry stays until its owner releases it.
func (l *Live) end(o *openEntry, cause error) {
	if o.ended.Swap(true) {
		return
	}
	l.metrics.ended.WithLabelValues(endReason(cause)).Inc()
	o.cancel(cause)
}

func endReason(err error) string {
	switch {
	case errors.Is(err, ErrRouteGone):
		return "route_gone"
	case errors.Is(err, ErrNodeEnded):
		return "node"
	case fault.Is(err, fault.Unauthenticated), errors.As(err, new(*ProviderError)):
		return reason(err)
	}
	return "decision"
}

// snapshot is every entry that has not been ended.
func (l *Live) snapshot() []*openEntry {
	all := make([]*openEntry, 0, l.size.Load()+64)
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		for o := s.ring.next; o != &s.ring; o = o.next {
			if !o.ended.Load() {
				all = append(all, o)
			}
		}
		s.mu.Unlock()
	}
	l.size.Store(int64(len(all)))
	return all
}

// Run ends entries whose session has expired, within a second, and decides again, until ctx ends.
func (l *Live) Run(ctx context.Context) error {
	sweep, redecide := time.NewTicker(sweepEach), time.NewTicker(l.cfg.Redecide)
	defer sweep.Stop()
	defer redecide.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-sweep.C:
			l.sweep()
		case <-redecide.C:
			l.redecide(ctx)
		}
	}
}

func (l *Live) sweep() {
	now := l.cfg.Now()
	for _, o := range l.snapshot() {
		if o.Session != nil && !now.Before(o.Session.Expires.Add(keyring.Skew)) {
			l.end(o, ErrExpired)
		}
	}
}

func (l *Live) redecide(ctx context.Context) {
	for _, o := range l.snapshot() {
		view := l.latest.Load()
		if view == nil || view.Revision.Before(o.View.Revision) {
			view = o.View
		}
		if o.Decide != nil && ctx.Err() == nil {
			l.decide(o, view)
		}
	}
}

// Stats are what a node reports.
type Stats struct {
	Sessions int // distinct ones with something open, or in recent
	Requests int
	Streams  int
}

// Stats counts what is open. recent are further session ids to count, such as Verifier.Recent's.
func (l *Live) Stats(recent iter.Seq[string]) Stats {
	var st Stats
	distinct := map[string]bool{}
	for _, o := range l.snapshot() {
		if o.Stream {
			st.Streams++
		} else {
			st.Requests++
		}
		if o.Session != nil {
			distinct[o.Session.ID] = true
		}
	}
	if recent != nil {
		for id := range recent {
			distinct[id] = true
		}
	}
	st.Sessions = len(distinct)
	return st
}
