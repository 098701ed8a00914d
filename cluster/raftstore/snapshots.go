package raftstore

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/iapmesh/iapmesh/internal/fault"
)

const (
	retainSnapshots = 2
	snapshotChunk   = 64 << 10 // plaintext bytes in each chunk but the last
	snapshotHeader  = 8 + 32   // magic ‖ salt
	snapshotTag     = 16
)

var snapshotMagic = []byte("IAPSNAP\x01")

// snapshotStore encrypts raft's file snapshot store:
//
//	magic ‖ salt(32) ‖ chunks, each AEAD(64 KiB, the last shorter), nonce = chunk number(11) ‖ last(1)
//
// The associated data of each chunk binds what raft keeps beside the file in plain text: index, term, configuration. What it
// returns from List and Open has the size of the plaintext, because raft sends plaintext to followers.
type snapshotStore struct {
	inner *raft.FileSnapshotStore
	dir   string
	keys  *keys
}

func openSnapshots(dir string, k *keys, log hclog.Logger) (*snapshotStore, error) {
	inner, err := raft.NewFileSnapshotStoreWithLogger(dir, retainSnapshots, log)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	return &snapshotStore{inner: inner, dir: filepath.Join(dir, "snapshots"), keys: k}, nil
}

// Create implements raft.SnapshotStore.
func (s *snapshotStore) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	salt := make([]byte, 32)
	rand.Read(salt)
	aead, err := s.keys.snapshot(salt)
	if err != nil {
		return nil, err
	}
	sink, err := s.inner.Create(version, index, term, conf, confIndex, trans)
	if err != nil {
		return nil, err
	}
	if _, err := sink.Write(append(bytes.Clone(snapshotMagic), salt...)); err != nil {
		return nil, errors.Join(err, sink.Cancel())
	}
	meta := raft.SnapshotMeta{Index: index, Term: term, Configuration: conf, ConfigurationIndex: confIndex}
	return &sealingSink{SnapshotSink: sink, chunks: chunks{aead: aead, context: snapshotContext(&meta)}}, nil
}

// List implements raft.SnapshotStore.
func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	metas, err := s.inner.List()
	for _, m := range metas {
		m.Size = plainSize(m.Size)
	}
	return metas, err
}

// Open implements raft.SnapshotStore.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, r, err := s.inner.Open(id)
	if err != nil {
		return nil, nil, fmt.Errorf("open snapshot %s: %w", id, err)
	}
	header := make([]byte, snapshotHeader)
	if _, err := io.ReadFull(r, header); err != nil || !bytes.HasPrefix(header, snapshotMagic) {
		return nil, nil, errors.Join(fault.New(fault.Invalid, "open snapshot %s: no header of ours (%w)", id, err), r.Close())
	}
	aead, err := s.keys.snapshot(header[len(snapshotMagic):])
	if err != nil {
		return nil, nil, errors.Join(err, r.Close())
	}
	context := snapshotContext(meta)
	meta.Size = plainSize(meta.Size)
	return meta, &openingReader{inner: r, left: meta.Size, chunks: chunks{aead: aead, context: context}}, nil
}

// restore loads the latest snapshot into f and returns its index, 0 if there is none. Every snapshot must be authentic: a
// spoiled one is an error, not a reason to fall back to older state in silence.
func (s *snapshotStore) restore(f *fsm) (uint64, error) {
	metas, err := s.inner.List()
	if err != nil {
		return 0, fmt.Errorf("list snapshots: %w", err)
	}
	dirs, err := os.ReadDir(s.dir)
	if err != nil {
		return 0, fmt.Errorf("list snapshots: %w", err)
	}
	for _, d := range dirs {
		if d.IsDir() && !strings.HasSuffix(d.Name(), ".tmp") && !listed(metas, d.Name()) && !reaped(metas, d.Name()) {
			return 0, fault.New(fault.Invalid, "snapshot %s: its description is unreadable: the file was changed", d.Name())
		}
	}
	for i, m := range metas {
		_, r, err := s.Open(m.ID)
		if err != nil {
			return 0, err
		}
		if i == 0 {
			err = f.Restore(r)
		} else {
			_, err = io.Copy(io.Discard, r)
		}
		if err := errors.Join(err, r.Close()); err != nil {
			return 0, fmt.Errorf("snapshot %s: %w", m.ID, err)
		}
	}
	if len(metas) == 0 {
		return 0, nil
	}
	return metas[0].Index, nil
}

