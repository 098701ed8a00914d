package raftstore_test

import (
	"bytes"
	"encoding/binary"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/iapmesh/iapmesh/cluster/raftstore"
	"github.com/iapmesh/iapmesh/cluster/store"
)

var commands = map[string]store.Txn{
	"nothing": {},
	"everything": {
		Term:    math.MaxUint64,
		Guards:  []store.Guard{{Key: "absent"}, {Key: "a", Revision: store.Revision{Epoch: 1, Index: math.MaxUint64}}},
		Puts:    []store.Entry{{Key: "a", Value: []byte("1")}, {Key: "b", Value: []byte{}}, {Key: "\xff\x00", Value: make([]byte, 300)}},
		Deletes: []string{"c", "d"},
	},
}

func TestCommandsSurviveTheLog(t *testing.T) {
	t.Parallel()
	for name, want := range commands {
		got, epoch, err := raftstore.DecodeCommand(raftstore.EncodeCommit(want))
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" || epoch != 0 || err != nil {
			t.Errorf("%s: epoch %d, error %v, diff %s", name, epoch, err, diff)
		}
	}
	if txn, epoch, err := raftstore.DecodeCommand(raftstore.EncodeEpoch(7)); epoch != 7 || err != nil || len(txn.Puts) > 0 {
		t.Errorf("epoch: %d, %v", epoch, err)
	}
}

func TestMalformedCommandsAreRefused(t *testing.T) {
	t.Parallel()
	whole := raftstore.EncodeCommit(commands["everything"])
	for n := range len(whole) {
		if _, _, err := raftstore.DecodeCommand(whole[:n]); err == nil {
			t.Errorf("the first %d bytes of %d pass for a command", n, len(whole))
		}
	}
	for name, b := range map[string][]byte{
		"bytes after the end": append(bytes.Clone(whole), 0),
		"unknown kind":        {99},
		"epoch zero":          raftstore.EncodeEpoch(0),
		"a key named twice":   raftstore.EncodeCommit(store.Txn{Deletes: []string{"a", "a"}}),
		"an endless count":    binary.AppendUvarint([]byte{1, 0}, math.MaxUint64),
		"an endless value":    binary.AppendUvarint([]byte{1, 0, 0, 1, 1, 'k'}, math.MaxUint64),
	} {
		if _, _, err := raftstore.DecodeCommand(b); err == nil {
			t.Errorf("%s passes for a command", name)
		}
	}
}

func FuzzDecodeCommand(f *testing.F) {
	for _, txn := range commands {
		f.Add(raftstore.EncodeCommit(txn))
	}
	f.Add(raftstore.EncodeEpoch(2))
	f.Add([]byte{1, 0, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		txn, epoch, err := raftstore.DecodeCommand(b)
		if err != nil {
			return
		}
		again := raftstore.EncodeCommit(txn)
		if epoch != 0 {
			again = raftstore.EncodeEpoch(epoch)
		} else if err := txn.Validate(); err != nil {
			t.Fatalf("decoded what no engine accepts: %v", err)
		}
		if len(again) > len(b) {
			t.Fatalf("%d bytes became %d", len(b), len(again))
		}
		txn2, epoch2, err := raftstore.DecodeCommand(again)
		if diff := cmp.Diff(txn, txn2, cmpopts.EquateEmpty()); diff != "" || epoch != epoch2 || err != nil {
			t.Fatalf("decoded again: epoch %d then %d, error %v, diff %s", epoch, epoch2, err, diff)
		}
	})
}

func FuzzDecodeSnapshot(f *testing.F) {
	at := store.Revision{Epoch: 1, Index: 9}
	for _, s := range [][]store.Entry{nil, {{Key: "a", Value: []byte("1"), Revision: at}, {Key: "b", Value: []byte{}, Revision: store.Revision{Epoch: 1, Index: 3}}}} {
		var b bytes.Buffer
		if err := raftstore.EncodeSnapshot(&b, raftstore.SnapshotOf(12, at, s...)); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := raftstore.DecodeSnapshot(bytes.NewReader(b))
		if err != nil {
			return
		}
		var first, second bytes.Buffer
		if err := raftstore.EncodeSnapshot(&first, s); err != nil {
			t.Fatal(err)
		}
		again, err := raftstore.DecodeSnapshot(bytes.NewReader(first.Bytes()))
		if err != nil {
			t.Fatalf("what was decoded cannot be decoded again: %v", err)
		}
		if err := raftstore.EncodeSnapshot(&second, again); err != nil || !bytes.Equal(first.Bytes(), second.Bytes()) {
			t.Fatalf("encoded twice, it differs (%v)", err)
		}
	})
}
