package audit

import (
	"errors"
	"io"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// FrameReader reads frames from a stream, such as a segment.
type FrameReader struct {
	r     io.Reader
	buf   []byte
	start int
	read  int64 // offset in the stream of buf[start]
	err   error
}

// NewFrameReader reads frames from r.
func NewFrameReader(r io.Reader) *FrameReader { return &FrameReader{r: r} }

// Next returns the next frame, whose Body holds until the call after. It returns io.EOF where zeros or the end begin, an error of kind
// Invalid where there is no whole and intact frame, and the reader's error if reading failed.
func (f *FrameReader) Next() (Frame, error) {
	if err := f.fill(FrameHeader); err != nil {
		return Frame{}, err
	}
	if head := f.buf[f.start:]; len(head) >= FrameHeader {
		if err := f.fill(min(FrameHeader+bodySize(head), MaxFrame)); err != nil {
			return Frame{}, err
		}
	}
	frame, n, err := DecodeFrame(f.buf[f.start:])
	if err != nil {
		return Frame{}, fault.New(fault.Invalid, "at byte %d: %w", f.read, err)
	}
	if n == 0 {
		return Frame{}, io.EOF
	}
	f.start += n
	f.read += int64(n)
	return frame, nil
}

// Offset is where in the stream the next frame begins.
func (f *FrameReader) Offset() int64 { return f.read }

// fill reads until n bytes are buffered, or the stream has ended.
func (f *FrameReader) fill(n int) error {
	for len(f.buf)-f.start < n && f.err == nil {
		if f.buf == nil {
			f.buf = make([]byte, 0, 2*MaxFrame)
		}
		if cap(f.buf)-f.start < n {
			f.buf = f.buf[:copy(f.buf[:cap(f.buf)], f.buf[f.start:])]
			f.start = 0
		}
		var got int
		got, f.err = f.r.Read(f.buf[len(f.buf):cap(f.buf)])
		f.buf = f.buf[:len(f.buf)+got]
	}
	if f.err != nil && !errors.Is(f.err, io.EOF) {
		return f.err
	}
	return nil
}

// Resync skips bytes until an intact frame of the run begins, and returns how many. It returns io.EOF if there is none.
func (f *FrameReader) Resync(run Run) (skipped int64, err error) {
	for {
		if err := f.fill(MaxFrame); err != nil {
			return skipped, err
		}
		if len(f.buf)-f.start < FrameHeader {
			return skipped, io.EOF
		}
		f.start++
		f.read++
		skipped++
		frame, n, err := DecodeFrame(f.buf[f.start:])
		if err == nil && n > 0 && frame.Run == run {
			return skipped, nil
		}
	}
}
