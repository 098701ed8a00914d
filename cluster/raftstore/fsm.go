package raftstore

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
	"github.com/hashicorp/raft"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// firstEpoch is the epoch of a mesh that was never restored or recovered.
const firstEpoch = 1

type tree = iradix.Tree[store.Entry]

// state is one immutable state of the map. Readers hold it as long as they like.
type state struct {
	revision store.Revision // of the last commit
	entries  *tree
	replaced chan struct{} // closed once a later state stands
}

// fsm is the replicated state machine. Raft calls ApplyBatch, Restore and Snapshot from one goroutine; everybody else reads.
//
// It skips what it has applied already, because a restarted member replays its committed log before raft runs (see Open), and
// raft then replays it again.
type fsm struct {
	current atomic.Pointer[state]
	applied atomic.Uint64 // index of the last log entry applied

	mu      sync.Mutex // makes a state and its history one
	history history

	onCommitted func(index uint64) // called with the last index of each batch from raft, before readers see it
}

func newFSM(historyLimit int) *fsm {
	f := &fsm{history: history{limit: historyLimit}}
	f.publish(&state{revision: store.Revision{Epoch: firstEpoch}, entries: iradix.New[store.Entry]()}, nil)
	return f
}

// outcome is what ApplyBatch answers for a commit: its revision, or why it was refused.
type outcome struct {
	revision store.Revision
	err      error
}

// Apply implements raft.FSM.
func (f *fsm) Apply(log *raft.Log) any { return f.ApplyBatch([]*raft.Log{log})[0] }

// ApplyBatch implements raft.BatchingFSM. Readers see the batch at once, watches each of its commits.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	answers := make([]any, len(logs))
	if f.onCommitted != nil && len(logs) > 0 {
		f.onCommitted(logs[len(logs)-1].Index)
	}
	f.applyAll(logs, answers)
	return answers
}

func (f *fsm) applyAll(logs []*raft.Log, answers []any) {
	before := f.current.Load()
	after := &state{revision: before.revision}
	txn := before.entries.Txn()
	var changes []store.Change
	var index uint64
	for i, log := range logs {
		if log.Index <= f.applied.Load() || log.Index <= index {
			continue
		}
		index = log.Index
		if log.Type != raft.LogCommand {
			continue
		}
		c, err := decodeCommand(log.Data)
		switch {
		case err != nil:
			answers[i] = outcome{err: err}
		case c.epoch != 0:
			if c.epoch <= after.revision.Epoch {
				answers[i] = outcome{err: fault.New(fault.Conflict, "epoch %d is not after the present epoch %d", c.epoch, after.revision.Epoch)}
				continue
			}
			after.revision = store.Revision{Epoch: c.epoch, Index: log.Index}
			answers[i] = outcome{revision: after.revision}
			changes = nil // what came before belongs to another epoch, in which no watch resumes
		default:
			revision := store.Revision{Epoch: after.revision.Epoch, Index: log.Index}
			entries, err := applyTxn(txn, c.txn, revision, log.Term)
			if err != nil {
				answers[i] = outcome{err: err}
				continue
			}
			after.revision = revision
			answers[i] = outcome{revision: revision}
			changes = append(changes, store.Change{Revision: revision, Entries: entries})
		}
	}
	if after.revision != before.revision {
		after.entries = txn.Commit()
		f.publish(after, changes)
	}
	if index > 0 {
		f.applied.Store(index)
	}
}

// applyTxn writes t and returns what changed, in key order; or it writes nothing and returns a Conflict.
func applyTxn(entries *iradix.Txn[store.Entry], t store.Txn, at store.Revision, term uint64) ([]store.Entry, error) {
	if t.Term != 0 && uint64(t.Term) != term {
		return nil, fault.New(fault.Conflict, "commit under term %d: term %d has begun", t.Term, term)
	}
	for _, g := range t.Guards {
		e, _ := entries.Get([]byte(g.Key)) // zero if absent
		if e.Revision != g.Revision {
			return nil, fault.New(fault.Conflict, "commit: key %q was last written at %s, not %s", g.Key, written(e.Revision), written(g.Revision))
		}
	}
	changed := make([]store.Entry, 0, len(t.Puts)+len(t.Deletes))
	for _, p := range t.Puts {
		e := store.Entry{Key: p.Key, Value: p.Value, Revision: at}
		entries.Insert([]byte(p.Key), e)
		changed = append(changed, e)
	}
	for _, key := range t.Deletes {
		if _, there := entries.Delete([]byte(key)); there {
			changed = append(changed, store.Entry{Key: key, Revision: at, Deleted: true})
		}
	}
	slices.SortFunc(changed, func(a, b store.Entry) int { return cmp.Compare(a.Key, b.Key) })
	return changed, nil
}

func written(r store.Revision) string {
	if r.IsZero() {
		return "no revision (absent)"
	}
	return r.String()
}

// publish makes next the current state and wakes those who wait. changes leads from the present state to next; if it does not
// (another epoch, or a restored snapshot), watches start anew.
func (f *fsm) publish(next *state, changes []store.Change) {
	next.replaced = make(chan struct{})
	f.mu.Lock()
	before := f.current.Load()
	if before == nil || before.revision.Epoch != next.revision.Epoch || len(changes) == 0 {
		f.history.restart(next.revision)
	} else {
		for _, c := range changes {
			f.history.append(c)
		}
	}
	f.current.Store(next)
	f.mu.Unlock()
	if before != nil {
		close(before.replaced)
	}
}

// resume returns what a watch after cursor yields next: changes; or a state to reset to; or a state to wait on.
func (f *fsm) resume(cursor store.Revision) (changes []store.Change, reset, wait *state) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.current.Load()
	if cursor.IsZero() {
		return nil, now, nil
	}
	if !cursor.Before(now.revision) {
		return nil, nil, now // also if cursor is ahead of us: we never go back
	}
	if changes, ok := f.history.after(cursor); ok {
		return changes, nil, nil
	}
	return nil, now, nil
}

// Snapshot implements raft.FSM.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	return &fsmSnapshot{state: f.current.Load(), applied: f.applied.Load()}, nil
}

// Restore implements raft.FSM.
func (f *fsm) Restore(r io.ReadCloser) error {
	s, applied, err := decodeSnapshot(r)
	if err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	if applied < f.applied.Load() {
		return fault.New(fault.Internal, "restore snapshot: it ends at index %d, but %d is applied: the state would go back", applied, f.applied.Load())
	}
	f.publish(s, nil)
	f.applied.Store(applied)
	return nil
}
