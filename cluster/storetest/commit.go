package storetest

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

func testGuards(t *testing.T, h Harness) {
	s := h.Store
	r1 := mustCommit(t, s.Commit, put("a", "1"))
	r2 := mustCommit(t, s.Commit, put("b", "1"))
	mustWait(t, s, r2)
	if got := get(t, s, "a").Revision; got != r1 {
		t.Fatalf("a was written at %v, Get says %v", r1, got)
	}
	foreign := store.Revision{Epoch: r1.Epoch + 1, Index: r1.Index}
	for _, tc := range []struct {
		name   string
		guards []store.Guard
		holds  bool
	}{
		{"absent holds", []store.Guard{{Key: "x"}}, true},
		{"absent fails", []store.Guard{{Key: "a"}}, false},
		{"revision holds", []store.Guard{{Key: "a", Revision: r1}}, true},
		{"later revision fails", []store.Guard{{Key: "a", Revision: r2}}, false},
		{"earlier revision fails", []store.Guard{{Key: "b", Revision: r1}}, false},
		{"revision of an absent key fails", []store.Guard{{Key: "x", Revision: r1}}, false},
		{"foreign epoch fails", []store.Guard{{Key: "a", Revision: foreign}}, false},
		{"both hold", []store.Guard{{Key: "a", Revision: r1}, {Key: "b", Revision: r2}}, true},
		{"one of two fails", []store.Guard{{Key: "a", Revision: r1}, {Key: "b", Revision: r1}}, false},
	} {
		txn := put("probe", tc.name)
		txn.Guards = tc.guards
		rev, err := s.Commit(testContext(t), txn)
		switch {
		case tc.holds && err != nil:
			t.Errorf("%s: %v", tc.name, err)
		case !tc.holds && !fault.Is(err, fault.Conflict):
			t.Errorf("%s: revision %v, error %v, want a conflict", tc.name, rev, err)
		}
	}

	// A deleted key is absent: its old revision no longer holds, and it can be created again.
	mustCommit(t, s.Commit, store.Txn{Guards: []store.Guard{{Key: "a", Revision: r1}}, Deletes: []string{"a"}})
	again := put("a", "2")
	again.Guards = []store.Guard{{Key: "a", Revision: r1}}
	_, err := s.Commit(testContext(t), again)
	wantKind(t, "guard on a deleted key's old revision", err, fault.Conflict)
	again.Guards = []store.Guard{{Key: "a"}}
	mustWait(t, s, mustCommit(t, s.Commit, again))
	if got := string(get(t, s, "a").Value); got != "2" {
		t.Errorf("a = %q after it was created again", got)
	}
}

func testRefusedWritesNothing(t *testing.T, h Harness) {
	s := h.Store
	r1 := mustCommit(t, s.Commit, put("a", "1", "b", "1"))
	refused := put("a", "2", "c", "2")
	refused.Deletes = []string{"b"}
	refused.Guards = []store.Guard{{Key: "a", Revision: r1}, {Key: "c", Revision: r1}}
	_, err := s.Commit(testContext(t), refused)
	wantKind(t, "commit", err, fault.Conflict)
	at, err := s.Sync(testContext(t))
	if err != nil {
		t.Fatalf("sync: %v", err)
	}
	mustWait(t, s, at)
	entries, _, err := s.List(testContext(t), "")
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	got := render(entries)
	if want := fmt.Sprintf("a=1@%v b=1@%v", r1, r1); got != want {
		t.Errorf("state %q, want %q", got, want)
	}
	// The commit that follows is seen by a watch as the next change: the refused one left no trace.
	w := follow(testContext(t), s, r1)
	r3 := mustCommit(t, s.Commit, put("d", "3"))
	if c := w.next(t); c.Reset || c.Revision != r3 || render(c.Entries) != fmt.Sprintf("d=3@%v", r3) {
		t.Errorf("after a refused commit the next change is %+v", c)
	}
}

