package spool

import (
	"crypto/ed25519"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
)

const (
	minSegment = 4 * audit.MaxFrame
	noteRoom   = audit.FrameHeader + audit.MaxNote // kept free at the end of each segment for a checkpoint
)

// Config says where a spool lies, whose it is and how much it may take.
type Config struct {
	Dir                string // created with mode 0700
	Node, Region, Mesh string // Node and Mesh name the tree; Node and Region are filled into records that leave them empty
	Signer             audit.Signer

	SegmentBytes int64 // of one segment file; 64 MiB if zero, at least 256 KiB and a little
	MaxBytes     int64 // of all segments together; 1 GiB if zero, at least two segments
	Reserve      int64 // room kept for denials, revocations and gaps; 1/16 of a segment if zero

	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: metrics are not registered
	Now        func() time.Time      // time.Now if nil

	// OpenFile opens segment files; nil is the operating system. Tests of failing disks replace it.
	OpenFile func(path string, flag int) (File, error)
}

// File is a segment's file.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error // data and what is needed to find it: fdatasync where there is one
}

func (c *Config) fill() {
	if c.SegmentBytes == 0 {
		c.SegmentBytes = 64 << 20
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = max(1<<30, 2*c.SegmentBytes)
	}
	if c.Reserve == 0 {
		c.Reserve = c.SegmentBytes / 16
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.OpenFile == nil {
		c.OpenFile = openFile
	}
}

// Validate reports all that is wrong with the configuration. Zero sizes stand for their defaults.
func (c Config) Validate() error {
	c.fill()
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fault.New(fault.Invalid, "spool: "+format, args...))
		}
	}
	check(c.Dir != "", "dir: empty")
	check(c.Node != "", "node: empty")
	check(c.Mesh != "", "mesh: empty")
	check(c.Signer != nil && len(c.Signer.Public()) == ed25519.PublicKeySize, "signer: no Ed25519 key")
	check(c.SegmentBytes >= minSegment && c.SegmentBytes <= 1<<30, "segment_bytes: %d, want %d to %d", c.SegmentBytes, minSegment, 1<<30)
	check(c.MaxBytes >= 2*c.SegmentBytes, "max_bytes: %d, want at least two segments of %d", c.MaxBytes, c.SegmentBytes)
	check(c.Reserve >= 0 && c.Reserve <= c.SegmentBytes/2, "reserve: %d, want at most half a segment", c.Reserve)
	return errors.Join(errs...)
}