func listed(metas []*raft.SnapshotMeta, id string) bool {
	for _, m := range metas {
		if m.ID == id {
			return true
		}
	}
	return false
}

// reaped reports whether a directory is older than all snapshots that are kept: its removal was interrupted.
func reaped(metas []*raft.SnapshotMeta, id string) bool {
	var term, index, msec uint64
	if _, err := fmt.Sscanf(id, "%d-%d-%d", &term, &index, &msec); err != nil || len(metas) < retainSnapshots {
		return false
	}
	oldest := metas[len(metas)-1]
	return term < oldest.Term || term == oldest.Term && index <= oldest.Index
}

// plainSize is the size of a snapshot's content, given that of its file.
func plainSize(file int64) int64 {
	body := max(file-snapshotHeader, 0)
	n := (body + snapshotChunk + snapshotTag - 1) / (snapshotChunk + snapshotTag)
	return max(body-n*snapshotTag, 0)
}

func snapshotContext(m *raft.SnapshotMeta) []byte {
	b := []byte("iapmesh/raft/snapshot/v1")
	b = binary.BigEndian.AppendUint64(b, m.Index)
	b = binary.BigEndian.AppendUint64(b, m.Term)
	b = binary.BigEndian.AppendUint64(b, m.ConfigurationIndex)
	sum := sha256.Sum256(raft.EncodeConfiguration(m.Configuration))
	return append(b, sum[:]...)
}

// chunks counts the chunks of one snapshot.
type chunks struct {
	aead    cipher.AEAD
	context []byte
	n       uint64
}

func (c *chunks) nonce(last bool) []byte {
	nonce := make([]byte, c.aead.NonceSize())
	binary.BigEndian.PutUint64(nonce[3:], c.n)
	if last {
		nonce[11] = 1
	}
	c.n++
	return nonce
}

// sealingSink encrypts what is written to a snapshot.
type sealingSink struct {
	raft.SnapshotSink
	chunks
	buf    []byte
	closed bool
}

func (s *sealingSink) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		if len(s.buf) == snapshotChunk { // more follows, so this one is not the last
			if err := s.flush(false); err != nil {
				return written, err
			}
		}
		n := min(len(p), snapshotChunk-len(s.buf))
		s.buf = append(s.buf, p[:n]...)
		p, written = p[n:], written+n
	}
	return written, nil
}

func (s *sealingSink) flush(last bool) error {
	_, err := s.SnapshotSink.Write(s.aead.Seal(nil, s.nonce(last), s.buf, s.context))
	s.buf = s.buf[:0]
	return err
}

// Close writes the last chunk and makes the snapshot stand.
func (s *sealingSink) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	if err := s.flush(true); err != nil {
		return errors.Join(err, s.SnapshotSink.Cancel())
	}
	return s.SnapshotSink.Close()
}

// Cancel drops the snapshot.
func (s *sealingSink) Cancel() error {
	s.closed = true
	return s.SnapshotSink.Cancel()
}

// openingReader decrypts a snapshot. It returns nothing that is not authentic, and no EOF before the last chunk.
type openingReader struct {
	inner io.ReadCloser
	chunks
	left  int64 // plaintext not yet decrypted
	plain []byte
	done  bool
}

func (r *openingReader) Read(p []byte) (int, error) {
	if len(r.plain) == 0 {
		if r.done {
			return 0, io.EOF
		}
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.plain)
	r.plain = r.plain[n:]
	if n == 0 && r.done {
		return 0, io.EOF
	}
	return n, nil
}

func (r *openingReader) next() error {
	size := min(r.left, snapshotChunk)
	sealed := make([]byte, size+snapshotTag)
	if _, err := io.ReadFull(r.inner, sealed); err != nil {
		return fmt.Errorf("read chunk %d: %w", r.n, noEOF(err))
	}
	number, last := r.n, r.left <= snapshotChunk
	plain, err := r.aead.Open(sealed[:0], r.nonce(last), sealed, r.context)
	if err != nil {
		return fault.New(fault.Invalid, "chunk %d is not authentic, the file was changed: %w", number, err)
	}
	r.plain, r.left, r.done = plain, r.left-size, last
	return nil
}

func (r *openingReader) Close() error { return r.inner.Close() }
