package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

var errOtherEpoch = errors.New("another epoch has begun")

// Commit implements store.Store: one etcd transaction. Any control node can commit; only the term fences.
func (s *Store) Commit(ctx context.Context, t store.Txn) (store.Revision, error) {
	if err := t.Validate(); err != nil {
		return store.Revision{}, err
	}
	e := s.epochs.Load()
	if e == nil {
		return store.Revision{}, fault.New(fault.Unavailable, "commit: etcd was not read yet")
	}
	// The epoch that the revision is to name.
	conditions := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(s.keys.epoch()), "=", int64(e.current.Index))}
	reasons := []clientv3.Op{clientv3.OpGet(s.keys.epoch(), clientv3.WithKeysOnly()), clientv3.OpGet(s.keys.leader(), clientv3.WithKeysOnly())}
	if t.Term != 0 {
		if t.Term > math.MaxInt64 {
			return store.Revision{}, fault.New(fault.Conflict, "commit under term %d, which nobody won", t.Term)
		}
		conditions = append(conditions, clientv3.Compare(clientv3.CreateRevision(s.keys.leader()), "=", int64(t.Term)))
	}
	for _, g := range t.Guards {
		if g.Revision.Index > math.MaxInt64 || !g.Revision.IsZero() && e.revision(int64(g.Revision.Index)) != g.Revision {
			return store.Revision{}, fault.New(fault.Conflict, "commit: key %q was not last written at %v, which is of another epoch", g.Key, g.Revision)
		}
		conditions = append(conditions, clientv3.Compare(clientv3.ModRevision(s.keys.data(g.Key)), "=", int64(g.Revision.Index)))
		reasons = append(reasons, clientv3.OpGet(s.keys.data(g.Key), clientv3.WithKeysOnly()))
	}
	writes := make([]clientv3.Op, 0, len(t.Puts)+len(t.Deletes)+1)
	for _, p := range t.Puts {
		writes = append(writes, clientv3.OpPut(s.keys.data(p.Key), string(p.Value)))
	}
	for _, key := range t.Deletes {
		writes = append(writes, clientv3.OpDelete(s.keys.data(key)))
	}
	writes = append(writes, clientv3.OpPut(s.keys.head(), s.cfg.NodeID))
	resp, err := s.commit(ctx, conditions, writes, reasons)
	if err != nil {
		return store.Revision{}, err
	}
	if !resp.Succeeded {
		err := refusal(t, e, resp)
		if errors.Is(err, errOtherEpoch) {
			s.distrust()
		}
		return store.Revision{}, err
	}
	return store.Revision{Epoch: e.current.Epoch, Index: uint64(resp.Header.Revision)}, nil
}

// AdvanceEpoch begins a later epoch, from which on every watch starts anew: after a restore, a recovery or a change of engine.
// An epoch that is not later is a Conflict.
func (s *Store) AdvanceEpoch(ctx context.Context, epoch uint64) (store.Revision, error) {
	e := s.epochs.Load()
	switch {
	case epoch == 0:
		return store.Revision{}, fault.New(fault.Invalid, "epoch 0: epochs begin at %d", firstEpoch)
	case e == nil:
		return store.Revision{}, fault.New(fault.Unavailable, "advance epoch: etcd was not read yet")
	case epoch <= e.current.Epoch:
		return store.Revision{}, fault.New(fault.Conflict, "epoch %d is not after the present epoch %d", epoch, e.current.Epoch)
	case len(e.past)+2 > maxEpochs:
		return store.Revision{}, fault.New(fault.Exhausted, "more than %d epochs", maxEpochs)
	}
	resp, err := s.commit(ctx,
		[]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(s.keys.epoch()), "=", int64(e.current.Index))},
		[]clientv3.Op{clientv3.OpPut(s.keys.epoch(), e.next(epoch)), clientv3.OpPut(s.keys.head(), s.cfg.NodeID)}, nil)
	if err != nil {
		return store.Revision{}, err
	}
	if !resp.Succeeded {
		s.distrust()
		return store.Revision{}, fault.New(fault.Conflict, "%w after %d", errOtherEpoch, e.current.Epoch)
	}
	return store.Revision{Epoch: epoch, Index: uint64(resp.Header.Revision)}, nil
}

