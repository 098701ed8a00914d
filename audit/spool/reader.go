package spool

import (
	"bytes"
	"context"
	"fmt"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// readChunk bounds the frames of one Item: far below gRPC's limit of 4 MiB for a message.
const readChunk = 256 << 10

// Item is what a Reader yields: consecutive frames of one run, or a checkpoint of it.
type Item struct {
	Run audit.Run
	// Frames are verbatim; an edge frame comes first if records before First are no longer in the spool and the receiver lacks them.
	Frames     []byte
	First      uint64
	Count      int
	Checkpoint []byte // a signed note
}

// Reader reads what is durable, oldest first, and then follows. It is for one goroutine.
type Reader struct {
	spool *Spool
	had   map[audit.Run]uint64 // per run, how many records the receiver had at first
	next  map[audit.Run]uint64 // per run, the record that it wants next
	seg   *segment
	off   int64
	queue []Item
	sent  []byte // the last checkpoint that did not come from a segment
}

// Runs lists the runs of which the spool holds records, oldest first.
func (s *Spool) Runs() []audit.Run {
	s.mu.Lock()
	defer s.mu.Unlock()
	var runs []audit.Run
	for _, seg := range s.segments {
		if n := len(runs); seg.end > 0 && (n == 0 || runs[n-1] != seg.run) {
			runs = append(runs, seg.run)
		}
	}
	return runs
}

// Reader yields what a receiver lacks that has, of each run, the records before next[run]; a run that is not named is read from
// its oldest record in the spool. A position beyond what the spool has written makes it read that run from its oldest record too: the
// receiver will notice that it has another history.
func (s *Spool) Reader(next map[audit.Run]uint64) *Reader {
	r := &Reader{spool: s, had: map[audit.Run]uint64{}, next: map[audit.Run]uint64{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	written := map[audit.Run]uint64{}
	for _, seg := range s.segments {
		written[seg.run] = seg.seqEnd
	}
	for run, n := range next {
		if n <= written[run] {
			r.had[run], r.next[run] = n, n
		}
	}
	return r
}

// Next waits for the next item. It returns ctx's error, or one of kind Internal if a segment in use cannot be read.
func (r *Reader) Next(ctx context.Context) (Item, error) {
	for {
		if len(r.queue) > 0 {
			item := r.queue[0]
			r.queue = r.queue[1:]
			return item, nil
		}
		s := r.spool
		s.mu.Lock()
		r.advance()
		seg, changed, latest := r.seg, s.changed, s.latest
		var end int64
		if seg != nil {
			end = seg.end
		}
		s.mu.Unlock()
		switch {
		case seg != nil && r.off < end:
			if err := r.read(seg, end); err != nil {
				return Item{}, err
			}
			continue
		case latest != nil && !bytes.Equal(latest, r.sent):
			r.sent = latest
			if item, ok := r.checkpoint(s.run, latest); ok {
				return item, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Item{}, ctx.Err()
		}
	}
}

// advance moves to the segment that is to be read now. The caller holds the spool's mu.
func (r *Reader) advance() {
	for _, seg := range r.spool.segments {
		switch {
		case seg.end == 0:
			return // nothing durable in it yet
		case r.seg == nil || seg.index > r.seg.index:
			if r.seg != nil && !r.seg.dropped && r.off < r.seg.end {
				return
			}
			r.seg, r.off = seg, 0
			if r.off < seg.end {
				return
			}
		}
	}
}

// read decodes a piece of a segment into the queue.
func (r *Reader) read(seg *segment, end int64) error {
	buf := make([]byte, min(end-r.off, readChunk+audit.MaxFrame))
	if _, err := seg.file.ReadAt(buf, r.off); err != nil {
		return r.failed(seg, err)
	}
	var item Item
	begin, at := 0, 0 // item.Frames will be buf[begin:at]
	flush := func() {
		if begin < at {
			item.Frames = buf[begin:at:at]
			r.queue = append(r.queue, item)
		}
		item = Item{}
	}
	for at < min(len(buf), readChunk) {
		f, n, err := audit.DecodeFrame(buf[at:])
		if err != nil && at > 0 && r.off+int64(len(buf)) < end {
			break // the piece ends within this frame
		}
		if err != nil || n == 0 {
			flush()
			r.off += int64(at)
			return r.failed(seg, fmt.Errorf("segment %s at %d: %w", seg.path, r.off, err))
		}
		next, known := r.next[f.Run]
		switch {
		case f.Kind == audit.RecordFrame && f.Seq >= next:
			if item.Count++; item.Run == 0 {
				item.Run, item.First = f.Run, f.Seq
			}
			r.next[f.Run] = f.Seq + 1
			at += n
			continue
		case f.Kind == audit.EdgeFrame && f.Seq > next && (known || f.Seq > 0):
			flush()
			begin = at
			item.Run, item.First = f.Run, f.Seq
			r.next[f.Run] = f.Seq
			at += n
			continue
		}
		// What is no part of the item: a checkpoint, or what the receiver has already.
		flush()
		at += n
		begin = at
		if f.Kind == audit.CheckpointFrame && f.Seq >= r.had[f.Run] && !bytes.Equal(f.Body, r.sent) {
			if c, ok := r.checkpoint(f.Run, f.Body); ok {
				r.queue = append(r.queue, c)
			}
		}
	}
	flush()
	r.off += int64(at)
	return nil
}

// checkpoint remembers the root that an acknowledgement must name.
func (r *Reader) checkpoint(run audit.Run, signed []byte) (Item, bool) {
	s := r.spool
	c, err := audit.OpenCheckpoint(signed, s.cfg.Node, s.cfg.Signer.Public())
	if err != nil { // signed under a key that was replaced since: a later checkpoint covers the same records
		s.cfg.Logger.Warn("audit checkpoint left out", "run", run.String(), "error", err)
		return Item{}, false
	}
	s.mu.Lock()
	s.roots[position{run, c.Size}] = c.Root
	s.mu.Unlock()
	return Item{Run: run, Checkpoint: signed}, true
}

// failed handles a segment that cannot be read: one that was released meanwhile is left, one that is damaged is cut off where the damage
// begins and its loss recorded, and one that is being written poisons the spool.
func (r *Reader) failed(seg *segment, err error) error {
	s := r.spool
	s.mu.Lock()
	tail := s.segments[len(s.segments)-1] == seg
	if seg.dropped || tail {
		dropped, closed := seg.dropped, s.closed
		s.mu.Unlock()
		switch {
		case dropped:
			return nil
		case closed:
			return fault.New(fault.Unavailable, "audit spool is closed")
		}
		return s.poisonWith(fmt.Errorf("read back: %w", err))
	}
	defer s.mu.Unlock()
	reached := max(seg.first, min(r.next[seg.run], seg.seqEnd))
	lost := seg.seqEnd - reached
	seg.seqEnd, seg.end = reached, r.off
	if lost > 0 {
		s.damaged(seg, lost)
	}
	return nil
}
