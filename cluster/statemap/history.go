package statemap

import (
	"sort"

	"github.com/iapmesh/iapmesh/cluster/store"
)

// maxHistoryBytes bounds what the history keeps alive, beside its bound in changes: a megabyte for each of a thousand changes
// would be too much.
const maxHistoryBytes = 32 << 20

// history is the recent past from which watches resume: the changes after floor, without a gap. It is not safe for
// concurrent use.
type history struct {
	limit   int
	floor   store.Revision // a watch after floor or later can resume
	changes []store.Change // in order
	bytes   int
}

// restart forgets everything: watches resume after floor alone.
func (h *history) restart(floor store.Revision) {
	h.floor, h.changes, h.bytes = floor, nil, 0
}

func (h *history) append(c store.Change) {
	h.changes = append(h.changes, c)
	h.bytes += changeSize(c)
	for len(h.changes) > h.limit || h.bytes > maxHistoryBytes && len(h.changes) > 1 {
		h.floor = h.changes[0].Revision
		h.bytes -= changeSize(h.changes[0])
		h.changes[0] = store.Change{} // for the garbage collector
		h.changes = h.changes[1:]
	}
}

// after returns the changes after a revision of the floor's epoch, or false if some of them are forgotten. The caller must not
// change the slice.
func (h *history) after(r store.Revision) ([]store.Change, bool) {
	if r.Before(h.floor) || r.Epoch != h.floor.Epoch {
		return nil, false
	}
	i := sort.Search(len(h.changes), func(i int) bool { return r.Before(h.changes[i].Revision) })
	return h.changes[i:len(h.changes):len(h.changes)], true
}

func changeSize(c store.Change) int {
	n := 64
	for _, e := range c.Entries {
		n += len(e.Key) + len(e.Value) + 64
	}
	return n
}
