package spool

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/iapmesh/iapmesh/audit"
)

// commitLoop writes and syncs what was appended. It alone writes to segments.
func (s *Spool) commitLoop(ctx context.Context) error {
	ticker := time.NewTicker(checkpointEvery)
	defer ticker.Stop()
	linger := time.NewTimer(0)
	defer linger.Stop()
	armed := true
	for {
		select {
		case <-ctx.Done():
			s.mu.Lock()
			s.flushGaps()
			s.closed = true
			s.mu.Unlock()
			if err := s.commitAll(); err != nil {
				return err
			}
			s.checkpoint()
			return s.commitAll()
		case <-s.wake:
		case <-s.linger:
			if !armed {
				linger.Reset(lingerFor)
				armed = true
			}
			continue
		case <-linger.C:
			armed = false
		case <-ticker.C:
			s.prove()
		case <-s.due:
			s.prove()
		}
		_ = s.commitAll() // an error poisons the spool, which reports it from there on
	}
}

// Hasten has all that was appended so far committed and covered by a checkpoint now, and not only at the end of the second. The channel
// closes when that was done, or could not be.
func (s *Spool) Hasten() <-chan struct{} {
	done := make(chan struct{})
	s.mu.Lock()
	s.hastening = append(s.hastening, done)
	s.mu.Unlock()
	signal(s.due)
	return done
}

// prove commits what is left and signs a checkpoint over it.
func (s *Spool) prove() {
	s.mu.Lock()
	s.flushGaps()
	waiting := s.hastening
	s.hastening = nil
	s.mu.Unlock()
	if s.commitAll() == nil {
		s.checkpoint()
	}
	for _, done := range waiting {
		close(done)
	}
}

// commitAll commits until nothing is left.
func (s *Spool) commitAll() error {
	for {
		runtime.Gosched() // whoever is about to append does so first, and shares this sync
		s.mu.Lock()
		w := s.work
		if len(w.chunks) == 0 {
			poison := s.poison
			s.mu.Unlock()
			return poison
		}
		s.work, s.spare = s.spare, nil
		if s.work == nil {
			s.work = &work{}
		}
		s.work.batch = &batch{done: make(chan struct{})}
		poison := s.poison
		s.mu.Unlock()

		start := s.cfg.Now()
		err := poison
		if err == nil {
			if err = s.write(w); err != nil {
				err = s.poisonWith(err)
			}
		}
		s.metrics.commits.Observe(s.cfg.Now().Sub(start).Seconds())

		records := 0
		s.mu.Lock()
		if err == nil {
			for _, c := range w.chunks {
				records += len(c.leaves)
				c.seg.end = c.at + int64(len(c.buf))
				c.seg.seqEnd += uint64(len(c.leaves))
			}
			if s.unseen += w.bytes; s.unseen >= readChunk {
				s.notify()
			}
		}
		b := w.batch
		b.err = err
		w.recycle()
		s.spare = w
		s.mu.Unlock()
		close(b.done)
		s.metrics.records.Add(float64(records))
		if err != nil {
			return err
		}
	}
}

// recycle readies w for reuse, without the buffers that a burst has swollen.
func (w *work) recycle() {
	for i := range w.chunks {
		w.chunks[i].seg = nil
		if cap(w.chunks[i].buf) > 1<<20 {
			w.chunks[i].buf, w.chunks[i].leaves = nil, nil
		}
	}
	w.batch, w.bytes, w.chunks = nil, 0, w.chunks[:0]
}

// write writes the chunks, lets the tree grow, and syncs each segment that was written to.
func (s *Spool) write(w *work) error {
	for i := range w.chunks {
		c := &w.chunks[i]
		if c.edge > 0 {
			edge := audit.AppendFrame(c.buf[:0], audit.EdgeOf(s.run, s.tree))
			if len(edge) != c.edge {
				return fmt.Errorf("segment %s: edge of %d leaves takes %d bytes, not %d", c.seg.path, s.tree.Size(), len(edge), c.edge)
			}
		}
		if _, err := c.seg.file.WriteAt(c.buf, c.at); err != nil {
			return err
		}
		if i+1 == len(w.chunks) || w.chunks[i+1].seg != c.seg {
			start := time.Now()
			if err := c.seg.file.Sync(); err != nil {
				return err
			}
			s.metrics.fsync.Observe(time.Since(start).Seconds())
		}
		for _, leaf := range c.leaves {
			s.tree.Append(leaf)
		}
	}
	return nil
}

// checkpoint signs the tree as it is on disk. If it has grown since the last checkpoint, the note is put among the frames too, so
// that what a spool holds can be proved without the process that wrote it.
func (s *Spool) checkpoint() {
	signed, err := s.sign()
	if err != nil {
		s.cfg.Logger.Error("sign audit checkpoint", "error", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.poison != nil {
		return
	}
	s.latest = signed
	frame := audit.AppendFrame(nil, audit.Frame{Kind: audit.CheckpointFrame, Run: s.run, Seq: s.tree.Size(), Body: signed})
	if s.tree.Size() > s.persisted && s.off+int64(len(frame)) <= s.cfg.SegmentBytes {
		s.persisted = s.tree.Size()
		s.place(frame)
	}
	s.notify()
}

func (s *Spool) sign() ([]byte, error) {
	c := audit.Checkpoint{Mesh: s.cfg.Mesh, Node: s.cfg.Node, Run: s.run, Size: s.tree.Size(), Root: s.tree.Root(), Time: s.cfg.Now()}
	return c.Sign(s.cfg.Signer)
}

// markClean tells the next Open that it may go on with this run.
func (s *Spool) markClean() error {
	return writeJSON(s.path("clean"), cleanMark{Run: s.runName, Size: s.tree.Size(), Root: s.tree.Root()})
}

// cleanMark is the file that a clean end leaves and Open removes.
type cleanMark struct {
	Run  string
	Size uint64
	Root audit.Hash
}
