package raftstore

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/iapmesh/iapmesh/cluster/statemap"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// firstEpoch is the epoch of a mesh that was never restored or recovered.
const firstEpoch = 1

// fsm is the replicated state machine. Raft calls ApplyBatch, Restore and Snapshot from one goroutine; everybody else reads.
//
// It skips what it has applied already, because a restarted member replays its committed log before raft runs (see Open), and
// raft then replays it again.
type fsm struct {
	state   *statemap.Map
	applied atomic.Uint64 // index of the last log entry applied

	onCommitted func(notice) // called with the last index of each batch from raft, before readers see it
}

func newFSM(historyLimit int) *fsm {
	return &fsm{state: statemap.New(store.Revision{Epoch: firstEpoch}, historyLimit)}
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
		last := logs[len(logs)-1]
		f.onCommitted(notice{last.Index, last.Term})
	}
	f.applyAll(logs, answers)
	return answers
}

func (f *fsm) applyAll(logs []*raft.Log, answers []any) {
	before := f.state.Current()
	at := before.Revision()
	txn := before.Edit()
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
			if c.epoch <= at.Epoch {
				answers[i] = outcome{err: fault.New(fault.Conflict, "epoch %d is not after the present epoch %d", c.epoch, at.Epoch)}
				continue
			}
			at = store.Revision{Epoch: c.epoch, Index: log.Index}
			answers[i] = outcome{revision: at}
			changes = nil // what came before belongs to another epoch, in which no watch resumes
		default:
			revision := store.Revision{Epoch: at.Epoch, Index: log.Index}
			entries, err := applyTxn(txn, c.txn, revision, log.Term)
			if err != nil {
				answers[i] = outcome{err: err}
				continue
			}
			at = revision
			answers[i] = outcome{revision: revision}
			changes = append(changes, store.Change{Revision: revision, Entries: entries})
		}
	}
	if at != before.Revision() {
		f.state.Publish(txn.Commit(at), changes)
	}
	if index > 0 {
		f.applied.Store(index)
	}
}

// applyTxn writes t and returns what changed, in key order; or it writes nothing and returns a Conflict.
func applyTxn(entries *statemap.Txn, t store.Txn, at store.Revision, term uint64) ([]store.Entry, error) {
	if t.Term != 0 && uint64(t.Term) != term {
		return nil, fault.New(fault.Conflict, "commit under term %d: term %d has begun", t.Term, term)
	}
	for _, g := range t.Guards {
		e, _ := entries.Get(g.Key) // zero if absent
		if e.Revision != g.Revision {
			return nil, fault.New(fault.Conflict, "commit: key %q was last written at %s, not %s", g.Key, written(e.Revision), written(g.Revision))
		}
	}
	return entries.Write(t.Puts, t.Deletes, at), nil
}

func written(r store.Revision) string {
	if r.IsZero() {
		return "no revision (absent)"
	}
	return r.String()
}

// Snapshot implements raft.FSM.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	return &fsmSnapshot{state: f.state.Current(), applied: f.applied.Load()}, nil
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
	f.state.Publish(s, nil)
	f.applied.Store(applied)
	return nil
}
