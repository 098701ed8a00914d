package raftstore

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/iapmesh/iapmesh/cluster/store"
)

// leadership is what raft last said about this member's leadership.
type leadership struct {
	mu      sync.Mutex
	lost    chan struct{} // closed when the present leadership ends; nil while this member does not lead
	changed chan struct{} // closed at the next change
	ended   bool
}

func (l *leadership) init() { l.changed = make(chan struct{}) }

// follow reads raft's notices until stop. Raft waits for it, so it never blocks.
func (l *leadership) follow(notify <-chan bool, stop <-chan struct{}) {
	for {
		select {
		case leads := <-notify:
			l.set(leads)
		case <-stop:
			l.end()
			return
		}
	}
}

func (l *leadership) set(leads bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost != nil {
		close(l.lost)
		l.lost = nil
	}
	if leads && !l.ended {
		l.lost = make(chan struct{})
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// end makes this member lead no more.
func (l *leadership) end() {
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.set(false)
}

func (l *leadership) get() (lost, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost, l.changed
}

// retryLead is how long a member waits before it leads again, if it could not give up leadership or not confirm it.
const retryLead = 250 * time.Millisecond

// Lead implements store.Store. When f begins, local reads include every commit of earlier terms.
func (s *Store) Lead(ctx context.Context, f func(context.Context, store.Term) error) error {
	for {
		term, lost, err := s.awaitLeadership(ctx)
		if err != nil {
			return err
		}
		leading, cancel := context.WithCancel(ctx)
		go func() { // ends with f
			select {
			case <-lost:
				cancel()
			case <-leading.Done():
			}
		}()
		err = f(leading, term)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		select {
		case <-lost:
			continue
		default:
		}
		s.cfg.Logger.Warn("leader's work ended before its term", "term", uint64(term), "error", err)
		if err := s.TransferLeadership(ctx); err != nil {
			if err := s.pause(ctx, retryLead); err != nil { // nobody else can lead: do it again
				return err
			}
		}
	}
}

// awaitLeadership returns the term that this member leads in, confirmed by a quorum.
func (s *Store) awaitLeadership(ctx context.Context) (store.Term, <-chan struct{}, error) {
	for {
		lost, changed := s.leadership.get()
		if lost == nil {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return 0, nil, ctx.Err()
			case <-s.closed:
				return 0, nil, closedIn(ctx)
			}
		}
		r, err := s.running()
		if err != nil {
			if err := s.pause(ctx, retryLead/10); err != nil { // raft is about to be stored
				return 0, nil, err
			}
			continue
		}
		term := r.CurrentTerm()
		if s.QuorumRound(ctx) == nil && r.State() == raft.Leader && r.CurrentTerm() == term {
			select {
			case <-lost:
				continue
			default:
				return store.Term(term), lost, nil
			}
		}
		if err := s.pause(ctx, retryLead/10); err != nil {
			return 0, nil, err
		}
	}
}

func (s *Store) pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closed:
		return closedIn(ctx)
	}
}

// closedIn is why nothing goes on in a store that is closed: what ends its Run ends those who use it, and they may come here late.
func closedIn(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return errClosed()
}
