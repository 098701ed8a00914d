package spool

import (
	"crypto/rand"
	"encoding/binary"
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

// Open locks the directory, reads what is in it and makes the spool ready for Append; Run must then be started. If the last process
// ended cleanly its run goes on. If not, its run gets a last checkpoint over all that survived, and a new run begins, whose first
// record names the run before it. Errors: Invalid for the configuration, Conflict if another process holds the directory.
func Open(cfg Config) (*Spool, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.fill()
	s := &Spool{
		cfg: cfg, encoders: newEncoders(), work: &work{}, changed: make(chan struct{}),
		wake: make(chan struct{}, 1), linger: make(chan struct{}, 1), due: make(chan struct{}, 1), prepare: make(chan struct{}, 1),
		acks: map[audit.Run]ack{}, roots: map[position]audit.Hash{}, gaps: map[gapKey]*audit.Span{},
	}
	s.work.batch = &batch{done: make(chan struct{})}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fault.New(fault.Unavailable, "audit spool: %w", err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	s.lock = lock
	if err := s.recover(); err != nil {
		return nil, errors.Join(fmt.Errorf("open audit spool %s: %w", cfg.Dir, err), s.Close())
	}
	s.metrics = newMetrics(s)
	signal(s.prepare)
	signal(s.wake)
	return s, nil
}

func (s *Spool) recover() error {
	if err := s.claim(); err != nil {
		return err
	}
	clean, err := s.takeCleanMark()
	if err != nil {
		return err
	}
	if err := s.loadAcks(); err != nil {
		return err
	}
	last, err := s.loadSegments()
	if err != nil {
		return err
	}
	if last != nil && clean.Run == last.run.String() && clean.Size == last.tree.Size() && clean.Root == last.tree.Root() {
		s.run, s.runName = last.run, last.run.String()
		s.tree, s.persisted, s.seq = last.tree, last.noted, last.tree.Size()
		s.off = s.segments[len(s.segments)-1].end
		s.mu.Lock()
		released := s.releasable()
		s.mu.Unlock()
		return s.discard(released)
	}
	return s.beginRun(last)
}

// claim refuses the directory of another node, whose records this node could neither sign nor ship.
func (s *Spool) claim() error {
	type owner struct{ Mesh, Node string }
	us, have := owner{s.cfg.Mesh, s.cfg.Node}, owner{}
	if err := readJSON(s.path("owner"), &have); err != nil {
		return err
	}
	switch have {
	case us:
		return nil
	case owner{}:
		return writeJSON(s.path("owner"), us)
	}
	return fault.New(fault.Conflict, "it is the spool of node %s of mesh %s", have.Node, have.Mesh)
}

// takeCleanMark reads the mark of a clean end and removes it, durably, before anything is written.
func (s *Spool) takeCleanMark() (mark cleanMark, err error) {
	if err := readJSON(s.path("clean"), &mark); err != nil {
		s.cfg.Logger.Warn("audit spool: unreadable mark of a clean end", "error", err)
		mark = cleanMark{}
	}
	if err := removeIfThere(s.path("clean")); err != nil {
		return mark, err
	}
	return mark, syncDir(s.cfg.Dir)
}

func (s *Spool) loadAcks() error {
	file := acksFile{}
	if err := readJSON(s.path("acks"), &file); err != nil {
		// Without it records are shipped twice, which the aggregator notices; that is better than not to start.
		s.cfg.Logger.Warn("audit spool: unreadable acknowledgements", "error", err)
	}
	for name, a := range file {
		if run, err := audit.ParseRun(name); err == nil {
			s.acks[run] = a
		}
	}
	return nil
}

// tailState is what the scan of the last segment found.
type tailState struct {
	run   audit.Run
	tree  *audit.Tree
	noted uint64 // size of the last checkpoint among the frames
	torn  bool   // something else than zeros follows the last whole frame
}

// loadSegments opens and scans all segments. What is damaged is logged and, where records are missing for sure, counted as a gap.
func (s *Spool) loadSegments() (*tailState, error) {
	names, err := filepath.Glob(s.path("*.segment")) // sorted
	if err != nil {
		return nil, err
	}
	var last *tailState
	for _, name := range names {
		index, err := strconv.ParseUint(strings.TrimSuffix(filepath.Base(name), ".segment"), 16, 64)
		if err != nil {
			return nil, fault.New(fault.Invalid, "%s is no segment of ours", name)
		}
		s.index = max(s.index, index)
		f, err := s.cfg.OpenFile(name, os.O_RDWR)
		if err != nil {
			return nil, err
		}
		seg := &segment{index: index, path: name, file: f}
		state, err := seg.scan()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if state == nil { // prepared and never used, or damaged from its first byte
			if err := errors.Join(f.Close(), os.Remove(name)); err != nil {
				return nil, err
			}
			continue
		}
		if last != nil && last.run == seg.run && last.tree.Size() < seg.first {
			s.damaged(s.segments[len(s.segments)-1], seg.first-last.tree.Size())
		}
		s.segments = append(s.segments, seg)
		last = state
	}
	return last, nil
}

// damaged reports records that a segment has lost. The gap becomes a record of the run that is about to begin or to go on.
func (s *Spool) damaged(seg *segment, lost uint64) {
	s.cfg.Logger.Error("audit segment damaged", "segment", seg.path, "run", seg.run.String(), "after_seq", seg.seqEnd, "lost", lost)
	now := s.cfg.Now()
	k := gapKey{reason: "segment damaged: run " + seg.run.String() + " from " + strconv.FormatUint(seg.seqEnd, 10)}
	s.gaps[k] = &audit.Span{Count: lost, Reason: k.reason, From: now, To: now}
}

// scan reads the segment's frames, up to where they end or cease to be whole. A nil state: there is not even an edge.
func (seg *segment) scan() (*tailState, error) {
	r := audit.NewFrameReader(io.NewSectionReader(seg.file, 0, 1<<62))
	var state *tailState
	for {
		f, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if fault.Is(err, fault.Invalid) {
			if state != nil {
				state.torn = true
			}
			break
		}
		if err != nil {
			return nil, err
		}
		if state == nil {
			tree, err := f.Tree()
			if err != nil {
				return nil, nil
			}
			state = &tailState{run: f.Run, tree: tree}
			seg.run, seg.first = f.Run, f.Seq
		} else if f.Run != state.run || (f.Kind == audit.RecordFrame && f.Seq != state.tree.Size()) || f.Kind == audit.EdgeFrame {
			state.torn = true
			break
		} else if f.Kind == audit.RecordFrame {
			state.tree.Append(audit.LeafHash(f.Body))
		} else {
			state.noted = f.Seq
		}
		seg.end = r.Offset()
	}
	if state != nil {
		seg.seqEnd = state.tree.Size()
	}
	return state, nil
}

// beginRun ends the run that was not closed, and begins a new one in a new segment.
func (s *Spool) beginRun(last *tailState) error {
	reason, previous := "first", audit.Run(0)
	detail := map[string]string{}
	if last != nil {
		reason, previous = "unclean", last.run
		root := last.tree.Root()
		detail["previous_run"] = last.run.String()
		detail["previous_size"] = strconv.FormatUint(last.tree.Size(), 10)
		detail["previous_root"] = fmt.Sprintf("%x", root[:])
		if err := s.endRun(last); err != nil {
			return err
		}
	}
	detail["reason"] = reason
	s.run = max(newRun(s.cfg.Now().UnixMilli()), previous+1)
	s.runName = s.run.String()
	s.tree = audit.NewTree()
	seg, err := s.newSegment()
	if err != nil {
		return fault.New(fault.Unavailable, "%w", err)
	}
	s.segments = append(s.segments, seg)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.appendLocked(&audit.Record{Kind: audit.KindRun, Time: s.cfg.Now(), Detail: detail}) {
		return fault.New(fault.Internal, "no room for the first record in an empty segment")
	}
	return nil
}

// endRun signs what survived of a run. The checkpoint takes the place of the torn end, and what followed there is overwritten with
// zeros: it was never reported durable.
func (s *Spool) endRun(last *tailState) error {
	seg := s.segments[len(s.segments)-1]
	if !last.torn && last.noted == last.tree.Size() {
		return nil
	}
	c := audit.Checkpoint{Mesh: s.cfg.Mesh, Node: s.cfg.Node, Run: last.run, Size: last.tree.Size(), Root: last.tree.Root(), Time: s.cfg.Now()}
	signed, err := c.Sign(s.cfg.Signer)
	if err != nil {
		return err
	}
	frame := audit.AppendFrame(nil, audit.Frame{Kind: audit.CheckpointFrame, Run: last.run, Seq: c.Size, Body: signed})
	end := seg.end
	if c.Size > last.noted && end+int64(len(frame)) <= s.cfg.SegmentBytes {
		if _, err := seg.file.WriteAt(frame, end); err != nil {
			return err
		}
		end += int64(len(frame))
	}
	if err := zero(seg.file, end, s.cfg.SegmentBytes); err != nil {
		return err
	}
	if err := seg.file.Sync(); err != nil {
		return err
	}
	seg.end = end
	return nil
}

func newRun(ms int64) audit.Run {
	var r [8]byte
	rand.Read(r[6:]) // never fails
	return audit.Run(uint64(ms)<<16 | uint64(binary.BigEndian.Uint16(r[6:])))
}
