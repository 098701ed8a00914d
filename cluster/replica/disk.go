package replica

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/crypto/chacha20poly1305"
	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/cluster/statemap"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// The file "state" is a snapshot and what was committed since, renamed into place as a whole and then appended to:
//
//	magic ‖ u32 length ‖ file key, sealed ‖ records: u32 length ‖ nonce ‖ ciphertext
//
// A record is sealed by XChaCha20-Poly1305 under the file's own random key, with its number in the file as associated data. It
// holds Change messages, each after its length as uvarint: a part of the snapshot, or all that one write added. A write is synced before the next one
// begins, so that a crash leaves at most the last record unreadable.
const (
	stateFile  = "state"
	asideFile  = "state.damaged"
	magic      = "iapmesh replica 1\n"
	sealFor    = "iapmesh/replica/file-key/v1/" // ‖ mesh id
	maxRecord  = 8 << 20
	maxKeySize = 64 << 10 // a sealed file key
	batchBytes = 4 << 20  // of one write, and one change of at most store.MaxBytes beyond
)

// damagedError: a record that was once synced cannot be read, by damage or by tampering.
type damagedError struct {
	aside string // where the file was moved to
	err   error
}

func (e *damagedError) Error() string { return e.err.Error() }
func (e *damagedError) Unwrap() error { return e.err }

// disk is the replica's file. It is not safe for concurrent use.
type disk struct {
	dir     string
	seal    Seal
	context []byte // context of the file key's seal
	lock    *os.File

	f      *os.File // nil: nothing can be appended, only rewritten
	aead   cipher.AEAD
	record uint64 // number of the next record
	tail   int64  // bytes after the snapshot
}

func openDisk(dir, meshID string, seal Seal) (*disk, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fault.New(fault.Unavailable, "another process uses it: %w", err), lock.Close())
	}
	return &disk{dir: dir, seal: seal, context: []byte(sealFor + meshID), lock: lock}, nil
}

func (d *disk) writable() bool { return d.f != nil }

// close unlocks in so many words: a process that is being forked at this moment holds the lock file open, too.
func (d *disk) close() error {
	return errors.Join(d.abandon(), syscall.Flock(int(d.lock.Fd()), syscall.LOCK_UN), d.lock.Close())
}

// abandon makes rewrite the only way to write.
func (d *disk) abandon() error {
	if d.f == nil {
		return nil
	}
	err := d.f.Close()
	d.f = nil
	return err
}

