package storetest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

func testGet(t *testing.T, h ReaderHarness) {
	r1 := mustCommit(t, h.Commit, put("a", "1", "empty", ""))
	mustWait(t, h.Reader, r1)
	_, err := h.Reader.Get(testContext(t), "absent")
	wantKind(t, "get of an absent key", err, fault.NotFound)
	for key, want := range map[string]string{"a": "1", "empty": ""} {
		e := get(t, h.Reader, key)
		if e.Key != key || string(e.Value) != want || e.Revision != r1 || e.Deleted {
			t.Errorf("get %q: %+v", key, e)
		}
	}
	r2 := mustCommit(t, h.Commit, store.Txn{Puts: []store.Entry{{Key: "empty", Value: []byte("2"), Revision: store.Revision{Epoch: 9, Index: 9}}}, Deletes: []string{"a", "never"}})
	mustWait(t, h.Reader, r2)
	_, err = h.Reader.Get(testContext(t), "a")
	wantKind(t, "get of a deleted key", err, fault.NotFound)
	if e := get(t, h.Reader, "empty"); string(e.Value) != "2" || e.Revision != r2 {
		t.Errorf("overwritten entry: %+v, want revision %v", e, r2)
	}
}

func testList(t *testing.T, h ReaderHarness) {
	keys := []string{"node/a", "node/a/b", "node/b", "node0", "node", "nodf", "m", "node/é", "node/\U0010ffff", "node/A", "Node/a", "node.x"}
	var rev store.Revision
	for _, key := range keys {
		rev = mustCommit(t, h.Commit, put(key, "v"))
	}
	mustWait(t, h.Reader, rev)
	for prefix, want := range map[string]string{
		"":         "[Node/a m node node.x node/A node/a node/a/b node/b node/é node/\U0010ffff node0 nodf]",
		"node/":    "[node/A node/a node/a/b node/b node/é node/\U0010ffff]",
		"node/a":   "[node/a node/a/b]",
		"node":     "[node node.x node/A node/a node/a/b node/b node/é node/\U0010ffff node0]",
		"node/zzz": "[]",
		"z":        "[]",
	} {
		entries, at, err := h.Reader.List(testContext(t), prefix)
		if err != nil {
			t.Fatalf("list %q: %v", prefix, err)
		}
		got := []string{}
		for _, e := range entries {
			got = append(got, e.Key)
			if string(e.Value) != "v" || at.Before(e.Revision) || e.Deleted {
				t.Errorf("list %q at %v holds %+v", prefix, at, e)
			}
		}
		if fmt.Sprint(got) != want {
			t.Errorf("list %q: %v, want %s", prefix, got, want)
		}
		if at.Before(rev) {
			t.Errorf("list %q was read at %v, after a wait for %v", prefix, at, rev)
		}
	}
}

func testWait(t *testing.T, h ReaderHarness) {
	rev := mustCommit(t, h.Commit, put("k", "v"))
	for _, at := range []store.Revision{{}, {Epoch: rev.Epoch - 1, Index: 1 << 40}, rev} {
		mustWait(t, h.Reader, at)
	}
	if got := string(get(t, h.Reader, "k").Value); got != "v" {
		t.Errorf("after wait k = %q", got)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	for _, future := range []store.Revision{{Epoch: rev.Epoch, Index: 1 << 62}, {Epoch: rev.Epoch + 1, Index: 1}} {
		failed := make(chan error, 1)
		go func() { failed <- h.Reader.Wait(ctx, future) }()
		select {
		case err := <-failed:
			t.Fatalf("wait for %v returned %v", future, err)
		default:
		}
		defer func() {
			if err := <-failed; !errors.Is(err, context.Canceled) {
				t.Errorf("wait for %v ended with %v, want the context's error", future, err)
			}
		}()
	}
	mustWait(t, h.Reader, mustCommit(t, h.Commit, put("k", "w")))
	cancel()
}

func testListsAreWhole(t *testing.T, h ReaderHarness) {
	ctx := testContext(t)
	writing, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer stop()
		for i := range 100 {
			n := strconv.Itoa(i)
			if _, err := h.Commit(ctx, put("pair/a", n, "other", n, "pair/b", n)); err != nil {
				t.Errorf("commit: %v", err)
				return
			}
		}
	})
	for range 2 {
		wg.Go(func() {
			pace := time.NewTicker(100 * time.Microsecond) // or it starves the engine
			defer pace.Stop()
			var last store.Revision
			for writing.Err() == nil {
				<-pace.C
				entries, at, err := h.Reader.List(ctx, "pair/")
				switch {
				case err != nil:
					t.Errorf("list: %v", err)
					return
				case at.Before(last):
					t.Errorf("list at %v after one at %v", at, last)
					return
				case len(entries) == 0:
				case len(entries) != 2 || string(entries[0].Value) != string(entries[1].Value) || entries[0].Revision != entries[1].Revision:
					t.Errorf("torn list: %s", render(entries))
					return
				}
				last = at
			}
		})
	}
	wg.Wait()
}

func testRestartKeepsState(t *testing.T, h ReaderHarness) {
	mustCommit(t, h.Commit, put("a", "1", "b", "1"))
	rev := mustCommit(t, h.Commit, store.Txn{Puts: []store.Entry{{Key: "c", Value: []byte("2")}}, Deletes: []string{"a"}})
	mustWait(t, h.Reader, rev)
	before, _, err := h.Reader.List(testContext(t), "")
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	reader := h.Reopen(t)
	mustWait(t, reader, rev)
	after, at, err := reader.List(testContext(t), "")
	if err != nil || render(after) != render(before) || at.Before(rev) {
		t.Errorf("state after a restart %q at %v, before it %q at %v (%v)", render(after), at, render(before), rev, err)
	}
}