func testRacingIncrements(t *testing.T, h Harness) {
	const workers, each = 4, 10
	ctx := testContext(t)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				if err := increment(ctx, h.Store, "counter", fmt.Sprintf("%d-%d", w, i)); err != nil {
					t.Errorf("worker %d: %v", w, err)
					return
				}
			}
		})
	}
	wg.Wait()
	at, err := h.Store.Sync(ctx)
	if err != nil {
		t.Fatalf("sync: %v", err)
	}
	mustWait(t, h.Store, at)
	if n := len(strings.Fields(string(get(t, h.Store, "counter").Value))); n != workers*each {
		t.Errorf("%d increments survived of %d", n, workers*each)
	}
}

// increment appends a token to the key's value under a guard, until it is there.
func increment(ctx context.Context, s store.Store, key, token string) error {
	for {
		e, err := lookup(ctx, s, key)
		if err != nil {
			return err
		}
		if strings.Contains(string(e.Value)+" ", " "+token+" ") {
			return nil // an earlier attempt that was in doubt
		}
		txn := put(key, string(e.Value)+" "+token)
		txn.Guards = []store.Guard{{Key: key, Revision: e.Revision}}
		rev, err := s.Commit(ctx, txn)
		if err == nil {
			return s.Wait(ctx, rev)
		}
		if !doubtful(err) {
			return fmt.Errorf("commit: %w", err)
		}
		at, err := s.Sync(ctx)
		if err != nil {
			return fmt.Errorf("sync: %w", err)
		}
		if err := s.Wait(ctx, at); err != nil {
			return fmt.Errorf("wait: %w", err)
		}
	}
}

func testRacingCreations(t *testing.T, h Harness) {
	const workers = 8
	ctx := testContext(t)
	var won atomic.Int32
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			txn := put("only", strconv.Itoa(w), "winner/"+strconv.Itoa(w), "")
			txn.Guards = []store.Guard{{Key: "only"}}
			rev, err := h.Store.Commit(ctx, txn)
			switch {
			case err == nil:
				won.Add(1)
				if err := h.Store.Wait(ctx, rev); err != nil {
					t.Errorf("wait: %v", err)
				}
			case !fault.Is(err, fault.Conflict):
				t.Errorf("worker %d: %v", w, err)
			}
		})
	}
	wg.Wait()
	entries, _, err := h.Store.List(ctx, "winner/")
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	if won.Load() != 1 || len(entries) != 1 || entries[0].Key != "winner/"+string(get(t, h.Store, "only").Value) {
		t.Errorf("%d creations won; winners in the state: %s", won.Load(), render(entries))
	}
}

