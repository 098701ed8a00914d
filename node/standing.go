package node

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/cluster/enroll"
	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// TurnedAwayError is why a node ends by itself: the mesh will never trust it again.
type TurnedAwayError struct {
	NodeID string
	State  keyring.NodeState // revoked or departed
	Reason string
	Since  time.Time
}

func (e *TurnedAwayError) Error() string {
	why := ""
	if e.Reason != "" {
		why = ": " + e.Reason
	}
	what := "was revoked"
	if e.State == keyring.NodeDeparted {
		what = "has departed from the mesh"
	}
	return fmt.Sprintf("node %s %s at %s%s; it ends, and cannot come back: join anew with another data_dir and a key", e.NodeID, what, e.Since.UTC().Format(time.RFC3339), why)
}

// Unwrap gives the kind.
func (e *TurnedAwayError) Unwrap() error { return fault.New(fault.Denied, "turned away") }

// turnedAway is the error for a node in that state; nil where the node may come back: a quarantined one is released, a lapsed one
// proves its key.
func turnedAway(id string, s keyring.NodeState, reason string, since time.Time) error {
	if s == keyring.NodeRevoked || s == keyring.NodeDeparted {
		return &TurnedAwayError{id, s, reason, since}
	}
	return nil
}

// standing ends a node that the mesh has turned away for good: by the node's own view, or, where it was away when that happened, by
// what a control node says. One that was quarantined while it was away serves nobody from that word on, as if it had read it.
type standing struct {
	nodeID string
	source *state.Source
	ask    func(context.Context) (state.Standing, error) // control nodes
	heard  func() bool                                   // the leader has answered lately
	last   func(context.Context)                         // before it ends on others' word: its view may know what they do not; nil: nothing
	record func(context.Context, *audit.Record) error
	handIn func(context.Context) error // the trail, to an aggregator
	logger *slog.Logger

	stoodDown time.Time // the newest standing by which it has said that it serves nobody
}

// findNode is a node's record, whatever its state, for a control node to tell that node of.
func (a *assembly) findNode(id string) *iapmeshv1.Node {
	if v := a.source.Load(); v != nil {
		if n := v.Keyring.Nodes[id]; n != nil {
			return state.NodeProto(n)
		}
	}
	return nil
}

// askStanding asks all control nodes that are known. Each is verified as the server of any other call is, by a view that may be old: so one
// may be behind, and one may be revoked. That this node was put out is believed to any of them, that it was not only if none says so.
func (a *assembly) askStanding(ctx context.Context) (state.Standing, error) {
	var mu sync.Mutex
	var said []state.Standing
	failed := error(fault.New(fault.Unavailable, "no control node is known"))
	var asking sync.WaitGroup
	for _, target := range a.link.candidates() {
		if target.NodeID == a.id.public.NodeID {
			continue
		}
		asking.Go(func() {
			resp, err := a.askStandingOf(ctx, target)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
				return
			}
			said = append(said, state.Standing{Node: a.id.public.NodeID, State: state.NodeStateOf(resp.State), Reason: resp.Reason, Since: state.Time(resp.Since)})
		})
	}
	asking.Wait()
	if len(said) == 0 {
		return state.Standing{}, failed
	}
	return strictest(said), nil
}

// strictest is what counts of what was said: that the node was put out, before that it was not; and then the latest.
func strictest(said []state.Standing) state.Standing {
	best := said[0]
	for _, st := range said[1:] {
		if st.PutOut() && !best.PutOut() || st.PutOut() == best.PutOut() && st.Since.After(best.Since) {
			best = st
		}
	}
	return best
}

func (a *assembly) askStandingOf(ctx context.Context, target controlNode) (*iapmeshv1.StandingResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	conn, err := a.dialer.Dial(ctx, peer.ProtoJoin, target.NodeID, target.Address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return enroll.Standing(ctx, conn, a.id.public.NodeID, a.id.nodeKey())
}

// A node that no leader answers asks what became of it: again and again while it reaches nobody, and ever less often once it was told,
// since the mesh may only lack a leader, and quarantine takes its time.
const (
	standingEvery    = 5 * time.Second
	maxStandingEvery = time.Minute
)

// Run returns why the node has to end, or nil once ctx has.
func (s *standing) Run(ctx context.Context) error {
	pause := standingEvery
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		changed := s.source.Changed()
		if n := s.own(); n != nil && !n.Trusted() {
			s.standDown(ctx, n)
			if err := turnedAway(n.ID, n.State, n.Reason, n.StateSince); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			continue
		case <-timer.C:
		}
		if s.heard() {
			pause = standingEvery
		} else if st, err := s.ask(ctx); err == nil {
			if st.State == keyring.NodeDeparted && s.last != nil {
				s.last(ctx)
			}
			s.source.Tell(st) // the next turn finds it in the view
			if n := s.own(); n == nil || n.Trusted() {
				if err := turnedAway(st.Node, st.State, st.Reason, st.Since); err != nil {
					return err
				}
			}
			pause = min(2*pause, maxStandingEvery)
		}
		timer.Reset(pause/2 + rand.N(pause/2)) //nolint:gosec // spreads load, keeps no secret
	}
}

// own is this node's record in the view by which it decides everything; nil: there is none.
func (s *standing) own() *keyring.Node {
	v := s.source.Load()
	if v == nil || s.source.Served().Before(v.Revision) {
		return nil
	}
	return v.Keyring.Nodes[s.nodeID]
}

// handInWithin bounds how long a node that is turned away for good goes on for its trail.
const handInWithin = 10 * time.Second

// standDown says in this node's trail that it has stopped to serve, and why: what it decided until then by an older view, when it had not
// heard, lies before. Nobody asks a node that was turned away for good again, so that this is handed in at once.
func (s *standing) standDown(ctx context.Context, n *keyring.Node) {
	if n.StateSince.Equal(s.stoodDown) {
		return
	}
	s.stoodDown = n.StateSince
	err := s.record(ctx, audit.NewStandDown(string(n.State), n.Reason, n.StateSince))
	if err == nil && turnedAway(n.ID, n.State, n.Reason, n.StateSince) != nil {
		ctx, cancel := context.WithTimeout(ctx, handInWithin)
		defer cancel()
		err = s.handIn(ctx)
	}
	if err != nil {
		s.logger.Warn("the mesh is not told what this node decided last: start it again to hand that in", "state", n.State, "error", err)
	}
}
