package control_test

import (
	"cmp"
	"context"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// electorate stands for an engine's members: the engine of these tests has no other process to vote.
type electorate struct {
	mu      sync.Mutex
	members map[string]control.Voter // guarded by mu
	removed []string                 // whom the leader has put out; guarded by mu
	lead    []string                 // to whom the lead was handed; guarded by mu
}

func (e *electorate) Servers(context.Context) ([]control.Voter, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.SortedFunc(maps.Values(e.members), func(a, b control.Voter) int { return cmp.Compare(a.ID, b.ID) }), nil
}

func (e *electorate) set(id, address string, voter bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.members[id] = control.Voter{ID: id, Address: address, Voter: voter}
	return nil
}

// AddNonvoter takes no vote away, as the engine takes none.
func (e *electorate) AddNonvoter(_ context.Context, id, address string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.members[id] = control.Voter{ID: id, Address: address, Voter: e.members[id].Voter}
	return nil
}

func (e *electorate) AddVoter(_ context.Context, id, address string) error {
	return e.set(id, address, true)
}

func (e *electorate) RemoveServer(_ context.Context, id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.members, id)
	e.removed = append(e.removed, id)
	return nil
}

func (e *electorate) putOut() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.removed)
}

func (e *electorate) TransferLeadershipTo(_ context.Context, id, _ string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lead = append(e.lead, id)
	return nil
}

// votes reports whether a node is a member of the engine, and whether it votes.
func (e *electorate) votes(j *joiner) (member, voter bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v, ok := e.members[j.id()]
	return ok, v.Voter
}

func TestControlNodesVoteOnceSteadyAndInOddNumbers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := &electorate{members: map[string]control.Voter{}}
	must(t, e.set(w.founder.id(), "127.0.0.1:1", true))
	w.Voters = e
	w.start()

	second := w.joined(w.boot, "control-2", "us-east", iapmeshv1.Role_ROLE_CONTROL)
	w.eventually("the second to follow", func() bool { m, _ := e.votes(second); return m })
	w.everybodyReports()
	w.settled() // it is seen to report
	w.clock.advance(10 * time.Second)
	third := w.joined(w.boot, "control-3", "ap-south", iapmeshv1.Role_ROLE_CONTROL)
	w.eventually("the third to follow", func() bool { m, _ := e.votes(third); return m })
	w.everybodyReports()
	w.settled()
	if _, voter := e.votes(second); voter {
		t.Error("one voter became two: two fail more easily than one")
	}
	both := func() bool { _, a := e.votes(second); _, b := e.votes(third); return a && b }
	w.eventually("both to vote once the third is steady, too", func() bool {
		w.clock.advance(100 * time.Millisecond)
		w.everybodyReports()
		return both()
	})

	// With three voters of whom all are active, one may go, and its vote goes with it; a second may not.
	must(t, second2(w.Revoke(t.Context(), "admin/ana", &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE, Value: "control-2"})))
	w.eventually("its removal", func() bool { m, _ := e.votes(second); return !m })
	_, _, err := w.Revoke(t.Context(), "admin/ana", &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE, Value: "control-3"})
	wantKind(t, "revoke one of two", err, fault.Denied, "add control nodes first")
}

// A candidate that falls silent begins anew.
func TestAnUnsteadyCandidateDoesNotVote(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := &electorate{members: map[string]control.Voter{}}
	must(t, e.set(w.founder.id(), "127.0.0.1:1", true))
	w.Voters = e
	w.start()
	a, b := w.joined(w.boot, "control-2", "us-east", iapmeshv1.Role_ROLE_CONTROL), w.joined(w.boot, "control-3", "ap-south", iapmeshv1.Role_ROLE_CONTROL)
	w.eventually("both to follow", func() bool { m, _ := e.votes(a); n, _ := e.votes(b); return m && n })
	for range 5 {
		w.everybodyReports()
		w.settled()                                       // they are seen to report,
		w.clock.advance(keyring.LiveWithin + time.Second) // and silent for longer than that
		w.settled()
	}
	if _, voter := e.votes(a); voter {
		t.Error("who is silent votes")
	}
}

// behind is a store whose watch shows what is there, and nothing more until it may go on.
type behind struct {
	*watched
	goOn  chan struct{}
	asked atomic.Bool // how far the store is
}

func (b *behind) Watch(ctx context.Context, after store.Revision) iter.Seq2[store.Change, error] {
	return func(yield func(store.Change, error) bool) {
		first := true
		for change, err := range b.watched.Watch(ctx, after) {
			if !first {
				select {
				case <-b.goOn:
				case <-ctx.Done():
				}
			}
			if first = false; !yield(change, err) {
				return
			}
		}
	}
}

func (b *behind) Sync(ctx context.Context) (store.Revision, error) {
	b.asked.Store(true)
	return b.watched.Sync(ctx)
}

// A leader that has just begun may not see the nodes yet that the engine has as members already.
func TestANewLeaderWhoseViewLagsPutsNobodyOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := &electorate{members: map[string]control.Voter{}}
	must(t, e.set(w.founder.id(), "127.0.0.1:1", true))
	w.Voters = e
	config := w.Config
	late := &behind{watched: w.engine, goOn: make(chan struct{})}
	config.Store, config.Source = late, state.NewSource(late, slog.New(slog.DiscardHandler))
	w.run(config.Source.Run)
	w.eventually("an old view", func() bool { return config.Source.Load() != nil })

	stop := w.lead(w.Controller)
	j := w.joined(w.boot, "control-2", "us-east", iapmeshv1.Role_ROLE_CONTROL)
	w.eventually("the second to follow", func() bool { member, _ := e.votes(j); return member })
	stop()
	w.Controller = control.New(config)
	defer w.lead(w.Controller)()
	w.eventually("what the new leader does first", func() bool { return late.asked.Load() || len(e.putOut()) > 0 })
	close(late.goOn)
	w.settled()
	if out := e.putOut(); len(out) != 0 {
		t.Errorf("the new leader puts out %v", out)
	}
}
