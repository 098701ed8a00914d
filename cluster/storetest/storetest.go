// Package storetest is the conformance suite of the replicated state: Run for engines (cluster/raftstore, cluster/etcdstore),
// RunReader for followers (cluster/replica). An engine is right when it passes; what the suite does not ask, no caller may
// rely on.
//
// The suite opens a fresh harness for each of its tests and runs them in parallel. It speaks through the contract alone: how
// an engine is restarted, or made to forget its history, it learns from the harness.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// patience bounds every wait of the suite: long enough for a loaded machine, and never reached by an engine that works.
const patience = 5 * time.Minute

// Harness is one engine under test, empty at first and able to commit.
type Harness struct {
	Store store.Store
	// Reopen closes the engine, so that its readers end, and opens it again on the same data, able to commit.
	Reopen func(t *testing.T) store.Store
	// Forget makes the engine unable to resume a Watch after any revision that is older than the present one; it may commit
	// to keys under "forget/" to get there. At least the last 16 changes are remembered otherwise.
	Forget func(t *testing.T)
	// Lag is how many commits a consumer must be behind to be certain of a Reset. Zero: the engine promises none.
	Lag int
}

// ReaderHarness is a reader under test, fed from a source that is empty at first. It is opened connected to its source.
type ReaderHarness struct {
	Reader store.Reader
	// Commit commits at the source. The reader has the change some time later.
	Commit func(ctx context.Context, t store.Txn) (store.Revision, error)
	// Reopen closes the reader and opens it again on what it had persisted. The source may be gone meanwhile and thereafter.
	Reopen func(t *testing.T) store.Reader
	// Forget and Lag: as in Harness. A nil Forget skips what needs it.
	Forget func(t *testing.T)
	Lag    int
}

// Run proves that an engine keeps the contract. open returns a fresh engine and registers its closing with t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	RunReader(t, func(t *testing.T) ReaderHarness {
		h := open(t)
		return ReaderHarness{
			Reader: h.Store,
			Commit: h.Store.Commit,
			Reopen: func(t *testing.T) store.Reader { return h.Reopen(t) },
			Forget: h.Forget,
			Lag:    h.Lag,
		}
	})
	for _, tc := range []struct {
		name string
		test func(t *testing.T, h Harness)
	}{
		{"guards", testGuards},
		{"a refused commit writes nothing", testRefusedWritesNothing},
		{"racing increments lose none", testRacingIncrements},
		{"racing creations: one wins", testRacingCreations},
		{"hostile sizes", testHostileSizes},
		{"the largest commit", testLargestCommit},
		{"the caller keeps its buffers", testCallerKeepsBuffers},
		{"a commit with a finished context writes nothing", testFinishedContext},
		{"sync then wait is linearizable", testSyncIsLinearizable},
		{"revisions grow across a restart", testRevisionsGrowAcrossRestart},
		{"lead gives a term that commits", testLeadCommits},
		{"lead ends with its context", testLeadEnds},
		{"lead seeks again when f returns", testLeadSeeksAgain},
		{"an old term is fenced", testOldTermIsFenced},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tc.test(t, open(t))
		})
	}
}

// RunReader proves that a follower keeps the readers' part of the contract. open returns a fresh pair of source and reader and
// registers their closing with t.Cleanup.
func RunReader(t *testing.T, open func(t *testing.T) ReaderHarness) {
	for _, tc := range []struct {
		name string
		test func(t *testing.T, h ReaderHarness)
	}{
		{"get", testGet},
		{"list is in key order and by prefix", testList},
		{"wait", testWait},
		{"lists are never torn and never go back", testListsAreWhole},
		{"watch from nothing resets first", testWatchFromNothing},
		{"watch resumes", testWatchResumes},
		{"watch ahead of the reader does not go back", testWatchAhead},
		{"watch after a later epoch waits for it", testWatchAfterALaterEpoch},
		{"watch shows deletions", testWatchShowsDeletions},
		{"watches see whole commits in order", testWatchesSeeWholeCommits},
		{"watch after a foreign epoch resets", testForeignEpoch},
		{"watch after forgotten history resets", testForgotten},
		{"a lagging consumer converges", testLagging},
		{"watch ends with its context", testWatchEndsWithContext},
		{"watch ends when the consumer stops", testConsumerStops},
		{"watch ends when the reader closes", testWatchEndsOnClose},
		{"a restart keeps the state", testRestartKeepsState},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tc.test(t, open(t))
		})
	}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

type committer func(ctx context.Context, t store.Txn) (store.Revision, error)

// mustCommit commits, and fails the test if that is refused or in doubt.
func mustCommit(t *testing.T, commit committer, txn store.Txn) store.Revision {
	t.Helper()
	rev, err := commit(testContext(t), txn)
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	if rev.IsZero() {
		t.Fatal("commit: the revision is zero")
	}
	return rev
}

func mustWait(t *testing.T, r store.Reader, at store.Revision) {
	t.Helper()
	if err := r.Wait(testContext(t), at); err != nil {
		t.Fatalf("wait for %v: %v", at, err)
	}
}

func wantKind(t *testing.T, what string, err error, kind fault.Kind) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Fatalf("%s: error %v of kind %v, want kind %v", what, err, fault.KindOf(err), kind)
	}
}

// put is a Txn that writes key, value pairs.
func put(pairs ...string) store.Txn {
	var t store.Txn
	for i := 0; i < len(pairs); i += 2 {
		t.Puts = append(t.Puts, store.Entry{Key: pairs[i], Value: []byte(pairs[i+1])})
	}
	return t
}

// lookup is Get for a key that may be absent: then the entry is zero.
func lookup(ctx context.Context, r store.Reader, key string) (store.Entry, error) {
	e, err := r.Get(ctx, key)
	if fault.Is(err, fault.NotFound) {
		return store.Entry{}, nil
	}
	if err == nil && e.Key != key {
		return e, fmt.Errorf("get %q returned key %q", key, e.Key)
	}
	return e, err
}

// get is lookup that fails the test on an error.
func get(t *testing.T, r store.Reader, key string) store.Entry {
	t.Helper()
	e, err := lookup(testContext(t), r, key)
	if err != nil {
		t.Fatalf("get %q: %v", key, err)
	}
	return e
}

// doubtful reports whether err leaves a commit to be looked up and tried again.
func doubtful(err error) bool {
	return fault.Is(err, fault.Conflict) || errors.Is(err, store.ErrInDoubt)
}
