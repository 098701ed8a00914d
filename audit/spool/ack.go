package spool

import (
	"maps"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// ack is what an aggregator has stored of a run.
type ack struct {
	Next uint64     // after the last record stored
	Root audit.Hash // of the tree of that size
	Note []byte     // the checkpoint, countersigned
}

type position struct {
	run  audit.Run
	next uint64
}

// Acknowledge notes, durably, that an aggregator has stored all records of a run before next, whose tree has this root, and frees the
// segments that hold nothing else. signed is the checkpoint with the aggregator's countersignature. The root must be that of a
// checkpoint which a Reader has handed out: Invalid if there is none of this size, Conflict if the root is another.
func (s *Spool) Acknowledge(run audit.Run, next uint64, root audit.Hash, signed []byte) error {
	s.mu.Lock()
	want, ok := s.roots[position{run, next}]
	switch {
	case !ok:
		s.mu.Unlock()
		return fault.New(fault.Invalid, "acknowledge run %s at %d: no such checkpoint was shipped", run, next)
	case want != root:
		s.mu.Unlock()
		return fault.New(fault.Conflict, "acknowledge run %s at %d: root %x, ours is %x", run, next, root[:8], want[:8])
	}
	maps.DeleteFunc(s.roots, func(p position, _ audit.Hash) bool { return p.run == run && p.next < next })
	if s.acks[run].Next == next && next > 0 { // an idle checkpoint: nothing new is stored
		s.mu.Unlock()
		return nil
	}
	s.acks[run] = ack{Next: next, Root: root, Note: signed}
	file := acksFile{}
	for run, a := range s.acks {
		file[run.String()] = a
	}
	s.mu.Unlock()

	if err := writeJSON(s.path("acks"), file); err != nil {
		return fault.New(fault.Unavailable, "acknowledge run %s at %d: %w", run, next, err)
	}
	s.mu.Lock()
	released := s.releasable()
	s.mu.Unlock()
	return s.discard(released)
}

// acksFile is the form of the file "acks": run → what is stored of it.
type acksFile map[string]ack

// SetLag reports how old the oldest record is that no aggregator has acknowledged; the shipper knows.
func (s *Spool) SetLag(d time.Duration) { s.metrics.lag.Set(d.Seconds()) }

// Distrust makes the next Open begin a new run, whatever happens. The shipper calls it when an aggregator has another history of this
// run: the directory was restored from a copy, or copied.
func (s *Spool) Distrust() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.distrusted = true
}
