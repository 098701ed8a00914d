package statemap_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/iapmesh/iapmesh/cluster/statemap"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

func at(index uint64) store.Revision { return store.Revision{Epoch: 1, Index: index} }

// write publishes a commit of one key.
func write(m *statemap.Map, index uint64, key string) {
	txn := m.Current().Edit()
	changed := txn.Write([]store.Entry{{Key: key}}, nil, at(index))
	m.Publish(txn.Commit(at(index)), []store.Change{{Revision: at(index), Entries: changed}})
}

// whole publishes a state that no change leads to.
func whole(m *statemap.Map, index uint64, keys ...string) {
	txn := statemap.NewTxn()
	txn.Write(entries(keys), nil, at(index))
	m.Publish(txn.Commit(at(index)), nil)
}

func entries(keys []string) (list []store.Entry) {
	for _, k := range keys {
		list = append(list, store.Entry{Key: k})
	}
	return list
}

// watch pulls changes one by one, as reset or commit with revision and keys.
func watch(t *testing.T, m *statemap.Map, after store.Revision) (next func() string) {
	changes := make(chan string)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() {
		for c, err := range m.Watch(ctx, after) {
			s := fmt.Sprint(c.Revision)
			if c.Reset {
				s = "reset " + s
			}
			for _, e := range c.Entries {
				s += " " + e.Key
			}
			if err != nil {
				s = fault.KindOf(err).String()
			}
			select {
			case changes <- s:
			case <-ctx.Done():
			}
		}
	}()
	return func() string { return <-changes }
}

func wantNext(t *testing.T, next func() string, want ...string) {
	t.Helper()
	for _, w := range want {
		if got := next(); got != w {
			t.Fatalf("change %q, want %q", got, w)
		}
	}
}

func TestNothingIsKnownAtFirst(t *testing.T) {
	t.Parallel()
	m := statemap.New(store.Revision{}, 8)
	if _, err := m.Get(t.Context(), "a"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("get: %v", err)
	}
	if _, _, err := m.List(t.Context(), ""); !fault.Is(err, fault.Unavailable) {
		t.Errorf("list: %v", err)
	}
	next := watch(t, m, store.Revision{})
	whole(m, 3, "a", "b")
	wantNext(t, next, "reset 1.3 a b")
}

// A state that is replaced at its own revision reaches whoever had the old one, and nobody twice.
func TestAReplacedStateResetsAtItsRevision(t *testing.T) {
	t.Parallel()
	m := statemap.New(at(1), 8)
	write(m, 2, "a")
	began, caughtUp := watch(t, m, store.Revision{}), watch(t, m, at(1))
	wantNext(t, began, "reset 1.2 a")
	wantNext(t, caughtUp, "1.2 a")
	whole(m, 2, "a", "b")
	wantNext(t, began, "reset 1.2 a b")
	wantNext(t, caughtUp, "reset 1.2 a b")
	write(m, 3, "c")
	wantNext(t, began, "1.3 c")
	wantNext(t, caughtUp, "1.3 c")
}

func TestHistoryIsBounded(t *testing.T) {
	t.Parallel()
	m := statemap.New(at(1), 3)
	for i := range uint64(6) {
		write(m, 2+i, fmt.Sprint("k", i))
	}
	wantNext(t, watch(t, m, at(4)), "1.5 k3", "1.6 k4", "1.7 k5")
	wantNext(t, watch(t, m, at(3)), "reset 1.7 k0 k1 k2 k3 k4 k5")
	wantNext(t, watch(t, m, store.Revision{Epoch: 0, Index: 6}), "reset 1.7 k0 k1 k2 k3 k4 k5")

	// Large changes are forgotten sooner: 32 MiB are kept.
	large := statemap.New(at(1), 100)
	for i := range uint64(4) {
		txn := large.Current().Edit()
		changed := txn.Write([]store.Entry{{Key: "k", Value: make([]byte, 12<<20)}}, nil, at(2+i))
		large.Publish(txn.Commit(at(2+i)), []store.Change{{Revision: at(2 + i), Entries: changed}})
	}
	wantNext(t, watch(t, large, at(2)), "reset 1.5 k")
	wantNext(t, watch(t, large, at(3)), "1.4 k", "1.5 k")
}

func TestCloseEndsWatchesAndWaits(t *testing.T) {
	t.Parallel()
	m := statemap.New(at(1), 8)
	write(m, 2, "a")
	next := watch(t, m, at(2))
	waiting := make(chan error)
	go func() { waiting <- m.Wait(t.Context(), at(9)) }()
	m.Close()
	wantNext(t, next, fault.Unavailable.String())
	if err := <-waiting; !fault.Is(err, fault.Unavailable) {
		t.Errorf("wait: %v", err)
	}
	if e, err := m.Get(t.Context(), "a"); err != nil || e.Revision != at(2) {
		t.Errorf("get: %+v, %v", e, err)
	}
}