func testHostileSizes(t *testing.T, h Harness) {
	many := func(n int) (keys []string) {
		for i := range n {
			keys = append(keys, fmt.Sprintf("k/%03d", i))
		}
		return keys
	}
	guards := make([]store.Guard, store.MaxOps+1)
	for i := range guards {
		guards[i].Key = fmt.Sprintf("g/%03d", i)
	}
	long := strings.Repeat("k", store.MaxKey+1)
	for name, txn := range map[string]store.Txn{
		"too many operations":     {Deletes: many(store.MaxOps + 1)},
		"too many guards":         {Guards: guards, Deletes: []string{"k"}},
		"empty key":               put("", "v"),
		"empty key to delete":     {Deletes: []string{""}},
		"empty key to guard":      {Guards: []store.Guard{{}}, Deletes: []string{"k"}},
		"long key":                put(long, "v"),
		"long key to delete":      {Deletes: []string{long}},
		"long key to guard":       {Guards: []store.Guard{{Key: long}}, Deletes: []string{"k"}},
		"too many bytes":          put("k", strings.Repeat("v", store.MaxBytes)),
		"key named twice":         put("k", "1", "k", "2"),
		"key written and deleted": {Puts: []store.Entry{{Key: "k"}}, Deletes: []string{"k"}},
	} {
		_, err := h.Store.Commit(testContext(t), txn)
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
	mustWait(t, h.Store, mustCommit(t, h.Store.Commit, put("z", "still alive")))
	entries, _, err := h.Store.List(testContext(t), "")
	if err != nil || len(entries) != 1 {
		t.Errorf("state after invalid commits: %s, %v", render(entries), err)
	}
}

func testLargestCommit(t *testing.T, h Harness) {
	var txn store.Txn
	size := store.MaxBytes / store.MaxOps
	for i := range store.MaxOps {
		key := fmt.Sprintf("%0*d", store.MaxKey, i)
		txn.Puts = append(txn.Puts, store.Entry{Key: key, Value: bytes.Repeat([]byte{byte(i)}, size-len(key))})
		txn.Guards = append(txn.Guards, store.Guard{Key: key})
	}
	rev := mustCommit(t, h.Store.Commit, txn)
	mustWait(t, h.Store, rev)
	entries, _, err := h.Store.List(testContext(t), "")
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	if len(entries) != store.MaxOps {
		t.Fatalf("%d entries of %d", len(entries), store.MaxOps)
	}
	for i, e := range entries {
		if e.Revision != rev || e.Key != txn.Puts[i].Key || !bytes.Equal(e.Value, txn.Puts[i].Value) {
			t.Fatalf("entry %d differs from what was committed", i)
		}
	}
}

func testCallerKeepsBuffers(t *testing.T, h Harness) {
	value := []byte("before")
	rev := mustCommit(t, h.Store.Commit, store.Txn{Puts: []store.Entry{{Key: "k", Value: value}}})
	copy(value, "after!")
	mustWait(t, h.Store, rev)
	if got := string(get(t, h.Store, "k").Value); got != "before" {
		t.Errorf("value %q: the engine kept the caller's buffer", got)
	}
}

func testFinishedContext(t *testing.T, h Harness) {
	ctx, cancel := context.WithCancel(testContext(t))
	cancel()
	if rev, err := h.Store.Commit(ctx, put("k", "v")); err == nil {
		t.Fatalf("commit with a finished context: revision %v", rev)
	}
	at, err := h.Store.Sync(testContext(t))
	if err != nil {
		t.Fatalf("sync: %v", err)
	}
	mustWait(t, h.Store, at)
	if e := get(t, h.Store, "k"); e.Key != "" {
		t.Errorf("a commit whose context had ended before it began was applied")
	}
	if _, err := h.Store.Sync(ctx); err == nil {
		t.Error("sync with a finished context succeeded")
	}
}

func testSyncIsLinearizable(t *testing.T, h Harness) {
	ctx := testContext(t)
	var acked atomic.Int64
	writing, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer stop()
		for i := int64(1); i <= 100; i++ {
			if _, err := h.Store.Commit(ctx, put("n", strconv.FormatInt(i, 10))); err != nil {
				t.Errorf("commit: %v", err)
				return
			}
			acked.Store(i)
		}
	})
	for range 3 {
		wg.Go(func() {
			for writing.Err() == nil {
				want := acked.Load()
				at, err := h.Store.Sync(ctx)
				if err == nil {
					err = h.Store.Wait(ctx, at)
				}
				if err != nil {
					t.Errorf("sync and wait: %v", err)
					return
				}
				e, err := lookup(ctx, h.Store, "n")
				got, _ := strconv.ParseInt("0"+string(e.Value), 10, 64)
				if err != nil || got < want {
					t.Errorf("read %d after sync %v, but %d had been acknowledged before it (%v)", got, at, want, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func testRevisionsGrowAcrossRestart(t *testing.T, h Harness) {
	before := mustCommit(t, h.Store.Commit, put("k", "1"))
	s := h.Reopen(t)
	mustWait(t, s, before)
	if e := get(t, s, "k"); e.Revision != before {
		t.Errorf("k was written at %v, after a restart it says %v", before, e.Revision)
	}
	txn := put("k", "2")
	txn.Guards = []store.Guard{{Key: "k", Revision: before}}
	if after := mustCommit(t, s.Commit, txn); !before.Before(after) {
		t.Errorf("revision %v after a restart, %v before it", after, before)
	}
}