func (s *Store) commit(ctx context.Context, conditions []clientv3.Cmp, writes, reasons []clientv3.Op) (*clientv3.TxnResponse, error) {
	if err := s.ended(ctx); err != nil {
		return nil, err // nothing was sent: not in doubt
	}
	start := time.Now()
	resp, err := s.client.Txn(ctx).If(conditions...).Then(writes...).Else(reasons...).Commit()
	if err != nil {
		return nil, failure(err)
	}
	if resp.Succeeded {
		s.metrics.commitSeconds.Observe(time.Since(start).Seconds())
	}
	return resp, nil
}

// failure is the error of a transaction that was sent: in doubt, unless etcd said that it refused it.
func failure(err error) error {
	var refused rpctypes.EtcdError
	code := status.Code(err)
	if errors.As(err, &refused) {
		code = refused.Code()
	}
	switch code {
	case codes.InvalidArgument, codes.ResourceExhausted, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
		return fault.New(fault.FromCode(code), "commit: etcd: %w", err)
	}
	return fmt.Errorf("%w: %w", store.ErrInDoubt, err)
}

// refusal says which condition failed; reasons holds epoch, leader and the guards' keys as they were.
func refusal(t store.Txn, e *epochs, resp *clientv3.TxnResponse) error {
	if len(resp.Responses) != len(t.Guards)+2 {
		return fault.New(fault.Internal, "commit: etcd answered %d reads of %d", len(resp.Responses), len(t.Guards)+2)
	}
	if mod, _ := revisions(resp, 0); uint64(mod) != e.current.Index {
		return fault.New(fault.Conflict, "commit: %w after %d", errOtherEpoch, e.current.Epoch)
	}
	if _, create := revisions(resp, 1); t.Term != 0 && uint64(create) != uint64(t.Term) {
		return fault.New(fault.Conflict, "commit under term %d: the present term is %d", t.Term, create)
	}
	for i, g := range t.Guards {
		if mod, _ := revisions(resp, i+2); uint64(mod) != g.Revision.Index {
			return fault.New(fault.Conflict, "commit: key %q was last written at %s, not %s", g.Key, written(uint64(mod)), written(g.Revision.Index))
		}
	}
	return fault.New(fault.Conflict, "commit: a condition failed")
}

// revisions of the i-th key that was read; zero if it is absent.
func revisions(resp *clientv3.TxnResponse, i int) (mod, create int64) {
	if kvs := resp.Responses[i].GetResponseRange().GetKvs(); len(kvs) == 1 {
		return kvs[0].ModRevision, kvs[0].CreateRevision
	}
	return 0, 0
}

func written(index uint64) string {
	if index == 0 {
		return "no revision (absent)"
	}
	return fmt.Sprint("index ", index)
}

// Sync implements store.Store: a linearizable read of the head.
func (s *Store) Sync(ctx context.Context) (store.Revision, error) {
	if err := s.ended(ctx); err != nil {
		return store.Revision{}, err
	}
	resp, err := s.client.Txn(ctx).Then(clientv3.OpGet(s.keys.epoch()), clientv3.OpGet(s.keys.head(), clientv3.WithKeysOnly())).Commit()
	if err != nil {
		if ctx.Err() != nil {
			return store.Revision{}, ctx.Err()
		}
		return store.Revision{}, fault.New(fault.Unavailable, "sync: etcd: %w", err)
	}
	epoch, head := resp.Responses[0].GetResponseRange().GetKvs(), resp.Responses[1].GetResponseRange().GetKvs()
	if len(epoch) != 1 || len(head) != 1 {
		return store.Revision{}, fault.New(fault.Unavailable, "sync: etcd holds no mesh under %s", s.keys.prefix)
	}
	e, err := parseEpochs(epoch[0].Value, epoch[0].ModRevision)
	if err != nil {
		return store.Revision{}, err
	}
	if mine := s.epochs.Load(); mine != nil && (mine.current != e.current || s.cluster.Load() != resp.Header.ClusterId) {
		s.distrust()
	}
	return e.revision(head[0].ModRevision), nil
}

// ended returns why nothing should be asked of etcd any more.
func (s *Store) ended(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closed:
		return fault.New(fault.Unavailable, "the store is closed")
	default:
		return nil
	}
}
