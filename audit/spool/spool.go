package spool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// maxPending bounds what waits in memory for a disk that does not keep up.
const maxPending = 16 << 20

// Spool is a node's durable queue of records. All its methods may be called concurrently.
type Spool struct {
	cfg      Config
	metrics  *metrics
	run      audit.Run
	runName  string
	lock     *os.File
	encoders *sync.Pool

	// of the committing goroutine alone, once Open has returned
	tree      *audit.Tree // over what is durable
	persisted uint64      // size of the last checkpoint among the frames

	wake    chan struct{} // commit now
	linger  chan struct{} // commit soon
	due     chan struct{} // a checkpoint now
	prepare chan struct{} // another segment may be needed

	mu         sync.Mutex
	segments   []*segment // oldest first; the last is the tail, to which frames are appended
	ahead      []*segment // prepared, to become the tail in turn
	index      uint64     // of the segment made last
	off        int64      // where in the tail the next frame goes
	seq        uint64     // of the next record
	work       *work      // appended, not yet taken by the committing goroutine
	spare      *work      // to reuse
	poison     error
	noRoom     error // why no segment could be prepared
	closed     bool
	distrusted bool          // do not go on with this run after a restart
	unseen     int           // bytes that became durable since readers were woken
	latest     []byte        // the newest checkpoint
	changed    chan struct{} // closed and replaced to wake the readers
	acks       map[audit.Run]ack
	roots      map[position]audit.Hash // of checkpoints handed out and not acknowledged
	gaps       map[gapKey]*audit.Span
	hastening  []chan struct{} // closed after the next checkpoint
}

// work is what the next commit writes: chunks for one or more segments.
type work struct {
	batch  *batch
	chunks []chunk
	bytes  int
}

// chunk is frames that follow each other in one segment.
type chunk struct {
	seg    *segment
	at     int64
	edge   int // bytes at the beginning of buf kept for the edge frame, if the chunk opens its segment
	buf    []byte
	leaves []audit.Hash
}

// Append gives the record its place and has it written; the Ticket tells when it is durable. Outcomes are written within 25 ms, or
// with whatever is written before; all else is written at once. Node, Region and Time are filled in where they are empty. The
// record may be changed by the caller as soon as Append has returned. Errors: Exhausted if there is no room, Unavailable if the spool is
// poisoned or closed; then nothing was recorded.
func (s *Spool) Append(r *audit.Record) (Ticket, error) {
	if r.Node == "" {
		r.Node = s.cfg.Node
	}
	if r.Region == "" {
		r.Region = s.cfg.Region
	}
	if r.Time.IsZero() {
		r.Time = s.cfg.Now()
	}
	e := s.encoders.Get().(*encoder)
	defer s.encoders.Put(e)
	frame, leaf := e.encode(r)

	keep := s.cfg.Reserve
	switch {
	case r.Kind == audit.KindGap || r.Kind == audit.KindRun:
		keep = 0
	case r.Privileged():
		keep = s.cfg.Reserve / 4 // a flood of denials must not take the room of the gap records
	}
	s.mu.Lock()
	if err := s.admit(int64(len(frame)), keep); err != nil {
		s.mu.Unlock()
		s.metrics.refused.Inc()
		return Ticket{}, err
	}
	t := Ticket{spool: s, batch: s.work.batch, seq: s.seq}
	audit.Frame{Run: s.run, Seq: s.seq}.Seal(frame)
	c := s.place(frame)
	c.leaves = append(c.leaves, leaf)
	s.seq++
	s.mu.Unlock()
	if r.Kind == audit.KindOutcome {
		signal(s.linger)
	} else {
		signal(s.wake)
	}
	return t, nil
}

// admit reports whether a frame of n bytes fits and leaves keep bytes free. Only segments that exist count, so that what was admitted can
// never meet a full disk.
func (s *Spool) admit(n, keep int64) error {
	switch {
	case s.poison != nil:
		return s.poison
	case s.closed:
		return fault.New(fault.Unavailable, "audit spool is closed")
	case s.work.bytes > maxPending:
		return fault.New(fault.Exhausted, "audit spool: %d bytes wait for the disk", s.work.bytes)
	}
	fits := s.off+n <= s.capacity()
	if room := s.room(); room-n < keep || (!fits && len(s.ahead) == 0) {
		if s.noRoom != nil {
			return fault.New(fault.Exhausted, "audit spool: %d bytes left, and no further segment: %w", room, s.noRoom)
		}
		return fault.New(fault.Exhausted, "audit spool is full: %d bytes left of %d", room, s.cfg.MaxBytes)
	}
	return nil
}

// capacity is the end of the room for records in a segment.
func (s *Spool) capacity() int64 { return s.cfg.SegmentBytes - noteRoom }

