package audit

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// A frame is one record on disk and on the wire, all integers big-endian:
//
//	length  4  of the body, 1 to MaxBody
//	crc     4  CRC-32C over length, run, seq and body
//	run     8
//	seq     8
//	body    length
//
// The two top bits of length mark what lies among the records and is no leaf: 1<<31 a checkpoint, whose body is a signed note and whose
// seq is the note's size; 1<<30 an edge, whose body is one zero byte and the right-edge hashes of the tree of size seq, so that a
// reader who does not have the records before it can go on from there. A length of zero is the end: segments are filled with zeros.
//
// A spool's segments, an aggregator's, and what it hands out for verification are all such streams, each beginning with an edge.
const (
	FrameHeader    = 24
	MaxFrame       = FrameHeader + MaxBody
	checkpointFlag = 1 << 31
	edgeFlag       = 1 << 30
)

// FrameKind says what a frame's body is.
type FrameKind uint8

// The kinds of frames.
const (
	RecordFrame FrameKind = iota
	CheckpointFrame
	EdgeFrame
)

// Frame is a decoded frame; Body lies in the buffer it was decoded from.
type Frame struct {
	Kind FrameKind
	Run  Run
	Seq  uint64
	Body []byte
}

// EdgeOf returns the frame from which a reader can go on after the tree's last leaf.
func EdgeOf(run Run, t *Tree) Frame {
	body := []byte{0}
	for _, h := range t.Edge() {
		body = append(body, h[:]...)
	}
	return Frame{Kind: EdgeFrame, Run: run, Seq: t.Size(), Body: body}
}

// Tree returns the tree that an edge frame describes.
func (f Frame) Tree() (*Tree, error) {
	if f.Kind != EdgeFrame || len(f.Body)%len(Hash{}) != 1 || f.Body[0] != 0 {
		return nil, fault.New(fault.Invalid, "audit frame at %d of %s: no edge", f.Seq, f.Run)
	}
	var edge []Hash
	for b := f.Body[1:]; len(b) > 0; b = b[len(Hash{}):] {
		edge = append(edge, Hash(b[:len(Hash{})]))
	}
	return RestoreTree(f.Seq, edge)
}

// AppendFrame appends f's encoding to b.
func AppendFrame(b []byte, f Frame) []byte {
	start := len(b)
	b = append(b, make([]byte, FrameHeader)...)
	b = append(b, f.Body...)
	f.Seal(b[start:])
	return b
}

// Seal fills in the header of a frame that lies in b with its body already in place at b[FrameHeader:]; f.Body is not looked at.
func (f Frame) Seal(b []byte) {
	length := uint32(len(b) - FrameHeader)
	switch f.Kind {
	case CheckpointFrame:
		length |= checkpointFlag
	case EdgeFrame:
		length |= edgeFlag
	}
	binary.BigEndian.PutUint32(b, length)
	binary.BigEndian.PutUint64(b[8:], uint64(f.Run))
	binary.BigEndian.PutUint64(b[16:], f.Seq)
	binary.BigEndian.PutUint32(b[4:], frameCRC(b))
}

// DecodeFrame decodes the frame at the beginning of b and returns how many bytes it takes: 0 and no error at the end (zeros, or
// nothing), else an error of kind Invalid if what is there is no whole, intact frame.
func DecodeFrame(b []byte) (Frame, int, error) {
	if len(b) < 4 {
		for _, c := range b {
			if c != 0 {
				return Frame{}, 0, fault.New(fault.Invalid, "audit frame: cut off in its length")
			}
		}
		return Frame{}, 0, nil
	}
	length := binary.BigEndian.Uint32(b)
	if length == 0 {
		return Frame{}, 0, nil
	}
	kind := RecordFrame
	switch flags := length & (checkpointFlag | edgeFlag); flags {
	case checkpointFlag:
		kind = CheckpointFrame
	case edgeFlag:
		kind = EdgeFrame
	case checkpointFlag | edgeFlag:
		return Frame{}, 0, fault.New(fault.Invalid, "audit frame: both flags set")
	}
	size := int(length &^ (checkpointFlag | edgeFlag))
	if size == 0 || size > MaxBody {
		return Frame{}, 0, fault.New(fault.Invalid, "audit frame: body of %d bytes, want 1 to %d", size, MaxBody)
	}
	if len(b) < FrameHeader+size {
		return Frame{}, 0, fault.New(fault.Invalid, "audit frame: %d bytes of %d", len(b), FrameHeader+size)
	}
	b = b[:FrameHeader+size]
	if binary.BigEndian.Uint32(b[4:]) != frameCRC(b) {
		return Frame{}, 0, fault.New(fault.Invalid, "audit frame: checksum does not match")
	}
	f := Frame{Kind: kind, Run: Run(binary.BigEndian.Uint64(b[8:])), Seq: binary.BigEndian.Uint64(b[16:]), Body: b[FrameHeader:]}
	return f, len(b), nil
}

func frameCRC(b []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli) // the standard library's shared table: no cost
	return crc32.Update(crc32.Update(0, table, b[:4]), table, b[8:])
}

// bodySize is the length that a header of at least four bytes states.
func bodySize(head []byte) int {
	return int(binary.BigEndian.Uint32(head) &^ (checkpointFlag | edgeFlag))
}
