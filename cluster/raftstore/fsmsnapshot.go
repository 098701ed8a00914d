package raftstore

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"

	"github.com/iapmesh/iapmesh/cluster/statemap"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// A snapshot's content, before it is encrypted:
//
//	version 1 (one byte) ‖ applied index ‖ revision (epoch, index) ‖ n ‖ n entries (key, value, epoch, index) in key order
//
// The applied index may be later than the one that raft labels the snapshot with: see fsm.
const snapshotVersion = 1

type fsmSnapshot struct {
	state   *statemap.State
	applied uint64
}

// Persist implements raft.FSMSnapshot.
func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.encode(sink); err != nil {
		return errors.Join(fmt.Errorf("write snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (s *fsmSnapshot) Release() {}

func (s *fsmSnapshot) encode(w io.Writer) error {
	out := bufio.NewWriterSize(w, 64<<10)
	b := []byte{snapshotVersion}
	b = binary.AppendUvarint(b, s.applied)
	b = binary.AppendUvarint(b, s.state.Revision().Epoch)
	b = binary.AppendUvarint(b, s.state.Revision().Index)
	b = binary.AppendUvarint(b, uint64(s.state.Len()))
	if _, err := out.Write(b); err != nil {
		return err
	}
	for e := range s.state.All() {
		b = appendBytes(b[:0], e.Key)
		b = appendBytes(b, e.Value)
		b = binary.AppendUvarint(b, e.Revision.Epoch)
		b = binary.AppendUvarint(b, e.Revision.Index)
		if _, err := out.Write(b); err != nil {
			return err
		}
	}
	return out.Flush()
}

// decodeSnapshot reads a snapshot to its end. It trusts no length that it reads.
func decodeSnapshot(r io.Reader) (*statemap.State, uint64, error) {
	in := snapshotReader{r: bufio.NewReaderSize(r, 64<<10)}
	version, err := in.r.ReadByte()
	if err != nil {
		return nil, 0, fmt.Errorf("read version: %w", err)
	}
	if version != snapshotVersion {
		return nil, 0, fault.New(fault.Invalid, "snapshot version %d: this member understands %d", version, snapshotVersion)
	}
	applied := in.uvarint()
	at := store.Revision{Epoch: in.uvarint(), Index: in.uvarint()}
	txn := statemap.NewTxn()
	last := ""
	for range in.uvarint() {
		e := store.Entry{Key: string(in.bytes(store.MaxKey)), Value: in.bytes(store.MaxBytes)}
		e.Revision = store.Revision{Epoch: in.uvarint(), Index: in.uvarint()}
		if in.err != nil {
			break
		}
		if e.Key <= last {
			return nil, 0, fault.New(fault.Invalid, "snapshot: key %.80q follows %.80q", e.Key, last)
		}
		last = e.Key
		txn.Put(e)
	}
	if in.err != nil {
		return nil, 0, fmt.Errorf("read snapshot: %w", in.err)
	}
	if at.Epoch == 0 || at.Index > applied {
		return nil, 0, fault.New(fault.Invalid, "snapshot: revision %v at applied index %d", at, applied)
	}
	if _, err := in.r.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, 0, fault.New(fault.Invalid, "snapshot: bytes follow its last entry (%v)", err)
	}
	return txn.Commit(at), applied, nil
}

// snapshotReader keeps its first error, after which it returns zeros.
type snapshotReader struct {
	r   *bufio.Reader
	err error
}

func (s *snapshotReader) uvarint() uint64 {
	if s.err != nil {
		return 0
	}
	v, err := binary.ReadUvarint(s.r)
	if err != nil {
		s.err = noEOF(err)
		return 0
	}
	return v
}

func (s *snapshotReader) bytes(limit uint64) []byte {
	n := s.uvarint()
	if s.err == nil && n > limit {
		s.err = fault.New(fault.Invalid, "a field of %d bytes, at most %d", n, limit)
	}
	if s.err != nil {
		return nil
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(s.r, b); err != nil {
		s.err = noEOF(err)
		return nil
	}
	return b
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
