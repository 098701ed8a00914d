package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

func testWatchFromNothing(t *testing.T, h ReaderHarness) {
	w := follow(testContext(t), h.Reader, store.Revision{})
	if c := w.next(t); !c.Reset || len(c.Entries) != 0 {
		t.Fatalf("the first change of an empty state: %+v, want an empty reset", c)
	}
	r1 := mustCommit(t, h.Commit, put("b", "1", "a", "1"))
	if c := w.next(t); c.Revision != r1 || c.Reset || render(c.Entries) != fmt.Sprintf("a=1@%v b=1@%v", r1, r1) {
		t.Errorf("first commit: %+v", c)
	}
	r2 := mustCommit(t, h.Commit, put("c", "2"))
	mustWait(t, h.Reader, r2)
	late := follow(testContext(t), h.Reader, store.Revision{})
	if c := late.next(t); !c.Reset || c.Revision.Before(r2) || render(c.Entries) != fmt.Sprintf("a=1@%v b=1@%v c=2@%v", r1, r1, r2) {
		t.Errorf("the first change of a state: %+v, want a reset at %v", c, r2)
	}
}

func testWatchResumes(t *testing.T, h ReaderHarness) {
	var revs []store.Revision
	for i := range 6 {
		revs = append(revs, mustCommit(t, h.Commit, put("k", strconv.Itoa(i))))
	}
	mustWait(t, h.Reader, revs[5])
	for from := 1; from < 6; from++ {
		w := follow(testContext(t), h.Reader, revs[from])
		for i := from + 1; i < len(revs); i++ {
			if c := w.next(t); c.Reset || c.Revision != revs[i] || render(c.Entries) != fmt.Sprintf("k=%d@%v", i, revs[i]) {
				t.Fatalf("watch after %v: %+v, want commit %v", revs[from], c, revs[i])
			}
		}
		revs = append(revs, mustCommit(t, h.Commit, put("k", strconv.Itoa(len(revs)))))
		if c := w.next(t); c.Reset || c.Revision != revs[len(revs)-1] {
			t.Fatalf("watch after %v: %+v, want the new commit %v", revs[from], c, revs[len(revs)-1])
		}
	}
}

func testWatchAhead(t *testing.T, h ReaderHarness) {
	for i := range 10 {
		known := mustCommit(t, h.Commit, put("k", strconv.Itoa(2*i)))
		w := follow(testContext(t), h.Reader, known) // the reader may not have it yet
		next := mustCommit(t, h.Commit, put("k", strconv.Itoa(2*i+1)))
		if c := w.next(t); c.Revision.Before(next) {
			t.Fatalf("watch after %v yielded %+v", known, c)
		}
	}
}

func testWatchAfterALaterEpoch(t *testing.T, h ReaderHarness) {
	rev := mustCommit(t, h.Commit, put("k", "v"))
	mustWait(t, h.Reader, rev)
	ahead := follow(testContext(t), h.Reader, store.Revision{Epoch: rev.Epoch + 1, Index: 1})
	present := follow(testContext(t), h.Reader, rev)
	for i := range 5 {
		mustCommit(t, h.Commit, put("k", strconv.Itoa(i)))
		present.next(t)
		select {
		case c := <-ahead.changes:
			t.Fatalf("a watch after an epoch that is yet to come went back to %+v", c)
		case err := <-ahead.failed:
			t.Fatalf("a watch after an epoch that is yet to come ended: %v", err)
		default:
		}
	}
}

func testWatchShowsDeletions(t *testing.T, h ReaderHarness) {
	r1 := mustCommit(t, h.Commit, put("a", "1", "b", "1", "c", "1"))
	w := follow(testContext(t), h.Reader, r1)
	r2 := mustCommit(t, h.Commit, store.Txn{Puts: []store.Entry{{Key: "b", Value: []byte("2")}}, Deletes: []string{"c", "a", "absent"}})
	if c := w.next(t); c.Reset || c.Revision != r2 || render(c.Entries) != fmt.Sprintf("-a@%v b=2@%v -c@%v", r2, r2, r2) {
		t.Errorf("change %+v, want a and c deleted, b written, and nothing of what was absent", c)
	}
}

func testWatchesSeeWholeCommits(t *testing.T, h ReaderHarness) {
	const commits, watchers = 120, 4
	ctx := testContext(t)
	last := make(chan store.Revision, watchers)
	var wg sync.WaitGroup
	for range watchers {
		w := follow(ctx, h.Reader, store.Revision{})
		wg.Go(func() {
			var r replayed
			var until store.Revision
			ask := last
			for until.IsZero() || r.at.Before(until) {
				select {
				case until = <-ask:
					ask = nil // the others' values are theirs
				case c := <-w.changes:
					if err := r.apply(c); err != nil {
						t.Error(err)
						return
					}
					// Each commit writes its number to x/ twice, so that half a commit would show.
					if a, b := r.state["x/a"], r.state["x/b"]; string(a.Value) != string(b.Value) || a.Revision != b.Revision {
						t.Errorf("torn change %v: %s", c.Revision, render(c.Entries))
						return
					}
				case err := <-w.failed:
					t.Errorf("watch: %v", err)
					return
				}
			}
			entries, at, err := h.Reader.List(ctx, "")
			if diff := r.differs(entries); err != nil || at != r.at || diff != "" {
				t.Errorf("watched to %v, listed at %v: %s %v", r.at, at, diff, err)
			}
		})
	}
	var rev store.Revision
	for i := range commits {
		txn := put("x/a", strconv.Itoa(i), "x/b", strconv.Itoa(i), "y/"+strconv.Itoa(rand.IntN(8)), "v")
		if i%3 == 0 {
			txn = store.Txn{Deletes: []string{"x/a", "x/b", "y/" + strconv.Itoa(rand.IntN(8))}}
		}
		var err error
		if rev, err = h.Commit(ctx, txn); err != nil {
			t.Errorf("commit: %v", err)
			break
		}
	}
	for range watchers {
		last <- rev
	}
	wg.Wait()
}

