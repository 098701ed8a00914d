package replica

import (
	"crypto/cipher"
	"encoding/binary"
	"io"

	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// loader reads a file's records in order.
type loader struct {
	in       *io.SectionReader
	size     int64
	aead     cipher.AEAD
	assemble assembler

	at       int64  // where the next record begins; at first found by the reader's position
	record   uint64 // its number
	whole    bool   // the snapshot's last part was there
	snapshot int64  // where the snapshot ends; 0 before that
}

// all gives apply every update up to the end, or up to what a crash left of an unfinished write.
func (l *loader) all(apply func(update) error) error {
	at, err := l.in.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	l.at = at
	for l.at < l.size {
		payload, next, ok := l.open(l.at, l.record)
		if !ok {
			break
		}
		if err := l.decode(payload, apply); err != nil {
			return err
		}
		l.at, l.record = next, l.record+1
		if l.snapshot == 0 && l.whole {
			l.snapshot = l.at
		}
	}
	switch {
	case l.snapshot == 0:
		return fault.New(fault.Invalid, "the snapshot ends at record %d, byte %d: that cannot be read", l.record, l.at)
	case l.at < l.size && !l.torn():
		return fault.New(fault.Invalid, "record %d at byte %d cannot be read, and is not the last", l.record, l.at)
	}
	return nil
}

// open returns a record's content, and where the next one begins. next is 0 if the record's length makes no sense.
func (l *loader) open(at int64, record uint64) (payload []byte, next int64, ok bool) {
	var head [4]byte
	if _, err := l.in.ReadAt(head[:], at); err != nil {
		return nil, 0, false
	}
	n := int64(binary.BigEndian.Uint32(head[:]))
	if n < int64(l.aead.NonceSize()) || n > maxRecord || n > l.size-at-4 {
		return nil, 0, false
	}
	next = at + 4 + n
	sealed := make([]byte, n)
	if _, err := l.in.ReadAt(sealed, at+4); err != nil {
		return nil, next, false
	}
	nonce := sealed[:l.aead.NonceSize()]
	payload, err := l.aead.Open(nil, nonce, sealed[len(nonce):], recordContext(record))
	return payload, next, err == nil
}

// torn reports whether a crash can have left the record that cannot be read: nothing follows it, since a write begins only once
// the one before it is synced. Its length may be missing, too.
func (l *loader) torn() bool {
	_, next, _ := l.open(l.at, l.record)
	return next == l.size || next == 0 && l.size-l.at <= maxRecord+4
}

func (l *loader) decode(payload []byte, apply func(update) error) error {
	for len(payload) > 0 {
		n, k := binary.Uvarint(payload)
		if k <= 0 || n > uint64(len(payload)-k) {
			return fault.New(fault.Invalid, "record %d is malformed", l.record)
		}
		var m iapmeshv1.Change
		if err := proto.Unmarshal(payload[k:k+int(n)], &m); err != nil {
			return fault.New(fault.Invalid, "record %d: %w", l.record, err)
		}
		payload = payload[k+int(n):]
		u, whole, err := l.assemble.add(&m)
		if err != nil {
			return err
		}
		if whole {
			l.whole = true
			if err := apply(u); err != nil {
				return err
			}
		}
	}
	return nil
}
