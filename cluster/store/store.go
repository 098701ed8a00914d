// Package store is the contract of the replicated state: one ordered map of key to (value, revision), changed by guarded
// commits and watched by revision. Engines (cluster/raftstore, cluster/etcdstore) and the follower (cluster/replica) implement
// it; cluster/storetest proves that they do.
//
// Invariants. A commit is all or nothing. Revisions grow with each commit, with gaps. A reader sees states that existed, in
// order, never torn and never going back. Time never enters the state: whoever commits writes times as values.
package store

import (
	"context"
	"errors"
	"iter"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
)

// Limits of one Commit, on every engine; beyond them it is Invalid.
const (
	MaxOps   = 100     // puts and deletes and guards, each
	MaxBytes = 1 << 20 // keys and values, in all
	MaxKey   = 512     // one key
)

// ErrInDoubt means that the commit may have happened: the caller re-reads before it tries again.
var ErrInDoubt = fault.Wrap(fault.Unavailable, errors.New("commit in doubt: it may have been applied; read again before retrying"))

// Revision names a state of the mesh.
type Revision = revision.Revision

// Entry is one key's value and the revision at which it was last written.
type Entry struct {
	Key      string
	Value    []byte
	Revision Revision
	Deleted  bool // in a Change only
}

// Guard demands that Key was last written at Revision; a zero Revision demands that it is absent.
type Guard struct {
	Key      string
	Revision Revision
}

// Term fences a leader's commits: raft's term, or the CreateRevision of etcd's leader key; 0 is unfenced.
type Term uint64

// Txn names each key once in Puts and Deletes together; a rule over many keys guards and rewrites one key.
// An entry's Revision in Puts is ignored.
//
// A Txn without Puts and Deletes checks its guards. To delete an absent key is no error, and shows in no Change.
type Txn struct {
	Term    Term
	Guards  []Guard
	Puts    []Entry
	Deletes []string
}

// Change is one whole commit or, if Reset, the whole state at Revision.
type Change struct {
	Revision Revision
	Reset    bool
	Entries  []Entry // sorted by key
}

// Reader is local: perhaps old, never torn. Values that it returns are the caller's to read, not to change.
type Reader interface {
	// Get returns NotFound for an absent key.
	Get(ctx context.Context, key string) (Entry, error)
	// List returns the entries under prefix in key order, and the revision at which they were read.
	List(ctx context.Context, prefix string) ([]Entry, Revision, error)
	// Watch yields later commits in order; first a Reset if after is zero, compacted or of an earlier epoch; later too, if
	// the consumer lags. If after is later than what the reader has, it waits: it never goes back. It ends with ctx's error,
	// or when the reader closes (Unavailable).
	Watch(ctx context.Context, after Revision) iter.Seq2[Change, error]
	// Wait returns once reads include at.
	Wait(ctx context.Context, at Revision) error
}

// Store is an engine's whole contract.
type Store interface {
	Reader
	// Sync returns a revision such that a read made after Wait for it is linearizable.
	Sync(ctx context.Context) (Revision, error)
	// Commit applies t or nothing. Conflict: nothing was written, a guard or the term failed. ErrInDoubt: unknown.
	Commit(ctx context.Context, t Txn) (Revision, error)
	// Lead runs f for each term won, until ctx ends; then it returns ctx's error, once f has returned. f's context ends on
	// loss of leadership, but only Term fences. f is expected to run until its context ends; if it returns earlier,
	// leadership is given up (where the engine can) and sought again. Its error is logged.
	Lead(ctx context.Context, f func(context.Context, Term) error) error
}

// Validate checks what every engine demands of a Txn: sizes, and that each key is named once.
func (t Txn) Validate() error {
	if len(t.Puts)+len(t.Deletes) > MaxOps || len(t.Guards) > MaxOps {
		return fault.New(fault.Invalid, "commit: %d operations and %d guards, at most %d each", len(t.Puts)+len(t.Deletes), len(t.Guards), MaxOps)
	}
	size := 0
	seen := make(map[string]struct{}, len(t.Puts)+len(t.Deletes))
	name := func(key string) error {
		if key == "" || len(key) > MaxKey {
			return fault.New(fault.Invalid, "commit: key %.80q: want 1 to %d bytes", key, MaxKey)
		}
		if _, twice := seen[key]; twice {
			return fault.New(fault.Invalid, "commit: key %.80q is named twice", key)
		}
		seen[key] = struct{}{}
		size += len(key)
		return nil
	}
	for _, p := range t.Puts {
		if err := name(p.Key); err != nil {
			return err
		}
		size += len(p.Value)
	}
	for _, key := range t.Deletes {
		if err := name(key); err != nil {
			return err
		}
	}
	for _, g := range t.Guards {
		if g.Key == "" || len(g.Key) > MaxKey {
			return fault.New(fault.Invalid, "commit: guard on key %.80q: want 1 to %d bytes", g.Key, MaxKey)
		}
	}
	if size > MaxBytes {
		return fault.New(fault.Invalid, "commit: %d bytes, at most %d", size, MaxBytes)
	}
	return nil
}
