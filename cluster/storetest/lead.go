package storetest

import (
	"context"
	"errors"
	"testing"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// leading is a Lead in progress.
type leading struct {
	terms chan store.Term // one for each run of f
	again chan struct{}   // makes the current run of f return
	stop  context.CancelFunc
	done  chan error
}

func lead(t *testing.T, s store.Store) *leading {
	ctx, cancel := context.WithCancel(testContext(t))
	l := &leading{terms: make(chan store.Term), again: make(chan struct{}), stop: cancel, done: make(chan error, 1)}
	go func() {
		l.done <- s.Lead(ctx, func(ctx context.Context, term store.Term) error {
			select {
			case l.terms <- term:
			case <-ctx.Done():
				return ctx.Err()
			}
			select {
			case <-l.again:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	t.Cleanup(cancel)
	return l
}

func (l *leading) term(t *testing.T) store.Term {
	t.Helper()
	select {
	case term := <-l.terms:
		if term == 0 {
			t.Fatal("lead: the term is zero, which does not fence")
		}
		return term
	case err := <-l.done:
		t.Fatalf("lead ended: %v", err)
	case <-testContext(t).Done():
		t.Fatal("lead: f was never run")
	}
	return 0
}

// end stops Lead and waits until it has returned.
func (l *leading) end(t *testing.T) {
	t.Helper()
	l.stop()
	select {
	case err := <-l.done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("lead ended with %v, want the context's error", err)
		}
	case <-testContext(t).Done():
		t.Fatal("lead did not end with its context")
	}
}

func testLeadCommits(t *testing.T, h Harness) {
	l := lead(t, h.Store)
	term := l.term(t)
	txn := put("k", "v")
	txn.Term = term
	mustWait(t, h.Store, mustCommit(t, h.Store.Commit, txn))
	for _, other := range []store.Term{term + 1, term + 1000, 1 << 62} {
		txn := put("k", "fenced")
		txn.Term = other
		_, err := h.Store.Commit(testContext(t), txn)
		wantKind(t, "commit under a term that nobody won", err, fault.Conflict)
	}
	if got := string(get(t, h.Store, "k").Value); got != "v" {
		t.Errorf("k = %q", got)
	}
	l.end(t)
}

func testLeadEnds(t *testing.T, h Harness) {
	l := lead(t, h.Store)
	l.term(t)
	l.end(t)
	again := lead(t, h.Store)
	again.term(t)
	again.end(t)
}

func testLeadSeeksAgain(t *testing.T, h Harness) {
	l := lead(t, h.Store)
	l.term(t)
	l.again <- struct{}{}
	txn := put("k", "v")
	txn.Term = l.term(t)
	mustCommit(t, h.Store.Commit, txn)
	l.end(t)
}

func testOldTermIsFenced(t *testing.T, h Harness) {
	l := lead(t, h.Store)
	old := l.term(t)
	l.end(t)
	s := h.Reopen(t)
	l = lead(t, s)
	term := l.term(t)
	if term <= old {
		t.Fatalf("term %d after %d: terms must grow", term, old)
	}
	stale := put("k", "stale")
	stale.Term = old
	_, err := s.Commit(testContext(t), stale)
	wantKind(t, "commit under an old term", err, fault.Conflict)
	fresh := put("k", "fresh")
	fresh.Term = term
	mustWait(t, s, mustCommit(t, s.Commit, fresh))
	if got := string(get(t, s, "k").Value); got != "fresh" {
		t.Errorf("k = %q", got)
	}
	l.end(t)
}
