// Package snapshotfile is the file that a snapshot of the mesh is kept in. Its one job is that what is read is what was written:
// whole, by this program, opened by a key that its owner kept.
//
//	magic "IAPMESH SNAPSHOT\x01" ‖ length(4) ‖ envelope ‖ chunks, each length(4) ‖ sealed
//
// The envelope is keyring/seal's: a data key of this file, wrapped by one or more keepers. Each chunk holds 64 KiB of the body, the
// last less, sealed by XAES-256-GCM; its associated data binds the envelope, the chunk's number and whether it is the last, so that
// none can be changed, left out, exchanged or taken from another file. The body is a header, the entries in key order, and a digest
// of them. Sizes are checked before anything is allocated.
//
// The header holds the private key that opens the mesh's secrets: whoever opens the file can be the mesh. What a snapshot means, and
// how it is restored, is for others.
package snapshotfile

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring/seal"
)

// The bounds of a snapshot.
const (
	MaxEntries = 1 << 20
	MaxBytes   = 512 << 20 // of the body
	maxHeader  = 8 << 20
	chunkSize  = 64 << 10
)

const (
	magic        = "IAPMESH SNAPSHOT\x01"
	chunkContext = "iapmesh/snapshot/chunk/v1"
)

// Entry is one record of the state.
type Entry = store.Entry

// Snapshot is the state of a mesh at one revision.
type Snapshot struct {
	Header
	Entries []Entry  // in key order
	Digest  [32]byte // SHA-256 of the file; set by Open and Create
}

// Header says what a snapshot is of.
type Header struct {
	Mesh        string            `json:"mesh"`
	TrustDomain string            `json:"trust_domain"`
	Revision    revision.Revision `json:"revision"`
	TakenAt     time.Time         `json:"taken_at"`
	By          string            `json:"by"`
	OpeningKey  []byte            `json:"opening_key"` // private; opens Audiences
	Audiences   []AudienceWrap    `json:"audiences"`
}

// AudienceWrap is an audience's key, encrypted to the opening key.
type AudienceWrap struct {
	Name    string `json:"name"`
	Version uint32 `json:"version"`
	Wrapped []byte `json:"wrapped"`
}

// NewOpeningKey makes the key pair to which a snapshot's secrets are opened.
func NewOpeningKey() (private, public []byte, err error) {
	k, err := seal.GenerateSealingKey()
	if err != nil {
		return nil, nil, err
	}
	private, err = k.Bytes()
	return private, k.PublicKey(), err
}

// sealer is keyring/seal's.
type sealer interface {
	Seal(plaintext, context []byte) ([]byte, error)
	Open(sealed, context []byte) ([]byte, error)
}

// Create writes a snapshot into a new file, mode 0600, sealed by the keepers; it sets Digest. Conflict: the file is there already.
func Create(ctx context.Context, path string, keepers seal.Directory, s *Snapshot) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			return fault.New(fault.Conflict, "snapshot %s: is there already", path)
		}
		return fault.New(fault.Invalid, "snapshot: %w", err)
	}
	dir := filepath.Dir(path)
	keepers.Path = dir
	envelope, sealer, err := keepers.NewEnvelope(ctx)
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", path, err)
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return fault.New(fault.Invalid, "snapshot: %w", err)
	}
	defer os.Remove(f.Name())
	sum := sha256.New()
	err = write(io.MultiWriter(f, sum), envelope, sealer, s)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fault.New(fault.Internal, "snapshot %s: %w", path, err)
	}
	if err := os.Link(f.Name(), path); err != nil { // unlike a rename, it replaces nothing
		return fault.New(fault.Internal, "snapshot: %w", err)
	}
	s.Digest = [32]byte(sum.Sum(nil))
	d, err := os.Open(dir)
	if err != nil {
		return fault.New(fault.Internal, "snapshot: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

// Open reads a snapshot and proves that it is whole. keepers are where its key lies now; those that the file names are tried, too.
// Invalid: it is no snapshot, or not the one that was written. Unavailable: no keeper opens it.
func Open(ctx context.Context, path string, keepers seal.Directory) (*Snapshot, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.New(fault.Invalid, "snapshot: %w", err)
	}
	defer f.Close()
	s, err := read(f, func(envelope []byte) (sealer, error) {
		keepers.Path = filepath.Dir(path)
		return keepers.OpenEnvelope(ctx, envelope)
	})
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", path, err)
	}
	return s, nil
}

func write(w io.Writer, envelope []byte, sealer sealer, s *Snapshot) error {
	head := binary.BigEndian.AppendUint32([]byte(magic), uint32(len(envelope)))
	head = append(head, envelope...)
	if _, err := w.Write(head); err != nil {
		return err
	}
	out := &chunkWriter{w: w, sealer: sealer, bound: bound(head)}
	if err := encode(out, s); err != nil {
		return err
	}
	return out.flush(true)
}

