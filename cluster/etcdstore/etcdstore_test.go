package etcdstore_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/iapmesh/iapmesh/cluster/etcdstore"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/cluster/storetest"
	"github.com/iapmesh/iapmesh/internal/fault"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t) // one for all, as a user's is: each harness has a prefix of its own
	var meshes atomic.Int32
	t.Run("suite", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) storetest.Harness {
			cfg := config(etcd, fmt.Sprintf("/mesh-%d/", meshes.Add(1)), "control-1")
			m := open(t, cfg)
			return storetest.Harness{
				Store: m,
				Reopen: func(t *testing.T) store.Store {
					m.stop()
					m = open(t, cfg)
					return m
				},
				Forget: func(t *testing.T) {
					var rev store.Revision
					for range history + 1 {
						rev = mustCommit(t, m, put("forget/it", "now"))
					}
					mustWait(t, m, rev)
				},
				Lag: history + 1,
			}
		})
	})
}

// raw is a plain client of the etcd.
func raw(t *testing.T, etcd string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// What a node has missed may be compacted: it reads everything, and its watches start anew.
func TestACompactedPastIsReadAnew(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t)
	w := newWay(t, etcd)
	near, far := open(t, config(etcd, "/m/", "control-1")), open(t, config(w.addr, "/m/", "control-2"))
	rev := mustCommit(t, near, put("k", "before", "gone", "x"))
	mustWait(t, far, rev)
	w.Cut()
	if got := value(t, far, "k"); got != "before" {
		t.Errorf("cut off, k = %q", got)
	}
	mustCommit(t, near, store.Txn{Deletes: []string{"gone"}})
	rev2 := mustCommit(t, near, put("k", "after"))
	if _, err := raw(t, etcd).Compact(t.Context(), int64(rev2.Index)); err != nil {
		t.Fatal(err)
	}
	w.Heal(etcd)
	mustWait(t, far, rev2)
	for c, err := range far.Watch(t.Context(), rev) {
		if err != nil || !c.Reset || len(c.Entries) != 1 || string(c.Entries[0].Value) != "after" {
			t.Errorf("the first change: %+v, %v; want a reset that holds k alone", c, err)
		}
		break
	}
	rev3 := mustCommit(t, far, put("k", "later"))
	mustWait(t, far, rev3)
	mustWait(t, near, rev3)
}

// A leader that is cut off loses its lease and is told; whoever leads next is fenced against it.
func TestACutOffLeaderIsFenced(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t)
	w := newWay(t, etcd)
	brief := func(addr, node string) member {
		cfg := config(addr, "/m/", node)
		cfg.LeaseTTL = 10 * time.Second // what the cut costs; long enough for a machine that stands still
		return open(t, cfg)
	}
	old, next := brief(w.addr, "control-1"), brief(etcd, "control-2")
	lead := func(m member) (terms chan store.Term, lost chan struct{}) {
		terms, lost = make(chan store.Term), make(chan struct{}, 8)
		go m.Lead(t.Context(), func(ctx context.Context, term store.Term) error {
			select {
			case terms <- term:
			case <-ctx.Done():
			}
			<-ctx.Done()
			lost <- struct{}{}
			return ctx.Err()
		})
		return terms, lost
	}
	terms, lost := lead(old)
	term := <-terms
	nextTerms, _ := lead(next)
	txn := put("k", "old")
	txn.Term = term
	mustWait(t, next, mustCommit(t, old, txn))
	eventually(t, "both know the leader", func() bool {
		a, _ := old.Leader()
		b, addr := next.Leader()
		return a == "control-1" && b == "control-1" && addr == "control-1.example:7443"
	})

	w.Cut()
	newTerm := <-nextTerms
	<-lost
	if newTerm <= term {
		t.Errorf("term %d after %d", newTerm, term)
	}
	if got := value(t, next, "k"); got != "old" {
		t.Errorf("the new leader began without the old one's last commit: k = %q", got)
	}
	w.Heal(etcd)
	txn = put("k", "stale")
	txn.Term = term
	eventually(t, "the old leader's commit is refused", func() bool {
		_, err := old.Commit(t.Context(), txn)
		return fault.Is(err, fault.Conflict)
	})
	txn = put("k", "new")
	txn.Term = newTerm
	mustWait(t, old, mustCommit(t, next, txn))
	if got := value(t, old, "k"); got != "new" {
		t.Errorf("k = %q", got)
	}
}