// room is how many bytes of frames fit into the segments that exist.
func (s *Spool) room() int64 {
	room := s.capacity() - s.off
	// Less what edges take, and what a segment loses because frames are not split.
	room += int64(len(s.ahead)) * (s.capacity() - audit.MaxFrame)
	return max(room, 0)
}

// place puts a frame at the end of the tail, or of the next segment if it does not fit. What is placed was admitted, or is a checkpoint,
// for which each segment keeps room.
func (s *Spool) place(frame []byte) *chunk {
	if s.off+int64(len(frame)) > s.capacity() && len(s.ahead) > 0 {
		s.segments = append(s.segments, s.ahead[0])
		s.ahead, s.off = s.ahead[1:], 0
		signal(s.prepare)
	}
	tail := s.segments[len(s.segments)-1]
	w := s.work
	if n := len(w.chunks); n == 0 || w.chunks[n-1].seg != tail {
		w.chunks = grow(w.chunks)
		c := &w.chunks[n]
		c.seg, c.at, c.edge = tail, s.off, 0
		if s.off == 0 {
			c.edge = edgeSize(s.seq)
			c.buf = append(c.buf, make([]byte, c.edge)...)
			s.off = int64(c.edge)
			tail.run, tail.first, tail.seqEnd = s.run, s.seq, s.seq
		}
	}
	c := &w.chunks[len(w.chunks)-1]
	c.buf = append(c.buf, frame...)
	w.bytes += len(frame)
	s.off += int64(len(frame))
	return c
}

// grow appends a chunk, reusing the buffers of one that was there before.
func grow(chunks []chunk) []chunk {
	if n := len(chunks); n < cap(chunks) {
		chunks = chunks[:n+1]
		chunks[n].buf, chunks[n].leaves = chunks[n].buf[:0], chunks[n].leaves[:0]
		return chunks
	}
	return append(chunks, chunk{})
}

// Run commits what is appended, signs a checkpoint each second and prepares segments, until ctx ends; then it commits what is left, marks
// the directory as cleanly closed, and releases it. It returns an error only if that last part went wrong.
func (s *Spool) Run(ctx context.Context) error {
	var g errgroup.Group
	stopped, stop := context.WithCancel(ctx)
	g.Go(func() error {
		defer stop()
		return s.commitLoop(ctx)
	})
	g.Go(func() error {
		s.prepareLoop(stopped)
		return nil
	})
	err := g.Wait()
	s.mu.Lock()
	distrusted := s.distrusted
	s.mu.Unlock()
	if err == nil && !distrusted {
		err = s.markClean()
	}
	if closeErr := s.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("close audit spool %s: %w", s.cfg.Dir, err)
	}
	return nil
}

// Close releases the directory of a spool that does not run, as if the process had been killed: the next Open begins a new run. Run
// calls it at its end; it may be called again.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.lock == nil {
		return nil
	}
	for _, seg := range s.segments {
		seg.file.Close()
	}
	for _, seg := range s.ahead {
		seg.file.Close()
	}
	// In so many words: a process that is being forked at this moment holds the file open, too.
	err := errors.Join(unix.Flock(int(s.lock.Fd()), unix.LOCK_UN), s.lock.Close())
	s.lock = nil
	return err
}

// Healthy returns nil if ordinary records are accepted, else why not.
func (s *Spool) Healthy() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.admit(audit.MaxFrame, s.cfg.Reserve)
}

// RunName is the run that this spool writes, as IDs carry it.
func (s *Spool) RunName() string { return s.runName }

// Depth is the number of durable records that no aggregator has acknowledged.
func (s *Spool) Depth() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var n uint64
	for _, seg := range s.segments {
		if from := max(seg.first, s.acks[seg.run].Next); seg.seqEnd > from {
			n += seg.seqEnd - from
		}
	}
	return n
}

// Bytes is the size of the segments on disk.
func (s *Spool) Bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(len(s.segments)+len(s.ahead)) * s.cfg.SegmentBytes
}

// poisonWith stops the spool for good: after a write or a sync that failed, nobody knows what the disk holds.
func (s *Spool) poisonWith(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.poison == nil {
		s.poison = fault.New(fault.Unavailable, "audit spool is poisoned until restart: %w", err)
		s.metrics.poisoned.Set(1)
		s.cfg.Logger.Error("audit spool poisoned", "dir", s.cfg.Dir, "error", err)
	}
	return s.poison
}

func (s *Spool) kick() { signal(s.wake) }

func (s *Spool) path(name string) string { return filepath.Join(s.cfg.Dir, name) }

// notify wakes the readers: at each checkpoint, before which an aggregator can prove nothing, and in between only for as much as
// makes a good message. The caller holds mu.
func (s *Spool) notify() {
	s.unseen = 0
	close(s.changed)
	s.changed = make(chan struct{})
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

const (
	checkpointEvery = time.Second
	lingerFor       = 25 * time.Millisecond
)
