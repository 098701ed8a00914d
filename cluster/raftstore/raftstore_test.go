package raftstore_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/cluster/raftstore"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/cluster/storetest"
)

// history is small, so that the suite outruns it quickly.
const history = 32

func TestConformanceAlone(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		g := newGroup(t, 1, func(_ int, c *raftstore.Config) { c.History = history })
		m := g.members[0]
		return storetest.Harness{
			Store: m,
			Reopen: func(t *testing.T) store.Store {
				m.end(t)
				m = g.start(m.cfg, m.addr)
				g.members[0] = m
				return g.elect(m)
			},
			Forget: func(t *testing.T) { mustWait(t, m, forget(t, m)) },
			Lag:    history + 1,
		}
	})
}

// The whole group as one store, whoever leads.
func TestConformanceOfThree(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		g := newGroup(t, 3, func(_ int, c *raftstore.Config) { c.History = history })
		return storetest.Harness{
			Store: groupStore{Reader: g.members[0], group: g},
			Reopen: func(t *testing.T) store.Store {
				if err := g.end(); err != nil {
					t.Error(err)
				}
				for i, m := range g.members {
					g.members[i] = g.start(m.cfg, m.addr)
				}
				g.elect(g.members...) // the suite does not commit before there is one
				return groupStore{Reader: g.members[0], group: g}
			},
			Forget: func(t *testing.T) { mustWait(t, g.members[0], forget(t, g.leader())) },
			Lag:    history + 1,
		}
	})
}

// groupStore reads at one member, commits wherever the leader is, and leads at all of them.
type groupStore struct {
	store.Reader
	group *group
}

func (s groupStore) Sync(ctx context.Context) (rev store.Revision, err error) {
	err = s.atLeader(ctx, func(m *member) (err error) { rev, err = m.Sync(ctx); return err })
	return rev, err
}

func (s groupStore) Commit(ctx context.Context, t store.Txn) (rev store.Revision, err error) {
	err = s.atLeader(ctx, func(m *member) (err error) { rev, err = m.Commit(ctx, t); return err })
	return rev, err
}

// atLeader turns to other members as long as the one asked says that it does not lead.
func (s groupStore) atLeader(ctx context.Context, do func(*member) error) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		var elsewhere *raftstore.NotLeaderError
		for _, m := range s.group.members {
			if err := do(m); !errors.As(err, &elsewhere) {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s groupStore) Lead(ctx context.Context, f func(context.Context, store.Term) error) error {
	ctx, stop := context.WithCancel(ctx)
	errs := make(chan error)
	for _, m := range s.group.members {
		go func() { errs <- m.Lead(ctx, f) }()
	}
	err := <-errs
	stop()
	for range s.group.members[1:] {
		<-errs
	}
	return err
}

// A follower's reads, with the leader as source.
func TestConformanceOfAFollower(t *testing.T) {
	t.Parallel()
	storetest.RunReader(t, func(t *testing.T) storetest.ReaderHarness {
		g := newGroup(t, 3, func(_ int, c *raftstore.Config) { c.History = history })
		leader := g.leader()
		follower := g.others(leader)[0]
		return storetest.ReaderHarness{
			Reader: follower,
			Commit: leader.Commit,
			Reopen: func(t *testing.T) store.Reader {
				follower.end(t)
				return g.start(follower.cfg, follower.addr)
			},
			Forget: func(t *testing.T) {
				mustWait(t, follower, forget(t, leader)) // what it has not heard yet it cannot have forgotten
			},
			Lag: history + 1,
		}
	})
}

// forget makes more changes than a history holds, and returns the last one's revision.
func forget(t *testing.T, s store.Store) (last store.Revision) {
	t.Helper()
	for range history + 1 {
		last = mustCommit(t, s, put("forget/it", "now"))
	}
	return last
}