func TestALaterEpoch(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t)
	m, other := open(t, config(etcd, "/m/", "control-1")), open(t, config(etcd, "/m/", "control-2"))
	written := mustCommit(t, m, put("k", "1"))
	mustWait(t, m, written)
	if _, err := m.AdvanceEpoch(t.Context(), 1); !fault.Is(err, fault.Conflict) {
		t.Errorf("the present epoch again: %v", err)
	}
	began, err := m.AdvanceEpoch(t.Context(), 3)
	if err != nil || began.Epoch != 3 {
		t.Fatalf("advance: %v, %v", began, err)
	}
	for _, s := range []member{m, other} {
		mustWait(t, s, began)
		for c, err := range s.Watch(t.Context(), written) {
			if err != nil || !c.Reset || c.Revision != began {
				t.Errorf("the first change of the epoch: %+v, %v", c, err)
			}
			break
		}
		if e, err := s.Get(t.Context(), "k"); err != nil || e.Revision != written {
			t.Errorf("k was written at %v, it says %v (%v)", written, e.Revision, err)
		}
	}
	txn := put("k", "2")
	txn.Guards = []store.Guard{{Key: "k", Revision: store.Revision{Epoch: 3, Index: written.Index}}}
	if _, err := other.Commit(t.Context(), txn); !fault.Is(err, fault.Conflict) {
		t.Errorf("a guard on an old index in the new epoch: %v", err)
	}
	txn.Guards[0].Revision = written
	rev := mustCommit(t, other, txn)
	if rev.Epoch != 3 || !began.Before(rev) {
		t.Errorf("revision %v after %v", rev, began)
	}
	// Whoever starts later tells the epochs apart, too.
	third := open(t, config(etcd, "/m/", "control-3"))
	mustWait(t, third, mustCommit(t, m, put("j", "1")))
	if e, err := third.Get(t.Context(), "k"); err != nil || e.Revision != rev {
		t.Errorf("k was written at %v, it says %v (%v)", rev, e.Revision, err)
	}
}

// An etcd that was restored from a backup is behind: under the same epoch it is not believed, under a later one it is.
func TestARestoredEtcdIsBelievedUnderALaterEpoch(t *testing.T) {
	t.Parallel()
	etcd, restored := startEtcd(t), startEtcd(t)
	w := newWay(t, etcd)
	m := open(t, config(w.addr, "/m/", "control-1"))
	var rev store.Revision
	for i := range 20 {
		rev = mustCommit(t, m, put("k", fmt.Sprint(i)))
	}
	mustWait(t, m, rev)
	backup := open(t, config(restored, "/m/", "operator"))
	mustCommit(t, backup, put("k", "from the backup"))
	w.Heal(restored)
	eventually(t, "the restored etcd answers", func() bool {
		at, err := m.Sync(t.Context())
		return err == nil && at.Before(rev)
	})
	if got := value(t, m, "k"); got != "19" || m.Revision() != rev {
		t.Errorf("it went back: k = %q at %v", got, m.Revision())
	}
	began, err := backup.AdvanceEpoch(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the later epoch", func() bool {
		_, err := m.Sync(t.Context())
		return err == nil && !m.Revision().Before(began)
	})
	if got := value(t, m, "k"); got != "from the backup" {
		t.Errorf("k = %q under the later epoch", got)
	}
}

// Another cluster that is ahead is believed as a whole, never on top of what was.
func TestAnotherClusterIsReadWhole(t *testing.T) {
	t.Parallel()
	first, second := startEtcd(t), startEtcd(t)
	w := newWay(t, first)
	m, there := open(t, config(w.addr, "/m/", "control-1")), open(t, config(second, "/m/", "control-2"))
	have := mustCommit(t, m, put("k", "first", "first", ""))
	mustWait(t, m, have)
	behind := mustCommit(t, there, put("k", "second"))
	w.Heal(second)
	for behind.Before(have) || behind == have {
		behind = mustCommit(t, there, put("second", ""))
	}
	rev := mustCommit(t, there, put("third", ""))
	eventually(t, "the second cluster's state", func() bool {
		_, err := m.Sync(t.Context())
		return err == nil && !m.Revision().Before(rev)
	})
	mustWait(t, m, mustCommit(t, there, put("fourth", "")))
	_, err := m.Get(t.Context(), "first")
	if !fault.Is(err, fault.NotFound) || value(t, m, "k") != "second" {
		t.Errorf("first: %v, k = %q: a mixture of two clusters", err, value(t, m, "k"))
	}
}

func TestWithoutEtcd(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t)
	w := newWay(t, "")
	s, err := etcdstore.Open(config(w.addr, "/m/", "control-1"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	if _, err := s.Get(t.Context(), "k"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("get before anything was read: %v", err)
	}
	if _, err := s.Commit(t.Context(), put("k", "v")); !fault.Is(err, fault.Unavailable) || errors.Is(err, store.ErrInDoubt) {
		t.Errorf("commit before anything was read: %v", err)
	}
	w.Heal(etcd)
	mustWait(t, s, store.Revision{Epoch: 1})
	mustWait(t, s, mustCommit(t, s, put("k", "v")))
	w.Cut()
	if got := value(t, s, "k"); got != "v" {
		t.Errorf("reads without etcd: %q", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
	if err := s.Wait(t.Context(), store.Revision{Epoch: 9}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("wait after the end: %v", err)
	}
}
