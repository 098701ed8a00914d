package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
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
	NodeID   string
	State    keyring.NodeState // revoked or departed
	Reason   string
	Since    time.Time
	HandedIn bool // an aggregator has the whole of its trail, or the mesh has none: there is no sense in starting it again
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
	rest := ""
	if !e.HandedIn {
		rest = "; no aggregator has all that it decided yet: start it again to hand that in"
	}
	return fmt.Sprintf("node %s %s at %s%s; it ends, and cannot come back: join anew with another data_dir and a key%s", e.NodeID, what, e.Since.UTC().Format(time.RFC3339), why, rest)
}

// Unwrap gives the kind.
func (e *TurnedAwayError) Unwrap() error { return fault.New(fault.Denied, "turned away") }

// turnedAway is the error for this node in that state; nil where it may come back: a quarantined one is released, a lapsed one
// proves its key.
func (s *standing) turnedAway(to keyring.NodeState, reason string, since time.Time) error {
	if !to.Final() {
		return nil
	}
	return &TurnedAwayError{s.nodeID, to, reason, since, s.handedIn}
}

// standing ends a node that the mesh has turned away for good: by the node's own view, or, where it was away when that happened, by
// what a control node says. One that was quarantined while it was away serves nobody from that word on, as if it had read it, nor when it
// is started again: the word is kept until it follows, or a leader trusts it.
type standing struct {
	nodeID string
	source *state.Source
	ask    func(context.Context) (state.Standing, error) // control nodes
	heard  func() time.Time                              // when the leader answered last, or this node led
	last   func(context.Context)                         // before it ends on others' word: its view may know what they do not; nil: nothing
	record func(context.Context, *audit.Record) error
	handIn func(context.Context) error // the trail, to an aggregator
	file   string                      // where the word is kept
	logger *slog.Logger

	settled chan struct{} // closed once it is known where this node stands, or that nobody says so in time: nobody is served before

	told      time.Time // when it was told that it was put out; zero: it was not
	kept      state.Standing
	stoodDown time.Time // the newest standing by which it has said in its trail that it serves nobody
	handedIn  bool      // an aggregator has the trail up to that word, or the mesh has none
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

// askStanding asks all control nodes that are known, until one says that this node was put out: that is believed to any of them. Each is
// verified as the server of any other call is, by a view that may be old, so that another may be behind, or lie.
func (a *assembly) askStanding(ctx context.Context) (state.Standing, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		said state.Standing
		err  error
	}
	targets := slices.DeleteFunc(a.link.candidates(), func(c controlNode) bool { return c.NodeID == a.id.public.NodeID })
	answers := make(chan answer, len(targets))
	for _, target := range targets {
		go func() {
			resp, err := a.askStandingOf(ctx, target)
			answers <- answer{state.Standing{Node: a.id.public.NodeID, State: state.NodeStateOf(resp.GetState()), Reason: resp.GetReason(), Since: state.Time(resp.GetSince())}, err}
		}()
	}
	out := answer{err: fault.New(fault.Unavailable, "no control node is known")}
	for range targets {
		switch got := <-answers; {
		case got.err == nil && got.said.PutOut():
			return got.said, nil
		case got.err == nil || out.err != nil:
			out = got
		}
	}
	return out.said, out.err
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

// A node that no leader answers asks what became of it: first of all, again and again while it reaches nobody, and ever less often once it
// was answered, since the mesh may only lack a leader, and quarantine takes its time.
const (
	settleWithin     = 3 * time.Second // nobody is served meanwhile
	settleLook       = 10 * time.Millisecond
	standingFirst    = time.Second
	standingEvery    = 5 * time.Second
	maxStandingEvery = time.Minute
)

// Run returns why the node has to end, or nil once ctx has.
func (s *standing) Run(ctx context.Context) error {
	if err := s.settle(ctx); err != nil {
		return err
	}
	pause := standingEvery
	timer := time.NewTimer(standingFirst)
	defer timer.Stop()
	for {
		changed := s.source.Changed()
		if n := s.own(); n != nil && !n.Trusted() {
			s.standDown(ctx, n)
			if err := s.turnedAway(n.State, n.Reason, n.StateSince); err != nil {
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
		switch heard := s.heard(); {
		case time.Since(heard) < standingEvery && (s.told.IsZero() || heard.After(s.told)):
			s.forget()
			pause = standingEvery
		default:
			if st, err := s.ask(ctx); err == nil {
				if err := s.hear(ctx, st); err != nil {
					return err
				}
				pause = min(2*pause, maxStandingEvery)
			}
		}
		timer.Reset(pause/2 + rand.N(pause/2)) //nolint:gosec // spreads load, keeps no secret
	}
}

// settle finds out where this node stands before it serves anybody: its view may be of before it was put out. A leader's answer will do, or
// what all control nodes say; whoever reaches none of them in time serves by what it has, as a node does that is cut off while it runs.
func (s *standing) settle(ctx context.Context) error {
	loading, cancel := context.WithTimeout(ctx, settleWithin)
	_, _ = s.source.Wait(loading, func(*state.View) bool { return s.own() != nil }) // by which it can tell what it served; without one it serves nobody
	cancel()
	asking, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	said := make(chan state.Standing, 1)
	go func() {
		defer close(said)
		if st, err := s.ask(asking); err == nil {
			said <- st
		}
	}()
	ticker := time.NewTicker(settleLook)
	defer ticker.Stop()
	for s.heard().IsZero() {
		select {
		case st, answered := <-said:
			if answered {
				if err := s.hear(ctx, st); err != nil {
					return err // and has served nobody
				}
			}
			close(s.settled)
			return nil
		case <-ticker.C:
		}
	}
	close(s.settled)
	return nil
}

// await waits until it is known where this node stands.
func (s *standing) await(ctx context.Context) error {
	select {
	case <-s.settled:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// hear takes what a control node says, and returns why the node has to end.
func (s *standing) hear(ctx context.Context, st state.Standing) error {
	if !st.PutOut() {
		return nil
	}
	if st.State == keyring.NodeDeparted && s.last != nil {
		s.last(ctx)
	}
	if s.told.IsZero() {
		s.told = time.Now()
	}
	st.Epoch = s.source.Revision().Epoch
	s.source.Tell(st)
	if err := s.keep(st); err != nil {
		s.logger.Warn("what this node was told of itself is not kept", "error", err)
	}
	if n := s.own(); n != nil && !n.Trusted() {
		s.standDown(ctx, n)
	}
	return s.turnedAway(st.State, st.Reason, st.Since)
}

// keep writes what was told to disk.
func (s *standing) keep(st state.Standing) error {
	if st == s.kept {
		return nil
	}
	data, err := json.Marshal(st)
	if err != nil {
		return err
	}
	if err := writeFile(s.file, data); err != nil {
		return err
	}
	s.kept = st
	return nil
}

// recall tells the source what was kept, before it publishes any view.
func (s *standing) recall() error {
	data, err := os.ReadFile(s.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.New(fault.Invalid, "what this node was told of itself: %w", err)
	}
	var st state.Standing
	if err := json.Unmarshal(data, &st); err != nil || st.Node != s.nodeID {
		return fault.New(fault.Invalid, "%s is damaged: it says that the mesh has put this node out; if it has not, delete it", s.file)
	}
	s.told = time.Now()
	s.source.Tell(st)
	return nil
}

// forget drops what was told: a leader trusts this node.
func (s *standing) forget() {
	if s.told.IsZero() {
		return
	}
	s.told, s.kept = time.Time{}, state.Standing{}
	s.source.Untell()
	if err := os.Remove(s.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.logger.Warn("what this node was told of itself is kept, and holds no more", "error", err)
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
const handInWithin = 15 * time.Second

// standDown says in this node's trail that it has stopped to serve, and why: what it decided until then by an older view, when it had not
// heard, lies before. Nobody asks a node that was turned away for good again, so that this is handed in at once.
func (s *standing) standDown(ctx context.Context, n *keyring.Node) {
	if n.StateSince.Equal(s.stoodDown) {
		return
	}
	err := s.record(ctx, audit.NewStandDown(string(n.State), n.Reason, n.StateSince))
	if err == nil {
		s.stoodDown = n.StateSince
		if n.State.Final() {
			ctx, cancel := context.WithTimeout(ctx, handInWithin)
			defer cancel()
			err = s.handIn(ctx)
			s.handedIn = err == nil
		}
	}
	if err != nil {
		s.logger.Warn("the mesh is not told what this node decided last", "state", n.State, "error", err)
	}
}
