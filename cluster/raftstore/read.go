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
	if err := ctx.Err(); err != nil {
		return store.Entry{}, err
	}
	e, ok := s.fsm.current.Load().entries.Get([]byte(key))
	if !ok {
		return store.Entry{}, fault.New(fault.NotFound, "key %.80q is absent", key)
	}
	return e, nil
}

// List implements store.Reader.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Entry, store.Revision, error) {
	if err := ctx.Err(); err != nil {
		return nil, store.Revision{}, err
	}
	now := s.fsm.current.Load()
	return now.list(prefix), now.revision, nil
}

func (s *state) list(prefix string) []store.Entry {
	var entries []store.Entry
	if prefix == "" {
		entries = make([]store.Entry, 0, s.entries.Len())
	}
	it := s.entries.Root().Iterator()
	it.SeekPrefix([]byte(prefix))
	for _, e, ok := it.Next(); ok; _, e, ok = it.Next() {
		entries = append(entries, e)
	}
	return entries
}

// Wait implements store.Reader.
func (s *Store) Wait(ctx context.Context, at store.Revision) error {
	for {
		now := s.fsm.current.Load()
		if !now.revision.Before(at) {
			return nil
		}
		select {
		case <-now.replaced:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.closed:
			return errClosed()
		}
	}
}

// Watch implements store.Reader. It runs on the caller's goroutine and holds nothing while the caller works: a slow consumer
// costs nobody else anything, and resets once it is further behind than the history reaches.
func (s *Store) Watch(ctx context.Context, after store.Revision) iter.Seq2[store.Change, error] {
	return func(yield func(store.Change, error) bool) {
		cursor := after
		for {
			select {
			case <-ctx.Done():
				yield(store.Change{}, ctx.Err())
				return
			case <-s.closed:
				yield(store.Change{}, errClosed())
				return
			default:
			}
			changes, reset, wait := s.fsm.resume(cursor)
			switch {
			case wait != nil:
				select {
				case <-wait.replaced:
				case <-ctx.Done():
				case <-s.closed:
				}
			case reset != nil:
				if !yield(store.Change{Revision: reset.revision, Reset: true, Entries: reset.list("")}, nil) {
					return
				}
				cursor = reset.revision
			default:
				// One at a time: while the consumer works on it, the others may be forgotten.
				if !yield(changes[0], nil) {
					return
				}
				cursor = changes[0].Revision
			}
		}
	}
}
