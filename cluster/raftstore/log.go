package raftstore

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"

	"github.com/iapmesh/iapmesh/internal/fault"
)

const logContext = "iapmesh/raft/log/v1"

// sealedLog encrypts what raft-wal stores: an entry's data becomes nonce ‖ AEAD(applied index ‖ extensions ‖ data), with
// index, term and type as associated data. Those three and the time stay readable. raft-wal does not verify what it reads; the
// AEAD does, and finds an entry that was moved too.
//
// It does not use raft-wal's WithCodec: 0.4.1 records its own codec in every segment, whatever the option says, and then
// refuses to open them with another.
type sealedLog struct {
	*wal.WAL
	keys   *keys
	staged atomic.Uint64 // the applied index, written with each entry and so durable with it
}

func sealedLogContext(l *raft.Log) []byte {
	b := binary.BigEndian.AppendUint64([]byte(logContext), l.Index)
	b = binary.BigEndian.AppendUint64(b, l.Term)
	return append(b, byte(l.Type))
}

// StoreLog implements raft.LogStore.
func (s *sealedLog) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore. It does not change the entries.
func (s *sealedLog) StoreLogs(logs []*raft.Log) error {
	aead := s.keys.log
	sealed := make([]*raft.Log, len(logs))
	for i, l := range logs {
		plain := make([]byte, 0, len(l.Data)+len(l.Extensions)+16)
		plain = binary.AppendUvarint(plain, s.staged.Load())
		plain = appendBytes(plain, l.Extensions)
		plain = append(plain, l.Data...)
		out := make([]byte, 0, len(plain)+aead.NonceSize()+aead.Overhead())
		sealed[i] = &raft.Log{
			Index: l.Index, Term: l.Term, Type: l.Type, AppendedAt: l.AppendedAt,
			Data: sealRandom(aead, out, plain, sealedLogContext(l)),
		}
	}
	return s.WAL.StoreLogs(sealed)
}

// GetLog implements raft.LogStore.
func (s *sealedLog) GetLog(index uint64, l *raft.Log) error {
	_, err := s.get(index, l)
	return err
}

// get returns the applied index that was staged with the entry too.
func (s *sealedLog) get(index uint64, l *raft.Log) (staged uint64, err error) {
	first, err := s.WAL.FirstIndex()
	if err != nil {
		return 0, err
	}
	if index < first { // raft-wal 0.4.1 still returns what was deleted, as long as it lies in the newest segment
		return 0, raft.ErrLogNotFound
	}
	if err := s.WAL.GetLog(index, l); err != nil {
		return 0, err
	}
	if l.Index != index {
		return 0, fault.New(fault.Invalid, "log entry %d was found at %d: the file was changed", l.Index, index)
	}
	plain, err := openRandom(s.keys.log, l.Data, sealedLogContext(l))
	if err != nil {
		return 0, fault.New(fault.Invalid, "log entry %d is not authentic, the file was changed: %w", index, err)
	}
	d := decoder{rest: plain}
	staged = d.uvarint()
	l.Extensions = d.bytes(len(plain))
	if d.bad {
		return 0, fault.New(fault.Invalid, "log entry %d is malformed", index)
	}
	if l.Data = d.rest; len(l.Extensions) == 0 {
		l.Extensions = nil
	}
	return staged, nil
}

// logStore is the outermost log store: it knows since when the disk has been busy.
type logStore struct {
	raft.LogStore              // a LogCache over the sealed log
	sealed        *sealedLog   // below it
	busySince     atomic.Int64 // nanoseconds on the clock of start; 0: idle
	failed        atomic.Pointer[error]
	start         time.Time
}

// IsMonotonic implements raft.MonotonicLogStore, as raft-wal demands.
func (s *logStore) IsMonotonic() bool { return true }

// StoreLog implements raft.LogStore.
func (s *logStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore. It returns when the entries are synced.
func (s *logStore) StoreLogs(logs []*raft.Log) error {
	s.busySince.Store(int64(max(time.Since(s.start), 1)))
	err := s.LogStore.StoreLogs(logs)
	s.busySince.Store(0)
	if err != nil {
		s.failed.CompareAndSwap(nil, &err)
	}
	return err
}

// health says for how long the write in progress has lasted, and which write failed first.
func (s *logStore) health() (busy time.Duration, failed error) {
	if since := s.busySince.Load(); since > 0 {
		busy = time.Since(s.start) - time.Duration(since)
	}
	if err := s.failed.Load(); err != nil {
		failed = *err
	}
	return busy, failed
}

// replay reads the whole log, so that a change to any entry is found now and not when raft panics over it, and applies to f
// what is known to be committed after the snapshot that f was restored from. marked is the marker's index.
//
// It stands in for raft's RestoreCommittedLogs, which in 1.8.0 skips the configurations among the entries that it restores, so
// that a member without a snapshot forgets who its peers are; which forgets the last commits before a pause; and which blocks
// for ever beyond 128 batches of 64 entries, since nothing drains the queue before NewRaft returns.
func (s *logStore) replay(f *fsm, snapshot, marked uint64) error {
	first, err := s.FirstIndex()
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	last, err := s.LastIndex()
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	if last > 0 && first > snapshot+1 {
		return fault.New(fault.Invalid, "log begins at entry %d, the latest snapshot ends at %d: a snapshot is missing", first, snapshot)
	}
	if marked > max(last, snapshot) {
		return fault.New(fault.Invalid, "entry %d was applied, but the log ends at %d and the latest snapshot at %d: a file was changed or lost", marked, last, snapshot)
	}
	committed := marked
	if last > 0 {
		staged, err := s.sealed.get(last, new(raft.Log))
		if err != nil {
			return fmt.Errorf("read log of entries %d to %d: %w", first, last, err)
		}
		committed = max(committed, min(staged, last))
	}
	const batch = 256
	var logs []*raft.Log
	for i := first; i <= last && last > 0; i++ {
		l := new(raft.Log)
		if err := s.sealed.GetLog(i, l); err != nil {
			return fmt.Errorf("read log of entries %d to %d: %w", first, last, err)
		}
		if i <= committed {
			logs = append(logs, l)
		}
		if len(logs) == batch || i == last || i == committed {
			f.applyAll(logs, make([]any, len(logs)))
			logs = logs[:0]
		}
	}
	return nil
}
