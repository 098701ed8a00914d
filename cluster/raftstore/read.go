package raftstore

import (
	"context"
	"iter"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

func errClosed() error { return fault.New(fault.Unavailable, "the store is closed") }

// Get implements store.Reader.
func (s *Store) Get(ctx context.Context, key string) (store.Entry, error) {
	return s.fsm.state.Get(ctx, key)
}

// List implements store.Reader.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Entry, store.Revision, error) {
	return s.fsm.state.List(ctx, prefix)
}

// Wait implements store.Reader.
func (s *Store) Wait(ctx context.Context, at store.Revision) error {
	return s.fsm.state.Wait(ctx, at)
}

// Watch implements store.Reader. It runs on the caller's goroutine and holds nothing while the caller works: a slow consumer
// costs nobody else anything, and resets once it is further behind than the history reaches.
func (s *Store) Watch(ctx context.Context, after store.Revision) iter.Seq2[store.Change, error] {
	return s.fsm.state.Watch(ctx, after)
}
