package control

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
)

// maxRefused bounds what a restoration's record says of what stays refused; all of it is refused, said or not.
const maxRefused = 1000

// The bounds of one commit of a restoration: some room is left below those of the store.
const (
	restoreOps   = store.MaxOps - 10
	restoreBytes = store.MaxBytes - 64<<10
)

// recordWrites are the records that differ between a state and what a restoration makes of it, as they are to be written.
func recordWrites(present *keyring.Contents, restored *keyring.Restored) []store.Entry {
	var out []store.Entry
	add := func(now store.Entry, before *store.Entry) {
		if before == nil || !bytes.Equal(now.Value, before.Value) {
			out = append(out, now)
		}
	}
	diff(restored.Admins, present.Admins, state.PutAdmin, add)
	diff(restored.Nodes, present.Nodes, state.PutNode, add)
	diff(restored.SigningKeys, present.SigningKeys, state.PutSigningKey, add)
	diff(restored.Keys, present.Keys, state.PutKey, add)
	for kind, values := range restored.Revocations {
		diff(values, present.Revocations[kind], state.PutRevocation, add)
	}
	// What refuses comes first: revocations, then keys, nodes and the rest.
	rank := func(e store.Entry) int {
		for i, prefix := range []string{state.PrefixRevocation, state.PrefixKey, state.PrefixNode} {
			if len(e.Key) >= len(prefix) && e.Key[:len(prefix)] == prefix {
				return i
			}
		}
		return 9
	}
	slices.SortFunc(out, func(a, b store.Entry) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Key, b.Key)) })
	return out
}

func diff[V any](now, before map[string]*V, encode func(*V) store.Entry, add func(store.Entry, *store.Entry)) {
	for id, record := range now {
		var old *store.Entry
		if have := before[id]; have != nil {
			e := encode(have)
			old = &e
		}
		add(encode(record), old)
	}
}

// firstBatch is as many of the entries as one commit takes.
func firstBatch(entries []store.Entry) []store.Entry {
	size := 0
	for i, e := range entries {
		if size += len(e.Key) + len(e.Value); i == restoreOps || size > restoreBytes && i > 0 {
			return entries[:i]
		}
	}
	return entries
}

// clip bounds a list of denials for the record.
func clip(denials []keyring.Denial) []keyring.Denial { return denials[:min(len(denials), maxRefused)] }
