package snapshotfile

import (
	"bufio"
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// The body: length ‖ header (JSON) ‖ n ‖ n entries (key, value, epoch, index) ‖ digest(32). Numbers and lengths are uvarints.

func encode(w io.Writer, s *Snapshot) error {
	header, err := json.Marshal(s.Header)
	if err != nil {
		return err
	}
	if len(header) > maxHeader || len(s.Entries) > MaxEntries {
		return fault.New(fault.Exhausted, "a header of %d bytes and %d entries, at most %d and %d", len(header), len(s.Entries), maxHeader, MaxEntries)
	}
	sum := NewSum()
	b := append(binary.AppendUvarint(nil, uint64(len(header))), header...)
	b = binary.AppendUvarint(b, uint64(len(s.Entries)))
	total, last := len(b), ""
	for i, e := range s.Entries {
		if e.Key <= last && i > 0 || e.Key == "" || len(e.Key) > store.MaxKey || len(e.Value) > store.MaxBytes {
			return fault.New(fault.Internal, "entry %.80q does not belong behind %.80q", e.Key, last)
		}
		last = e.Key
		b = append(binary.AppendUvarint(b, uint64(len(e.Key))), e.Key...)
		b = append(binary.AppendUvarint(b, uint64(len(e.Value))), e.Value...)
		b = binary.AppendUvarint(binary.AppendUvarint(b, e.Revision.Epoch), e.Revision.Index)
		sum.Add(e)
		if _, err := w.Write(b); err != nil {
			return err
		}
		if total += len(b); total > MaxBytes-64 {
			return fault.New(fault.Exhausted, "the state is larger than %d bytes", MaxBytes)
		}
		b = b[:0]
	}
	digest := sum.Digest()
	_, err = w.Write(append(b, digest[:]...))
	return err
}

func decode(r io.Reader) (*Snapshot, error) {
	in := bodyReader{r: bufio.NewReaderSize(r, chunkSize)}
	header := in.bytes(maxHeader)
	if in.err != nil {
		return nil, in.err
	}
	s := &Snapshot{}
	d := json.NewDecoder(bytes.NewReader(header))
	d.DisallowUnknownFields()
	if err := d.Decode(&s.Header); err != nil {
		return nil, fault.New(fault.Invalid, "header: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) || s.Mesh == "" || s.Revision.IsZero() || len(s.OpeningKey) != 32 {
		return nil, fault.New(fault.Invalid, "header: it names no mesh, revision or opening key")
	}
	count := in.uvarint()
	if count > MaxEntries {
		return nil, fault.New(fault.Invalid, "%d entries, at most %d", count, MaxEntries)
	}
	sum, last := NewSum(), ""
	for range count {
		e := Entry{Key: string(in.bytes(store.MaxKey)), Value: in.bytes(store.MaxBytes)}
		e.Revision.Epoch, e.Revision.Index = in.uvarint(), in.uvarint()
		if in.err != nil {
			return nil, in.err
		}
		if e.Key <= last {
			return nil, fault.New(fault.Invalid, "entry %.80q follows %.80q", e.Key, last)
		}
		last = e.Key
		sum.Add(e)
		s.Entries = append(s.Entries, e)
	}
	var digest [32]byte
	if in.full(digest[:]); in.err != nil {
		return nil, in.err
	}
	if got := sum.Digest(); subtle.ConstantTimeCompare(got[:], digest[:]) != 1 {
		return nil, fault.New(fault.Invalid, "its entries are not what its digest says")
	}
	if _, err := in.r.ReadByte(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = fault.New(fault.Invalid, "something follows after its last entry")
		}
		return nil, err
	}
	return s, nil
}

// bodyReader keeps its first error, after which it returns zeros.
type bodyReader struct {
	r   *bufio.Reader
	err error
}

func (b *bodyReader) fail(err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fault.New(fault.Invalid, "it is cut off")
	}
	var kinded *fault.Error
	if !errors.As(err, &kinded) {
		err = fault.New(fault.Invalid, "not understood: %w", err)
	}
	b.err = err
}

func (b *bodyReader) uvarint() uint64 {
	if b.err != nil {
		return 0
	}
	v, err := binary.ReadUvarint(b.r)
	if err != nil {
		b.fail(err)
		return 0
	}
	return v
}

func (b *bodyReader) bytes(limit uint64) []byte {
	n := b.uvarint()
	if b.err == nil && n > limit {
		b.err = fault.New(fault.Invalid, "a field of %d bytes, at most %d", n, limit)
	}
	if b.err != nil {
		return nil
	}
	if buffered := uint64(b.r.Buffered()); n > buffered && n > chunkSize { // as much as is there, not as much as it says
		out, err := io.ReadAll(io.LimitReader(b.r, int64(n)))
		if err == nil && uint64(len(out)) < n {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			b.fail(err)
			return nil
		}
		return out
	}
	out := make([]byte, n)
	b.full(out)
	return out
}

func (b *bodyReader) full(out []byte) {
	if b.err != nil {
		return
	}
	if _, err := io.ReadFull(b.r, out); err != nil {
		b.fail(err)
	}
}
