// Package statemap is the replicated state in one process's memory: the ordered map as immutable states, the recent past from
// which watches resume, and the reads of store.Reader. Engines and followers publish states into a Map; the Map serves readers.
//
// Invariants. A reader holds an immutable state and takes no lock that a writer holds for longer than a pointer's exchange. A
// watch sees whole changes in order and never goes back. A slow watch costs nobody else anything: once it is further behind than
// the history reaches, it is reset.
//
// What it leaves to others: where states come from, whether their revisions grow, and what of them survives a restart.
package statemap

import (
	"cmp"
	"iter"
	"slices"
	"sync"
	"sync/atomic"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"github.com/iapmesh/iapmesh/cluster/store"
)

// State is one immutable state of the map. Readers hold it as long as they like.
type State struct {
	revision store.Revision // of the last commit
	entries  *iradix.Tree[store.Entry]
	replaced chan struct{} // closed once a later state stands; nil before it was published
}

// Revision is the state's.
func (s *State) Revision() store.Revision { return s.revision }

// Len is how many keys there are.
func (s *State) Len() int { return s.entries.Len() }

// Get returns a key's entry, or false if it is absent.
func (s *State) Get(key string) (store.Entry, bool) { return s.entries.Get([]byte(key)) }

// All yields the entries in key order.
func (s *State) All() iter.Seq[store.Entry] {
	return func(yield func(store.Entry) bool) {
		it := s.entries.Root().Iterator()
		for _, e, ok := it.Next(); ok; _, e, ok = it.Next() {
			if !yield(e) {
				return
			}
		}
	}
}

// List returns the entries under prefix in key order.
func (s *State) List(prefix string) []store.Entry {
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

// Txn makes a State from another. It is not safe for concurrent use.
type Txn struct{ txn *iradix.Txn[store.Entry] }

// Edit begins a Txn on the state, which stays as it is.
func (s *State) Edit() *Txn { return &Txn{s.entries.Txn()} }

// NewTxn begins a Txn on nothing.
func NewTxn() *Txn { return &Txn{iradix.New[store.Entry]().Txn()} }

// Get returns the present entry, or false if the key is absent.
func (t *Txn) Get(key string) (store.Entry, bool) { return t.txn.Get([]byte(key)) }

// Put writes an entry under its key.
func (t *Txn) Put(e store.Entry) { t.txn.Insert([]byte(e.Key), e) }

// Delete reports whether the key was there.
func (t *Txn) Delete(key string) bool {
	_, there := t.txn.Delete([]byte(key))
	return there
}

// Commit ends the Txn and returns its state, not yet published.
func (t *Txn) Commit(at store.Revision) *State { return &State{revision: at, entries: t.txn.Commit()} }

// Apply writes a change's entries.
func (t *Txn) Apply(entries []store.Entry) {
	for _, e := range entries {
		if e.Deleted {
			t.Delete(e.Key)
		} else {
			t.Put(e)
		}
	}
}

// Write applies a commit's puts and deletes at a revision, and returns what changed, in key order. It checks nothing.
func (t *Txn) Write(puts []store.Entry, deletes []string, at store.Revision) []store.Entry {
	changed := make([]store.Entry, 0, len(puts)+len(deletes))
	for _, p := range puts {
		e := store.Entry{Key: p.Key, Value: p.Value, Revision: at}
		t.Put(e)
		changed = append(changed, e)
	}
	for _, key := range deletes {
		if t.Delete(key) {
			changed = append(changed, store.Entry{Key: key, Revision: at, Deleted: true})
		}
	}
	slices.SortFunc(changed, func(a, b store.Entry) int { return cmp.Compare(a.Key, b.Key) })
	return changed
}

// Map is the present state and its recent past. It implements store.Reader. One goroutine at a time publishes; everybody reads.
type Map struct {
	current atomic.Pointer[State]
	closed  chan struct{}
	once    sync.Once

	mu      sync.Mutex // makes a state and its history one
	history history
	resets  uint64 // how often the state was replaced without a change that leads to it
}

var _ store.Reader = (*Map)(nil)

// New makes an empty Map at a revision. At zero it knows nothing yet: reads are Unavailable, and
// watches wait for the first state.
func New(at store.Revision, historyLimit int) *Map {
	m := &Map{closed: make(chan struct{}), history: history{limit: historyLimit}}
	m.Publish(NewTxn().Commit(at), nil)
	return m
}

// Current returns the present state.
func (m *Map) Current() *State { return m.current.Load() }

// Revision is the present state's.
func (m *Map) Revision() store.Revision { return m.Current().revision }

// Close ends all watches and waits with Unavailable. Get and List go on.
func (m *Map) Close() { m.once.Do(func() { close(m.closed) }) }

// Publish makes next the present state and wakes those who wait. changes leads from the present state to next; without it, or
// in another epoch, watches start anew: then next may have the same revision as the present state, but never an earlier one.
func (m *Map) Publish(next *State, changes []store.Change) {
	next.replaced = make(chan struct{})
	m.mu.Lock()
	before := m.current.Load()
	if before == nil || before.revision.Epoch != next.revision.Epoch || len(changes) == 0 {
		m.history.restart(next.revision)
		m.resets++
	} else {
		for _, c := range changes {
			m.history.append(c)
		}
	}
	m.current.Store(next)
	m.mu.Unlock()
	if before != nil {
		close(before.replaced)
	}
}

// cursor is how far a watch has come.
type cursor struct {
	at     store.Revision
	resets uint64
}

// resume returns what a watch at c yields next: a change; or a state to reset to; or a state to wait on. It moves c.
func (m *Map) resume(c *cursor) (change *store.Change, reset, wait *State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.current.Load()
	if now.revision.IsZero() || now.revision.Before(c.at) {
		return nil, nil, now // we never go back
	}
	if m.resets == c.resets || c.resets == 0 {
		if changes, ok := m.history.after(c.at); ok && !c.at.IsZero() {
			if len(changes) == 0 {
				c.resets = m.resets
				return nil, nil, now
			}
			// One at a time: while the consumer works on it, the others may be forgotten.
			*c = cursor{changes[0].Revision, m.resets}
			return &changes[0], nil, nil
		}
	}
	*c = cursor{now.revision, m.resets}
	return nil, now, nil
}
