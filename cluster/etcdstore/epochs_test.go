package etcdstore_test

import (
	"testing"

	"github.com/iapmesh/iapmesh/cluster/etcdstore"
	"github.com/iapmesh/iapmesh/cluster/store"
)

func TestEpochOfAnIndex(t *testing.T) {
	t.Parallel()
	for index, want := range map[int64]uint64{1: 1, 7: 1, 4710: 1, 4711: 2, 4999: 2, 5000: 9, 1 << 50: 9} {
		r, _, err := etcdstore.EpochOf([]byte("1@7 2@4711 9"), 5000, index)
		if err != nil || r != (store.Revision{Epoch: want, Index: uint64(index)}) {
			t.Errorf("index %d: %v, %v, want epoch %d", index, r, err, want)
		}
	}
	for _, bad := range []string{"", "0", "x", "1@7", "2 1", "1@7 1", "2@7 1", "1 2", "1@x 2", "1@7  2", "-1", "18446744073709551616"} {
		if r, _, err := etcdstore.EpochOf([]byte(bad), 10, 5); err == nil {
			t.Errorf("%q was taken for %v", bad, r)
		}
	}
}

// Whatever the key holds: if it is understood, the next epoch's value is too, and the past stays as it was.
func FuzzEpochs(f *testing.F) {
	f.Add([]byte("1"), int64(5), int64(7))
	f.Add([]byte("1@7 2@4711 9"), int64(5000), int64(4800))
	f.Add([]byte("1@ 2"), int64(1), int64(1))
	f.Fuzz(func(t *testing.T, value []byte, mod, index int64) {
		r, next, err := etcdstore.EpochOf(value, mod, index)
		if err != nil || mod > 1<<60 || index <= 0 || index > mod || next == "" {
			return
		}
		after, _, err := etcdstore.EpochOf([]byte(next), mod+1, index)
		if err != nil || after != r {
			t.Errorf("%q at %d: index %d was of %v, then of %v (%v)", value, mod, index, r, after, err)
		}
	})
}