func testForeignEpoch(t *testing.T, h ReaderHarness) {
	rev := mustCommit(t, h.Commit, put("k", "v"))
	mustWait(t, h.Reader, rev)
	foreign := store.Revision{Epoch: rev.Epoch - 1, Index: rev.Index}
	if foreign.IsZero() {
		t.Fatal("the suite cannot tell a foreign epoch from none")
	}
	c := follow(testContext(t), h.Reader, foreign).next(t)
	if !c.Reset || c.Revision.Before(rev) || render(c.Entries) != fmt.Sprintf("k=v@%v", rev) {
		t.Errorf("watch after the foreign revision %v: %+v, want a reset at %v", foreign, c, rev)
	}
}

func testForgotten(t *testing.T, h ReaderHarness) {
	if h.Forget == nil {
		t.Skip("this reader cannot be made to forget")
	}
	old := mustCommit(t, h.Commit, put("k", "1"))
	rev := mustCommit(t, h.Commit, put("k", "2"))
	mustWait(t, h.Reader, rev)
	h.Forget(t)
	var r replayed
	if err := r.apply(follow(testContext(t), h.Reader, old).next(t)); err != nil {
		t.Fatalf("watch after forgotten history: %v", err)
	}
	if e := r.state["k"]; string(e.Value) != "2" || e.Revision != rev {
		t.Errorf("k after the reset: %+v", e)
	}
}

func testLagging(t *testing.T, h ReaderHarness) {
	ctx := testContext(t)
	mustWait(t, h.Reader, mustCommit(t, h.Commit, put("k", "first")))
	yielded, resume := make(chan struct{}, 1), make(chan store.Revision)
	var r replayed
	done := make(chan error, 1)
	go func() {
		var until store.Revision
		for c, err := range h.Reader.Watch(ctx, store.Revision{}) {
			if err == nil {
				err = r.apply(c)
			}
			if err != nil {
				done <- err
				return
			}
			if until.IsZero() {
				yielded <- struct{}{}
				until = <-resume
			}
			if !r.at.Before(until) {
				break
			}
		}
		done <- nil
	}()
	<-yielded
	var rev store.Revision
	for i := range max(h.Lag, 50) + 10 {
		txn := put("k", strconv.Itoa(i), "k/"+strconv.Itoa(i), "v")
		if i > 0 {
			txn.Deletes = []string{"k/" + strconv.Itoa(i-1)}
		}
		rev = mustCommit(t, h.Commit, txn)
	}
	mustWait(t, h.Reader, rev)
	resume <- rev
	if err := <-done; err != nil {
		t.Fatalf("lagging watch: %v", err)
	}
	entries, _, err := h.Reader.List(ctx, "")
	if diff := r.differs(entries); err != nil || diff != "" {
		t.Errorf("state of the lagging consumer: %s %v", diff, err)
	}
	if h.Lag > 0 && r.resets < 2 {
		t.Errorf("no reset after a lag of %d commits: history is not bounded", h.Lag)
	}
}

func testWatchEndsWithContext(t *testing.T, h ReaderHarness) {
	rev := mustCommit(t, h.Commit, put("k", "v"))
	mustWait(t, h.Reader, rev)
	ctx, cancel := context.WithCancel(testContext(t))
	w := follow(ctx, h.Reader, rev)
	cancel()
	if err := w.end(t); !errors.Is(err, context.Canceled) {
		t.Errorf("watch ended with %v, want the context's error", err)
	}
}

func testConsumerStops(t *testing.T, h ReaderHarness) {
	mustWait(t, h.Reader, mustCommit(t, h.Commit, put("k", "v")))
	for c, err := range h.Reader.Watch(testContext(t), store.Revision{}) {
		if err != nil || !c.Reset {
			t.Errorf("first change %+v, %v", c, err)
		}
		break
	}
	mustWait(t, h.Reader, mustCommit(t, h.Commit, put("k", "w")))
}

func testWatchEndsOnClose(t *testing.T, h ReaderHarness) {
	w := follow(testContext(t), h.Reader, store.Revision{})
	w.next(t)
	h.Reopen(t)
	wantKind(t, "watch of a reader that closed", w.end(t), fault.Unavailable)
}
