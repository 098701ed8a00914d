package audit_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
)

func frames() []audit.Frame {
	tree := audit.NewTree()
	tree.Append(audit.Hash{1})
	return []audit.Frame{
		audit.EdgeOf(5, audit.NewTree()),
		{Run: 5, Seq: 0, Body: []byte("one")},
		{Kind: audit.CheckpointFrame, Run: 5, Seq: 1, Body: []byte("note")},
		audit.EdgeOf(5, tree),
		{Run: 5, Seq: 1, Body: bytes.Repeat([]byte{7}, audit.MaxBody)},
	}
}

func stream(frames []audit.Frame) (b []byte) {
	for _, f := range frames {
		b = audit.AppendFrame(b, f)
	}
	return b
}

func TestFramesAreReadBack(t *testing.T) {
	t.Parallel()
	data := append(stream(frames()), make([]byte, 100)...)
	r := audit.NewFrameReader(iotest.OneByteReader(bytes.NewReader(data)))
	for i, want := range frames() {
		got, err := r.Next()
		if err != nil || got.Kind != want.Kind || got.Run != want.Run || got.Seq != want.Seq || !bytes.Equal(got.Body, want.Body) {
			t.Fatalf("frame %d: %v", i, err)
		}
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("at the zeros: %v", err)
	}
	if want := int64(len(data) - 100); r.Offset() != want {
		t.Errorf("offset %d, want %d", r.Offset(), want)
	}
}

func TestEachFlippedBitIsNoticed(t *testing.T) {
	t.Parallel()
	data := audit.AppendFrame(nil, audit.Frame{Run: 5, Seq: 9, Body: []byte("a body")})
	for bit := range len(data) * 8 {
		bad := bytes.Clone(data)
		bad[bit/8] ^= 1 << (bit % 8)
		if f, n, err := audit.DecodeFrame(bad); err == nil {
			t.Errorf("bit %d: %+v, %d", bit, f, n)
		}
	}
	for cut := 1; cut < len(data); cut++ {
		if _, _, err := audit.DecodeFrame(data[:cut]); cut > 3 && !fault.Is(err, fault.Invalid) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
}

func TestResyncFindsTheNextFrame(t *testing.T) {
	t.Parallel()
	all := frames()
	head := stream(all[:2])
	data := append(bytes.Clone(head), stream(all[2:])...)
	data[len(head)+25] ^= 1 // in the checkpoint
	r := audit.NewFrameReader(bytes.NewReader(data))
	for range 2 {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Next(); !fault.Is(err, fault.Invalid) {
		t.Fatalf("damaged: %v", err)
	}
	if skipped, err := r.Resync(5); err != nil || skipped != audit.FrameHeader+4 {
		t.Fatalf("skipped %d, %v", skipped, err)
	}
	if f, err := r.Next(); err != nil || f.Kind != audit.EdgeFrame {
		t.Errorf("%+v, %v", f, err)
	}
	if _, err := r.Resync(6); !errors.Is(err, io.EOF) {
		t.Errorf("another run's: %v", err)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(stream(frames()[:4]))
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := audit.NewFrameReader(bytes.NewReader(data))
		var again []byte
		for {
			fr, err := r.Next()
			if err != nil {
				break
			}
			again = audit.AppendFrame(again, fr)
			if tree, err := fr.Tree(); err == nil {
				tree.Root()
			}
		}
		if !bytes.HasPrefix(data, again) {
			t.Error("frames are not what was read")
		}
		_, _ = r.Resync(5)
	})
}
