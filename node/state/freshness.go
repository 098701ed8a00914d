package state

import (
	"encoding/json"
	"os"
	"sync"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
)

// Freshness knows how old the node's view is: the time since it asked a question whose answer it holds, and the answerer's own
// age on top. It measures monotonic time; only across a restart it must believe the wall clock, and a clock that moved backwards
// makes the view stale.
type Freshness struct {
	source *Source
	now    func() time.Time

	mu      sync.Mutex
	asOf    time.Time // the view held all that was committed then; zero: unknown; guarded by mu
	pending []pending // answers that name a revision which the view has yet to reach; guarded by mu
}

type pending struct {
	asOf time.Time
	at   revision.Revision
}

// maxPending bounds the answers that wait for the view. While they are full the newest gives way: the oldest is the next that a
// view which lags will reach.
const maxPending = 64

// NewFreshness makes a Freshness that knows nothing yet.
func NewFreshness(source *Source, now func() time.Time) *Freshness {
	return &Freshness{source: source, now: now}
}

// Answered takes the answer to a question that was asked at: the answerer's view, at revision r, was at most age old when it
// answered.
func (f *Freshness) Answered(asked time.Time, r revision.Revision, age time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settle()
	if len(f.pending) == maxPending {
		f.pending = f.pending[:maxPending-1]
	}
	f.pending = append(f.pending, pending{asked.Add(-age), r})
	f.settle()
}

// settle moves asOf to the latest answer whose revision the view has reached; f.mu is held.
func (f *Freshness) settle() {
	have := f.source.Revision()
	kept := f.pending[:0]
	for _, p := range f.pending {
		switch {
		case have.IsZero() || have.Before(p.at):
			kept = append(kept, p)
		case p.asOf.After(f.asOf):
			f.asOf = p.asOf
		}
	}
	f.pending = kept
}

// Age returns how old the view is at most; false if that is not known.
func (f *Freshness) Age() (time.Duration, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settle()
	if f.asOf.IsZero() {
		return 0, false
	}
	age := f.now().Sub(f.asOf)
	return max(age, 0), age >= 0
}

// savedFreshness is the file: wall-clock times.
type savedFreshness struct {
	AsOf     time.Time         `json:"as_of"`
	Now      time.Time         `json:"now"`      // when it was written: a later start before this is a clock that moved backwards
	Revision revision.Revision `json:"revision"` // the view's: one that is older after the restart is not as fresh
}

// Save returns what Restore needs after a restart; nil while the age is unknown.
func (f *Freshness) Save() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settle()
	if f.asOf.IsZero() {
		return nil
	}
	now := f.now()
	data, err := json.Marshal(savedFreshness{
		AsOf: now.Add(-now.Sub(f.asOf)).Round(0).UTC(), Now: now.Round(0).UTC(), Revision: f.source.Revision(),
	})
	if err != nil {
		return nil
	}
	return data
}

// Restore takes what Save returned before the restart. It counts once the view is at least as new as the saved one.
func (f *Freshness) Restore(data []byte) error {
	var saved savedFreshness
	if err := json.Unmarshal(data, &saved); err != nil {
		return fault.New(fault.Internal, "restore the age of the view: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := f.now(); !now.Before(saved.Now) && !saved.AsOf.After(saved.Now) && !saved.Revision.IsZero() {
		f.pending = append(f.pending[:min(len(f.pending), maxPending-1)], pending{saved.AsOf, saved.Revision})
		f.settle()
	}
	return nil
}

// RestoreFile restores from a file; that it is not there is no error.
func (f *Freshness) RestoreFile(path string) error {
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fault.New(fault.Internal, "restore the age of the view: %w", err)
	}
	return f.Restore(data)
}
