package collect

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// cursor reads the frames of a run. At the end it keeps its place, so that it can go on once segments has been replaced by a longer list.
type cursor struct {
	run      audit.Run
	segments []segment
	damaged  func(text string) // called where bytes are no frame; they are skipped

	at     segment // that is being read: its path, and in end how far it has been read
	f      *os.File
	reader *audit.FrameReader
	base   int64 // where in the file reader began
	end    int64 // where it ends
}

// next returns the next frame, whose Body holds until the call after, or io.EOF.
func (c *cursor) next() (audit.Frame, error) {
	for {
		if c.reader == nil {
			if err := c.open(); err != nil {
				return audit.Frame{}, err
			}
		}
		frame, err := c.reader.Next()
		if err == nil && frame.Run != c.run {
			err = fault.New(fault.Invalid, "a frame of run %s", frame.Run)
		}
		c.at.end = c.base + c.reader.Offset()
		if errors.Is(err, io.EOF) && c.at.end < c.end {
			err = fault.New(fault.Invalid, "zeros") // they end a spool's segment; here none belong
		}
		switch {
		case err == nil:
			return frame, nil
		case errors.Is(err, io.EOF):
			c.close()
		case fault.Is(err, fault.Invalid):
			skipped, resyncErr := c.reader.Resync(c.run)
			if c.damaged != nil {
				c.damaged(fmt.Sprintf("%s: %d bytes: %v", filepath.Base(c.at.path), skipped, err))
			}
			if resyncErr != nil {
				c.at.end = 1 << 62
				c.close()
			}
		default:
			return audit.Frame{}, fault.New(fault.Unavailable, "read %s: %w", c.at.path, err)
		}
	}
}

// open opens the segment being read if it has grown, else the one after it.
func (c *cursor) open() error {
	for _, s := range c.segments {
		var from int64
		switch {
		case s.path < c.at.path:
			continue
		case s.path == c.at.path:
			if s.end <= c.at.end {
				continue
			}
			from = c.at.end
		}
		f, err := os.Open(s.path)
		if err != nil {
			return fault.New(fault.Unavailable, "%w", err)
		}
		c.f, c.base, c.end, c.at = f, from, s.end, segment{s.path, from}
		c.reader = audit.NewFrameReader(io.NewSectionReader(f, from, s.end-from))
		return nil
	}
	return io.EOF
}

func (c *cursor) close() {
	if c.f != nil {
		_ = c.f.Close() // it was only read
	}
	c.f, c.reader = nil, nil
}

// firstOf is the record that a segment's name says it begins with.
func firstOf(path string) uint64 {
	n, err := strconv.ParseUint(strings.TrimSuffix(filepath.Base(path), ".segment"), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
