package etcdstore

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// Lead implements store.Store. The leader key hangs on a lease of this node; there is one key, so that whoever commits can
// compare its create revision without knowing who leads. When f begins, local reads include every commit of earlier terms.
func (s *Store) Lead(ctx context.Context, f func(context.Context, store.Term) error) error {
	for {
		err := s.leadOnce(ctx, f)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if ended := s.ended(ctx); ended != nil {
			return ended
		}
		s.cfg.Logger.Warn("leadership lost, or not won", "error", err)
		if err := pause(ctx, retryFeed); err != nil {
			return err
		}
	}
}

// leadOnce waits for a term, runs f in it, and gives the term up.
func (s *Store) leadOnce(ctx context.Context, f func(context.Context, store.Term) error) error {
	lease, err := s.client.Grant(ctx, int64(s.cfg.LeaseTTL/time.Second))
	if err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	// The session outlives ctx, so that its end can revoke the lease; its own context ends with the lease.
	session, err := concurrency.NewSession(s.client, concurrency.WithLease(lease.ID), concurrency.WithTTL(int(s.cfg.LeaseTTL/time.Second)), concurrency.WithContext(s.client.Ctx()))
	if err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	defer func() {
		if err := session.Close(); err != nil {
			s.cfg.Logger.Warn("lease not revoked, it runs out by itself", "error", err)
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(session.Ctx(), cancel)()
	term, at, err := s.campaign(ctx, session.Lease())
	if err == nil {
		err = s.Wait(ctx, at)
	}
	if err != nil {
		return err
	}
	return f(ctx, term)
}

// campaign returns the term that this node has won, and a revision that includes every commit of earlier terms.
func (s *Store) campaign(ctx context.Context, lease clientv3.LeaseID) (store.Term, store.Revision, error) {
	me := s.cfg.NodeID + " " + s.cfg.Address
	for {
		resp, err := s.client.Txn(ctx).
			If(clientv3.Compare(clientv3.CreateRevision(s.keys.leader()), "=", 0)).
			Then(clientv3.OpPut(s.keys.leader(), me, clientv3.WithLease(lease))).
			Else(clientv3.OpGet(s.keys.leader())).
			Commit()
		if err != nil {
			return 0, store.Revision{}, fmt.Errorf("campaign: %w", err)
		}
		term := resp.Header.Revision
		if !resp.Succeeded {
			kvs := resp.Responses[0].GetResponseRange().GetKvs()
			if len(kvs) != 1 || clientv3.LeaseID(kvs[0].Lease) != lease {
				if err := s.vacancy(ctx, resp.Header.Revision+1); err != nil {
					return 0, store.Revision{}, err
				}
				continue
			}
			term = kvs[0].CreateRevision // an earlier attempt had won, and its answer was lost
		}
		at, err := s.Sync(ctx)
		return store.Term(term), at, err
	}
}

// vacancy returns once the leader key was deleted at revision from or later, or may have been.
func (s *Store) vacancy(ctx context.Context, from int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for resp := range s.client.Watch(clientv3.WithRequireLeader(ctx), s.keys.leader(), clientv3.WithRev(from), clientv3.WithFilterPut()) {
		if err := resp.Err(); err != nil {
			return fmt.Errorf("watch the leader: %w", err)
		}
		if len(resp.Events) > 0 {
			return nil
		}
	}
	return fault.New(fault.Unavailable, "watch the leader: the watch ended")
}
