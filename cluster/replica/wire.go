package replica

import (
	"iter"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

const (
	partBytes = 256 << 10 // of a reset, in one message; one entry may be larger, up to store.MaxBytes
	maxState  = 1 << 30   // keys and values of a whole state: beyond it a source is believed broken
)

// update is a change as followers know it. Scope belongs to resets.
type update struct {
	store.Change
	scope string
}

// parts yields the messages that carry an update: one for a commit, some for a reset.
func (u update) parts() iter.Seq[*iapmeshv1.Change] {
	return func(yield func(*iapmeshv1.Change) bool) {
		part := &iapmeshv1.Change{Revision: revisionProto(u.Revision), Reset_: u.Reset}
		size := 0
		for _, e := range u.Entries {
			n := len(e.Key) + len(e.Value) + 64
			if u.Reset && size > 0 && size+n > partBytes {
				part.More = true
				if !yield(part) {
					return
				}
				part, size = &iapmeshv1.Change{Revision: part.Revision, Reset_: true}, 0
			}
			size += n
			part.Entries = append(part.Entries, &iapmeshv1.Entry{
				Key: e.Key, Value: e.Value, Revision: revisionProto(e.Revision), Deleted: e.Deleted,
			})
		}
		if u.Reset {
			part.Scope = u.scope
		}
		yield(part)
	}
}

func revisionProto(r store.Revision) *iapmeshv1.Revision {
	return &iapmeshv1.Revision{Epoch: r.Epoch, Index: r.Index}
}

func revisionOf(r *iapmeshv1.Revision) store.Revision {
	return store.Revision{Epoch: r.GetEpoch(), Index: r.GetIndex()}
}

// assembler makes updates of messages, from the wire and from the disk alike, and refuses what no honest source sends.
type assembler struct {
	pending *update // a reset of which more is to come
	size    int
}

// add returns an update once its last part is there.
func (a *assembler) add(m *iapmeshv1.Change) (update, bool, error) {
	at := revisionOf(m.GetRevision())
	u := update{Change: store.Change{Revision: at, Reset: m.GetReset_()}, scope: m.GetScope()}
	switch {
	case at.Epoch == 0:
		return u, false, fault.New(fault.Invalid, "change without a revision")
	case !u.Reset && (m.GetMore() || u.scope != ""):
		return u, false, fault.New(fault.Invalid, "change %v: only resets have parts and a scope", at)
	case a.pending != nil && (!u.Reset || a.pending.Revision != at):
		return u, false, fault.New(fault.Invalid, "change %v within the reset %v", at, a.pending.Revision)
	case !u.Reset && len(m.GetEntries()) > store.MaxOps:
		return u, false, fault.New(fault.Invalid, "change %v: %d entries, at most %d", at, len(m.GetEntries()), store.MaxOps)
	}
	limit := store.MaxBytes
	if u.Reset {
		limit = maxState
	}
	if a.pending != nil {
		scope := u.scope
		u, a.pending = *a.pending, nil
		u.scope = scope
	} else {
		a.size = 0
	}
	for _, e := range m.GetEntries() {
		entry, err := entryOf(e, u)
		if err != nil {
			return u, false, err
		}
		if a.size += len(entry.Key) + len(entry.Value); a.size > limit {
			return u, false, fault.New(fault.Invalid, "change %v: more than %d bytes", at, limit)
		}
		u.Entries = append(u.Entries, entry)
	}
	if m.GetMore() {
		a.pending = &u
		return update{}, false, nil
	}
	return u, true, nil
}

// entryOf checks the entry that follows u's others.
func entryOf(e *iapmeshv1.Entry, u update) (store.Entry, error) {
	at := revisionOf(e.GetRevision())
	switch {
	case e.GetKey() == "" || len(e.GetKey()) > store.MaxKey:
		return store.Entry{}, fault.New(fault.Invalid, "change %v: key %.80q: want 1 to %d bytes", u.Revision, e.GetKey(), store.MaxKey)
	case len(u.Entries) > 0 && u.Entries[len(u.Entries)-1].Key >= e.GetKey():
		return store.Entry{}, fault.New(fault.Invalid, "change %v: key %.80q is out of order", u.Revision, e.GetKey())
	case u.Reset && (e.GetDeleted() || at.IsZero() || u.Revision.Before(at)), !u.Reset && at != u.Revision:
		return store.Entry{}, fault.New(fault.Invalid, "change %v: key %.80q written at %v", u.Revision, e.GetKey(), at)
	}
	return store.Entry{Key: e.GetKey(), Value: e.GetValue(), Revision: at, Deleted: e.GetDeleted()}, nil
}
