package etcdstore

import "github.com/iapmesh/iapmesh/cluster/store"

// EpochOf shows the epoch key's value: which revision an index belongs to, and the value that begins the epoch after the present
// one; empty if there can be none.
func EpochOf(value []byte, modRevision, index int64) (store.Revision, string, error) {
	e, err := parseEpochs(value, modRevision)
	if err != nil {
		return store.Revision{}, "", err
	}
	next := ""
	if e.current.Epoch < 1<<63 && len(e.past)+2 <= maxEpochs {
		next = e.next(e.current.Epoch + 1)
	}
	return e.revision(index), next, nil
}
