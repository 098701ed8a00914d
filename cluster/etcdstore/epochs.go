package etcdstore

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// firstEpoch is the epoch of a mesh that was never restored or recovered.
const firstEpoch = 1

// maxEpochs bounds the epoch key's value.
const maxEpochs = 1000

// epochs says which epoch an index belongs to: the one that had begun last. The key's value holds "epoch@index" of each earlier
// epoch and then the present one's number, whose index is the key's own mod revision:
//
//	1@7 2@4711 3
type epochs struct {
	past    []store.Revision // at which earlier epochs began, oldest first
	current store.Revision   // at which the present one began
}

func parseEpochs(value []byte, modRevision int64) (*epochs, error) {
	fields := strings.Split(string(value), " ")
	if len(fields) > maxEpochs || modRevision <= 0 {
		return nil, fault.New(fault.Invalid, "epoch key with %d epochs at mod revision %d", len(fields), modRevision)
	}
	e := &epochs{}
	last := store.Revision{}
	for i, field := range fields {
		number, at, past := strings.Cut(field, "@")
		r, err := strconv.ParseUint(number, 10, 64)
		index := uint64(modRevision)
		if err == nil && past {
			index, err = strconv.ParseUint(at, 10, 64)
		}
		// Epochs grow; an index may not, if etcd was restored from a backup.
		if err != nil || past != (i < len(fields)-1) || r <= last.Epoch {
			return nil, fault.New(fault.Invalid, "epoch key: %.80q is not understood", value)
		}
		last = store.Revision{Epoch: r, Index: index}
		if past {
			e.past = append(e.past, last)
		}
	}
	e.current = last
	return e, nil
}

// next is the value that begins a later epoch.
func (e *epochs) next(epoch uint64) string {
	var b strings.Builder
	for _, p := range append(e.past[:len(e.past):len(e.past)], e.current) {
		fmt.Fprintf(&b, "%d@%d ", p.Epoch, p.Index)
	}
	return b.String() + strconv.FormatUint(epoch, 10)
}

// revision is that of what was written at an etcd revision.
func (e *epochs) revision(modRevision int64) store.Revision {
	r := store.Revision{Epoch: e.current.Epoch, Index: uint64(modRevision)}
	if r.Index >= e.current.Index {
		return r
	}
	for i := len(e.past) - 1; i >= 0; i-- {
		if r.Epoch = e.past[i].Epoch; r.Index >= e.past[i].Index {
			break
		}
	}
	return r
}
