package statemap

import (
	"context"
	"iter"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

func errClosed() error { return fault.New(fault.Unavailable, "the store is closed") }

// known is the present state, or Unavailable while nothing is known: an absent key would be a claim.
func (m *Map) known(ctx context.Context) (*State, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	now := m.Current()
	if now.revision.IsZero() {
		return nil, fault.New(fault.Unavailable, "no state is known yet")
	}
	return now, nil
}

// Get implements store.Reader.
func (m *Map) Get(ctx context.Context, key string) (store.Entry, error) {
	now, err := m.known(ctx)
	if err != nil {
		return store.Entry{}, err
	}
	e, ok := now.Get(key)
	if !ok {
		return store.Entry{}, fault.New(fault.NotFound, "key %.80q is absent", key)
	}
	return e, nil
}

// List implements store.Reader.
func (m *Map) List(ctx context.Context, prefix string) ([]store.Entry, store.Revision, error) {
	now, err := m.known(ctx)
	if err != nil {
		return nil, store.Revision{}, err
	}
	return now.List(prefix), now.revision, nil
}

// Wait implements store.Reader.
func (m *Map) Wait(ctx context.Context, at store.Revision) error {
	for {
		now := m.Current()
		if !now.revision.Before(at) {
			return nil
		}
		if err := m.pause(ctx, now); err != nil {
			return err
		}
	}
}

// Watch implements store.Reader. It runs on the caller's goroutine and holds nothing while the caller works.
func (m *Map) Watch(ctx context.Context, after store.Revision) iter.Seq2[store.Change, error] {
	return func(yield func(store.Change, error) bool) {
		c := cursor{at: after}
		for {
			if err := m.ended(ctx); err != nil {
				yield(store.Change{}, err)
				return
			}
			change, reset, wait := m.resume(&c)
			switch {
			case wait != nil:
				_ = m.pause(ctx, wait) // whatever ends the pause ends the watch above
			case reset != nil:
				if !yield(store.Change{Revision: reset.revision, Reset: true, Entries: reset.List("")}, nil) {
					return
				}
			default:
				if !yield(*change, nil) {
					return
				}
			}
		}
	}
}

func (m *Map) ended(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-m.closed:
		return errClosed()
	default:
		return nil
	}
}

// pause returns once a later state than now stands, or with why nobody should wait for one.
func (m *Map) pause(ctx context.Context, now *State) error {
	select {
	case <-now.replaced:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-m.closed:
		return errClosed()
	}
}