// load reads the file, if there is one, and gives apply each update. torn is how many bytes a crash left of an unfinished write;
// they are cut off. After a damagedError the file is out of the way.
func (d *disk) load(apply func(update) error) (torn int64, err error) {
	f, err := os.OpenFile(filepath.Join(d.dir, stateFile), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	d.f = f
	torn, err = d.read(apply)
	var damage *damagedError
	if errors.As(err, &damage) {
		damage.aside = filepath.Join(d.dir, asideFile)
		err = errors.Join(err, os.Rename(f.Name(), damage.aside))
	}
	if err != nil {
		return 0, errors.Join(err, d.abandon())
	}
	return torn, nil
}

func (d *disk) read(apply func(update) error) (torn int64, err error) {
	info, err := d.f.Stat()
	if err != nil {
		return 0, err
	}
	in := io.NewSectionReader(d.f, 0, info.Size())
	key, err := readHeader(in)
	if err != nil {
		return 0, &damagedError{err: err}
	}
	if key, err = d.seal.Open(key, d.context); err != nil {
		return 0, fmt.Errorf("unseal %s: it belongs to another mesh, node or seal, or was changed; without it, the state is fetched anew: %w", d.f.Name(), err)
	}
	if d.aead, err = chacha20poly1305.NewX(key); err != nil {
		return 0, &damagedError{err: err}
	}
	l := loader{in: in, size: info.Size(), aead: d.aead}
	if err := l.all(apply); err != nil {
		return 0, &damagedError{err: err}
	}
	d.record, d.tail = l.record, l.at-l.snapshot
	if torn = info.Size() - l.at; torn > 0 {
		err = errors.Join(d.f.Truncate(l.at), d.f.Sync())
	}
	if err == nil {
		_, err = d.f.Seek(l.at, io.SeekStart)
	}
	return torn, err
}

func readHeader(in io.Reader) ([]byte, error) {
	head := make([]byte, len(magic)+4)
	if _, err := io.ReadFull(in, head); err != nil || string(head[:len(magic)]) != magic {
		return nil, fault.New(fault.Invalid, "not a replica's file, or of another version (%v)", err)
	}
	n := binary.BigEndian.Uint32(head[len(magic):])
	if n > maxKeySize {
		return nil, fault.New(fault.Invalid, "a sealed key of %d bytes", n)
	}
	key := make([]byte, n)
	if _, err := io.ReadFull(in, key); err != nil {
		return nil, fmt.Errorf("read sealed key: %w", err)
	}
	return key, nil
}

// append makes a batch of commits durable.
func (d *disk) append(batch []update) error {
	payload, err := encode(nil, batch)
	if err != nil {
		return err
	}
	b := d.sealRecord(nil, payload)
	_, err = d.f.Write(b)
	if err := errors.Join(err, d.f.Sync()); err != nil { // nobody knows what the disk holds now
		return errors.Join(fmt.Errorf("append to %s: %w", d.f.Name(), err), d.abandon())
	}
	d.tail += int64(len(b))
	return nil
}

// rewrite makes a whole state durable, in a new file under a new key.
func (d *disk) rewrite(s *statemap.State, scope string) error {
	_ = d.abandon() // whatever becomes of the old file, the new one replaces it
	err := d.create(update{Change: store.Change{Revision: s.Revision(), Reset: true, Entries: s.List("")}, scope: scope})
	if err != nil {
		return fmt.Errorf("write %s anew: %w", filepath.Join(d.dir, stateFile), errors.Join(err, d.abandon()))
	}
	return nil
}

func (d *disk) create(snapshot update) error {
	key := make([]byte, chacha20poly1305.KeySize)
	rand.Read(key)
	sealed, err := d.seal.Seal(key, d.context)
	if err != nil {
		return err
	}
	if d.aead, err = chacha20poly1305.NewX(key); err != nil {
		return err
	}
	// One name, so that what a crash leaves behind is overwritten; the lock keeps others away.
	if d.f, err = os.OpenFile(filepath.Join(d.dir, stateFile+".new"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
		return err
	}
	head := binary.BigEndian.AppendUint32([]byte(magic), uint32(len(sealed)))
	if _, err := d.f.Write(append(head, sealed...)); err != nil {
		return err
	}
	d.record, d.tail = 0, 0
	for part := range snapshot.parts() {
		payload, err := appendChange(nil, part)
		if err != nil {
			return err
		}
		if _, err := d.f.Write(d.sealRecord(nil, payload)); err != nil {
			return err
		}
	}
	if err := d.f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(d.f.Name(), filepath.Join(d.dir, stateFile)); err != nil {
		return err
	}
	dir, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (d *disk) sealRecord(b, payload []byte) []byte {
	n := d.aead.NonceSize()
	b = binary.BigEndian.AppendUint32(b, uint32(n+len(payload)+d.aead.Overhead()))
	nonce := make([]byte, n)
	rand.Read(nonce)
	b = d.aead.Seal(append(b, nonce...), nonce, payload, recordContext(d.record))
	d.record++
	return b
}

func recordContext(record uint64) []byte { return binary.BigEndian.AppendUint64(nil, record) }

func encode(b []byte, updates []update) ([]byte, error) {
	for _, u := range updates {
		for part := range u.parts() {
			var err error
			if b, err = appendChange(b, part); err != nil {
				return nil, err
			}
		}
	}
	return b, nil
}

func appendChange(b []byte, c *iapmeshv1.Change) ([]byte, error) {
	b = binary.AppendUvarint(b, uint64(proto.Size(c)))
	return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, c)
}
