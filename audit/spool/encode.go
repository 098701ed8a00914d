package spool

import (
	"crypto/sha256"
	"math/bits"
	"sync"

	"github.com/iapmesh/iapmesh/audit"
)

// encoder encodes records into frames, outside the spool's lock.
type encoder struct{ buf []byte }

func newEncoders() *sync.Pool {
	return &sync.Pool{New: func() any { return &encoder{buf: make([]byte, 0, 2048)} }}
}

// encode returns a frame without its header, and the hash of the leaf: SHA-256(0x00 ‖ body), as audit.LeafHash makes it. The byte
// before the body is the header's last, and still zero: so frame[FrameHeader-1:] is what is hashed.
func (e *encoder) encode(r *audit.Record) (frame []byte, leaf audit.Hash) {
	var header [audit.FrameHeader]byte
	e.buf = r.AppendJSON(append(e.buf[:0], header[:]...))
	if len(e.buf) > audit.MaxFrame {
		clipped := r.Clip()
		e.buf = clipped.AppendJSON(append(e.buf[:0], header[:]...))
	}
	return e.buf, sha256.Sum256(e.buf[audit.FrameHeader-1:])
}

// edgeSize is the size of the edge frame of a tree with n leaves: one hash for each bit that is set in n.
func edgeSize(n uint64) int {
	return audit.FrameHeader + 1 + bits.OnesCount64(n)*len(audit.Hash{})
}
