package replica_test

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/cluster/replica"
	"github.com/iapmesh/iapmesh/cluster/store"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func at(index uint64) store.Revision { return store.Revision{Epoch: 1, Index: index} }

func reset(index uint64, keys ...string) store.Change {
	c := store.Change{Revision: at(index), Reset: true}
	for _, k := range keys {
		c.Entries = append(c.Entries, store.Entry{Key: k, Value: []byte("v"), Revision: at(index)})
	}
	return c
}

func commit(index uint64, key string, deleted bool) store.Change {
	return store.Change{Revision: at(index), Entries: []store.Entry{{Key: key, Value: []byte("w"), Revision: at(index), Deleted: deleted}}}
}

// A file of our own, whatever follows it, yields its updates; whatever was written over it yields a beginning of them.
func FuzzFile(f *testing.F) {
	records := replica.Records(replica.Payload(reset(3, "a", "b")), replica.Payload(commit(4, "a", true), commit(5, "c", false)), replica.Payload(commit(6, "d", false)))
	f.Add(records, 0, []byte{})
	f.Add(records, len(records)-3, []byte{})
	f.Add(records, 100, []byte{1})
	f.Add(replica.Records([]byte{5, 1, 2}), 0, []byte{0})
	f.Add([]byte{0, 0, 0, 40}, 0, []byte{})
	f.Fuzz(func(t *testing.T, b []byte, where int, with []byte) {
		// Records that are authentic and malformed: nobody else can make them, yet they must harm nothing.
		changes, _, err := replica.LoadRecords(replica.Records(b, with))
		check(t, changes, err)
		changes, _, err = replica.LoadRecords(b)
		check(t, changes, err)

		damaged := slices.Clone(records)
		where = max(0, min(where, len(damaged)))
		copy(damaged[where:], with)
		changes, end, err := replica.LoadRecords(damaged)
		check(t, changes, err)
		if err == nil && end > int64(len(damaged)) || len(changes) > 4 {
			t.Errorf("%d changes, to byte %d of %d", len(changes), end, len(damaged))
		}
	})
}

// check: what was read is changes that a follower could have been sent.
func check(t *testing.T, changes []store.Change, err error) {
	t.Helper()
	if err == nil && (len(changes) == 0 || changes[0].Revision.IsZero()) {
		t.Errorf("a file without a state was read without an error: %+v", changes)
	}
}

// Whatever a source sends, the state moves forward and its keys are in order, or nothing changes.
func FuzzMessages(f *testing.F) {
	var seed []byte
	for _, c := range []store.Change{reset(3, "a", "b"), commit(4, "a", true), commit(5, "c", false)} {
		for _, p := range replica.Parts(c, "") {
			b, err := proto.Marshal(p)
			if err != nil {
				f.Fatal(err)
			}
			seed = append(append(seed, byte(len(b))), b...)
		}
	}
	f.Add(seed)
	f.Add([]byte{2, 16, 1})
	f.Add([]byte{4, 10, 2, 8, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		follower := replica.NewFollower()
		for len(b) > 0 {
			n := min(int(b[0]), len(b)-1)
			var m iapmeshv1.Change
			if err := proto.Unmarshal(b[1:1+n], &m); err != nil {
				return
			}
			b = b[1+n:]
			before, entries := follower.Revision(), follower.Entries()
			err := follower.Add(&m)
			after := follower.Revision()
			if after.Before(before) || err != nil && (after != before || !slices.EqualFunc(entries, follower.Entries(), func(a, b store.Entry) bool { return a.Key == b.Key && a.Revision == b.Revision })) {
				t.Fatalf("from %v to %v (%v)", before, after, err)
			}
			for i, e := range follower.Entries() {
				if e.Key == "" || e.Deleted || after.Before(e.Revision) || i > 0 && follower.Entries()[i-1].Key >= e.Key {
					t.Fatalf("entry %+v in the state at %v", e, after)
				}
			}
			if err != nil {
				return
			}
		}
	})
}