// read reads a whole file.
func read(r io.Reader, open func(envelope []byte) (sealer, error)) (*Snapshot, error) {
	sum := sha256.New()
	r = io.TeeReader(r, sum)
	head := make([]byte, len(magic)+4)
	if _, err := io.ReadFull(r, head); err != nil || string(head[:len(magic)]) != magic {
		return nil, fault.New(fault.Invalid, "it is no snapshot of this version of iapmesh")
	}
	size := binary.BigEndian.Uint32(head[len(magic):])
	if size == 0 || size > seal.MaxEnvelope {
		return nil, fault.New(fault.Invalid, "an envelope of %d bytes, want 1 to %d", size, seal.MaxEnvelope)
	}
	envelope := make([]byte, size)
	if _, err := io.ReadFull(r, envelope); err != nil {
		return nil, fault.New(fault.Invalid, "it is cut off")
	}
	sealer, err := open(envelope)
	if err != nil {
		return nil, err
	}
	in := &chunkReader{r: r, sealer: sealer, bound: bound(append(head, envelope...))}
	s, err := decode(in)
	if err != nil {
		return nil, err
	}
	if !in.last || len(in.rest) > 0 {
		return nil, fault.New(fault.Invalid, "something follows after its last entry")
	}
	if _, err := io.ReadFull(r, make([]byte, 1)); !errors.Is(err, io.EOF) {
		return nil, fault.New(fault.Invalid, "something follows after its end")
	}
	s.Digest = [32]byte(sum.Sum(nil))
	return s, nil
}

func bound(head []byte) []byte {
	sum := sha256.Sum256(head)
	return append([]byte(chunkContext), sum[:]...)
}

// place is the associated data of a chunk.
func place(bound []byte, number uint64, last bool) []byte {
	out := binary.BigEndian.AppendUint64(bytes.Clone(bound), number)
	if last {
		return append(out, 1)
	}
	return append(out, 0)
}

type chunkWriter struct {
	w      io.Writer
	sealer sealer
	bound  []byte
	number uint64
	buffer []byte
}

func (c *chunkWriter) Write(p []byte) (int, error) {
	c.buffer = append(c.buffer, p...)
	for len(c.buffer) > chunkSize { // one that is just full may be the last
		if err := c.seal(c.buffer[:chunkSize], false); err != nil {
			return 0, err
		}
		c.buffer = append(c.buffer[:0], c.buffer[chunkSize:]...)
	}
	return len(p), nil
}

func (c *chunkWriter) flush(last bool) error { return c.seal(c.buffer, last) }

func (c *chunkWriter) seal(plain []byte, last bool) error {
	sealed, err := c.sealer.Seal(plain, place(c.bound, c.number, last))
	if err != nil {
		return err
	}
	c.number++
	_, err = c.w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(sealed))), sealed...))
	return err
}

// chunkReader yields the body, of chunks that are proved before a byte of them is read.
type chunkReader struct {
	r      io.Reader
	sealer sealer
	bound  []byte
	number uint64
	total  int
	rest   []byte
	last   bool
}

func (c *chunkReader) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.last {
			return 0, io.EOF
		}
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *chunkReader) next() error {
	var size [4]byte
	if _, err := io.ReadFull(c.r, size[:]); err != nil {
		return fault.New(fault.Invalid, "it is cut off in chunk %d", c.number)
	}
	n := binary.BigEndian.Uint32(size[:])
	if n < seal.Overhead || n > chunkSize+seal.Overhead {
		return fault.New(fault.Invalid, "chunk %d has %d bytes, want %d to %d", c.number, n, seal.Overhead, chunkSize+seal.Overhead)
	}
	sealed := make([]byte, n)
	if _, err := io.ReadFull(c.r, sealed); err != nil {
		return fault.New(fault.Invalid, "it is cut off in chunk %d", c.number)
	}
	plain, err := c.sealer.Open(sealed, place(c.bound, c.number, false))
	if err != nil {
		if plain, err = c.sealer.Open(sealed, place(c.bound, c.number, true)); err != nil {
			return fault.New(fault.Invalid, "chunk %d was changed, or is another file's", c.number)
		}
		c.last = true
	}
	if len(plain) != chunkSize && !c.last {
		return fault.New(fault.Invalid, "chunk %d has %d bytes and is not the last", c.number, len(plain))
	}
	c.number++
	if c.total += len(plain); c.total > MaxBytes {
		return fault.New(fault.Invalid, "more than %d bytes", MaxBytes)
	}
	c.rest = plain
	return nil
}

// Sum digests entries one by one, as a snapshot's trailer has it: for each, key and value after their lengths, epoch and index.
type Sum struct {
	h     hash.Hash
	count uint64
}

// NewSum makes a Sum of nothing.
func NewSum() *Sum { return &Sum{h: sha256.New()} }

// Add adds an entry.
func (s *Sum) Add(e Entry) {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(e.Key)))
	b = append(b, e.Key...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.Value)))
	b = append(b, e.Value...)
	b = binary.BigEndian.AppendUint64(b, e.Revision.Epoch)
	b = binary.BigEndian.AppendUint64(b, e.Revision.Index)
	s.h.Write(b)
	s.count++
}

// Count is how many entries were added.
func (s *Sum) Count() uint64 { return s.count }

// Digest is of those that were added.
func (s *Sum) Digest() [32]byte { return [32]byte(s.h.Sum(nil)) }
