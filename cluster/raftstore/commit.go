package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// NotLeaderError says who leads, as far as this member knows: the caller turns there. ID and Addr are empty while nobody does.
// It is of kind Unavailable, and nothing was written.
type NotLeaderError struct {
	ID, Addr string
}

func (e *NotLeaderError) Error() string {
	if e.ID == "" {
		return "no leader is known: an election is under way, or there is no quorum"
	}
	return fmt.Sprintf("this node does not lead; %s at %s does", e.ID, e.Addr)
}

func notLeader(r *raft.Raft) error {
	addr, id := r.LeaderWithID()
	return fault.Wrap(fault.Unavailable, &NotLeaderError{ID: string(id), Addr: string(addr)})
}

// Commit implements store.Store. On another member than the leader it is refused with a NotLeaderError.
func (s *Store) Commit(ctx context.Context, t store.Txn) (store.Revision, error) {
	if err := t.Validate(); err != nil {
		return store.Revision{}, err
	}
	return s.apply(ctx, encodeCommit(t))
}

// AdvanceEpoch begins a later epoch, from which on every watch starts anew: after a restore, a recovery or a change of engine.
// An epoch that is not later is a Conflict.
func (s *Store) AdvanceEpoch(ctx context.Context, epoch uint64) (store.Revision, error) {
	if epoch == 0 {
		return store.Revision{}, fault.New(fault.Invalid, "epoch 0: epochs begin at %d", firstEpoch)
	}
	return s.apply(ctx, encodeEpoch(epoch))
}

func (s *Store) apply(ctx context.Context, cmd []byte) (store.Revision, error) {
	if err := ctx.Err(); err != nil {
		return store.Revision{}, err // nothing was proposed yet: not in doubt
	}
	r, err := s.running()
	if err != nil {
		return store.Revision{}, err
	}
	if r.State() != raft.Leader {
		return store.Revision{}, notLeader(r)
	}
	start := time.Now()
	var future raft.ApplyFuture
	// Proposing blocks while the leader's disk is busy, so it must not run on this goroutine. It always ends: with the
	// commit, with leadership, or with raft.
	err = await(ctx, func() error {
		f := r.Apply(cmd, 0)
		if err := f.Error(); err != nil {
			return err
		}
		future = f
		return nil
	})
	switch {
	case err == nil:
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return store.Revision{}, fmt.Errorf("%w: %w", store.ErrInDoubt, err)
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return store.Revision{}, notLeader(r)
	default: // leadership lost, shut down, or the disk failed: the entry may be in somebody's log
		return store.Revision{}, fmt.Errorf("%w: %w", store.ErrInDoubt, err)
	}
	o, ok := future.Response().(outcome)
	if !ok {
		return store.Revision{}, fault.New(fault.Internal, "the state machine answered %T", future.Response())
	}
	if o.err == nil {
		s.metrics.commitSeconds.Observe(time.Since(start).Seconds())
	}
	return o.revision, o.err
}

// await runs f on a goroutine of its own and returns its error, or the context's if that ends first.
func await(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Sync implements store.Store. It costs a round to a quorum, which concurrent callers share. On another member than the leader
// it is refused with a NotLeaderError.
func (s *Store) Sync(ctx context.Context) (store.Revision, error) {
	if err := s.QuorumRound(ctx); err != nil {
		return store.Revision{}, err
	}
	return s.fsm.state.Revision(), nil
}

// QuorumRound returns once a quorum has confirmed, in a round that began after the call, that this member leads and that its
// state includes every commit acknowledged before the call. The leader's view is then as old as the call.
//
// It writes a barrier to the log: raft's VerifyLeader counts answers to requests that were sent before the call, which proves
// less. Callers that come while a round is under way share the next one.
func (s *Store) QuorumRound(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r, err := s.running()
	if err != nil {
		return err
	}
	if r.State() != raft.Leader {
		return notLeader(r)
	}
	mine := s.rounds.join(func() error {
		err := r.Barrier(0).Error()
		switch {
		case err == nil:
			return nil
		case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrLeadershipTransferInProgress):
			return notLeader(r)
		}
		return fault.New(fault.Unavailable, "quorum round: %w", err)
	})
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rounds batches: at most one round runs, and one waits for it.
type rounds struct {
	mu      sync.Mutex
	running bool
	next    *round
}

type round struct {
	done chan struct{}
	err  error // once done
}

// join returns a round that begins after the call.
func (b *rounds) join(run func() error) *round {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil {
		b.next = &round{done: make(chan struct{})}
	}
	if !b.running {
		b.running = true
		go b.loop(run) // ends with the last caller's round, and every round ends with raft
	}
	return b.next
}

func (b *rounds) loop(run func() error) {
	for {
		b.mu.Lock()
		r := b.next
		b.next = nil
		if r == nil {
			b.running = false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		r.err = run()
		close(r.done)
	}
}
