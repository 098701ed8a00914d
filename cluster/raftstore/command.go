package raftstore

import (
	"encoding/binary"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// A command is what one raft log entry holds:
//
//	commit    1 ‖ term ‖ n guards (key, epoch, index) ‖ n puts (key, value) ‖ n deletes (key)
//	epoch     2 ‖ epoch
//
// Numbers are uvarints, keys and values are preceded by their length. The same bytes mean the same to every member for ever,
// since a log is replayed: a new meaning gets a new first byte.
const (
	commandCommit = 1
	commandEpoch  = 2
)

// command is a decoded log entry: a commit, or a new epoch if epoch is not zero.
type command struct {
	txn   store.Txn
	epoch uint64
}

func encodeCommit(t store.Txn) []byte {
	size := 64
	for _, g := range t.Guards {
		size += len(g.Key) + 24
	}
	for _, p := range t.Puts {
		size += len(p.Key) + len(p.Value) + 8
	}
	for _, key := range t.Deletes {
		size += len(key) + 4
	}
	b := make([]byte, 0, size)
	b = append(b, commandCommit)
	b = binary.AppendUvarint(b, uint64(t.Term))
	b = binary.AppendUvarint(b, uint64(len(t.Guards)))
	for _, g := range t.Guards {
		b = appendBytes(b, g.Key)
		b = binary.AppendUvarint(b, g.Revision.Epoch)
		b = binary.AppendUvarint(b, g.Revision.Index)
	}
	b = binary.AppendUvarint(b, uint64(len(t.Puts)))
	for _, p := range t.Puts {
		b = appendBytes(b, p.Key)
		b = appendBytes(b, p.Value)
	}
	b = binary.AppendUvarint(b, uint64(len(t.Deletes)))
	for _, key := range t.Deletes {
		b = appendBytes(b, key)
	}
	return b
}

func encodeEpoch(epoch uint64) []byte {
	return binary.AppendUvarint([]byte{commandEpoch}, epoch)
}

func appendBytes[T string | []byte](b []byte, s T) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// decodeCommand is the inverse of encodeCommit and encodeEpoch. What it returns shares no memory with b, keeps to the limits
// of a Txn, and names each key once. It never reads past b.
func decodeCommand(b []byte) (command, error) {
	d := decoder{rest: b}
	var c command
	switch kind := d.byte(); {
	case d.bad:
	case kind == commandEpoch:
		c.epoch = d.uvarint()
		d.bad = d.bad || c.epoch == 0
	case kind == commandCommit:
		c.txn = d.txn()
	default:
		return command{}, fault.New(fault.Invalid, "command of unknown kind %d: this member is older than the leader", kind)
	}
	if d.bad || len(d.rest) > 0 {
		return command{}, fault.New(fault.Invalid, "command of %d bytes is malformed", len(b))
	}
	if c.epoch == 0 {
		if err := c.txn.Validate(); err != nil {
			return command{}, err
		}
	}
	return c, nil
}

// decoder reads what was appended; after the first fault it is bad and returns zeros.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) txn() store.Txn {
	var t store.Txn
	t.Term = store.Term(d.uvarint())
	for range d.count() {
		key := d.string()
		t.Guards = append(t.Guards, store.Guard{Key: key, Revision: store.Revision{Epoch: d.uvarint(), Index: d.uvarint()}})
	}
	for range d.count() {
		key := d.string()
		t.Puts = append(t.Puts, store.Entry{Key: key, Value: d.bytes(store.MaxBytes)})
	}
	for range d.count() {
		t.Deletes = append(t.Deletes, d.string())
	}
	return t
}

func (d *decoder) byte() byte {
	if d.bad || len(d.rest) == 0 {
		d.bad = true
		return 0
	}
	b := d.rest[0]
	d.rest = d.rest[1:]
	return b
}

func (d *decoder) uvarint() uint64 {
	if d.bad {
		return 0
	}
	v, n := binary.Uvarint(d.rest)
	if n <= 0 {
		d.bad = true
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) count() int {
	n := d.uvarint()
	if n > store.MaxOps {
		d.bad = true
	}
	if d.bad {
		return 0
	}
	return int(n)
}

// bytes returns a copy, so that a small value does not keep a large command alive.
func (d *decoder) bytes(limit int) []byte {
	n := d.uvarint()
	if d.bad || n > uint64(limit) || n > uint64(len(d.rest)) {
		d.bad = true
		return nil
	}
	b := append([]byte{}, d.rest[:n]...)
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) string() string { return string(d.bytes(store.MaxKey)) }
