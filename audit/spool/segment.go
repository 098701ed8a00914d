package spool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// segment is one file of fixed size. Its fields below file are guarded by the spool's mu.
type segment struct {
	index uint64
	path  string
	file  File

	run     audit.Run
	first   uint64 // of its first record
	seqEnd  uint64 // after its last durable record
	end     int64  // of its durable frames
	dropped bool   // acknowledged; the file may already be another segment's
}

func segmentName(index uint64) string { return fmt.Sprintf("%016x.segment", index) }

// aheadBytes is how much room is prepared beside the tail: what arrives while another segment is being prepared.
const aheadBytes = 16 << 20

// prepareLoop keeps segments ready beside the tail: one, or several if they are small.
func (s *Spool) prepareLoop(ctx context.Context) {
	want := int(min(max(aheadBytes/s.cfg.SegmentBytes, 1), 4))
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.prepare:
		case <-retry.C:
		}
		s.mu.Lock()
		held := int64(len(s.segments) + len(s.ahead))
		wanted := len(s.ahead) < want && s.poison == nil && (held+1)*s.cfg.SegmentBytes <= s.cfg.MaxBytes
		s.mu.Unlock()
		if !wanted {
			continue
		}
		seg, err := s.newSegment()
		s.mu.Lock()
		if s.noRoom = err; err == nil {
			s.ahead = append(s.ahead, seg)
		}
		s.mu.Unlock()
		if err != nil {
			s.cfg.Logger.Warn("no further audit segment", "dir", s.cfg.Dir, "error", err)
			retry.Reset(time.Second)
		} else {
			signal(s.prepare)
		}
		signal(s.wake) // gap records may have waited for room
	}
}

// newSegment makes a segment: a spare file if there is one, filled with zeros and synced under a name that Open discards, then renamed.
func (s *Spool) newSegment() (*segment, error) {
	s.mu.Lock()
	s.index++
	index := s.index
	s.mu.Unlock()
	tmp, path := s.path("preparing"), s.path(segmentName(index))
	_ = os.Rename(s.path("spare"), tmp) // usually there is none
	f, err := s.cfg.OpenFile(tmp, os.O_CREATE|os.O_RDWR)
	if err != nil {
		return nil, err
	}
	err = zero(f, 0, s.cfg.SegmentBytes)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil {
		err = syncDir(s.cfg.Dir)
	}
	if err != nil {
		// What is left of a file that did not fit gives its room back.
		return nil, errors.Join(fmt.Errorf("prepare segment %s: %w", path, err), f.Close(), removeIfThere(tmp))
	}
	return &segment{index: index, path: path, file: f}, nil
}

func zero(f File, from, to int64) error {
	zeros := make([]byte, 256<<10)
	for at := from; at < to; {
		n := min(int64(len(zeros)), to-at)
		if _, err := f.WriteAt(zeros[:n], at); err != nil {
			return err
		}
		at += n
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// releasable takes the oldest segments off the list as far as they are acknowledged. The caller holds mu, and discards them afterwards.
func (s *Spool) releasable() []*segment {
	var released []*segment
	// A segment that is followed by one with durable frames is itself written to its end.
	for len(s.segments) > 1 && s.segments[1].end > 0 {
		seg := s.segments[0]
		if seg.seqEnd > seg.first && s.acks[seg.run].Next < seg.seqEnd {
			break
		}
		seg.dropped = true
		released = append(released, seg)
		s.segments = s.segments[1:]
	}
	if len(released) == 0 {
		return nil
	}
	held := map[audit.Run]bool{s.run: true}
	for _, seg := range s.segments {
		held[seg.run] = true
	}
	maps.DeleteFunc(s.acks, func(run audit.Run, _ ack) bool { return !held[run] })
	return released
}

// discard gives the files of released segments back, and keeps one as the spare: its blocks need not be found again.
func (s *Spool) discard(released []*segment) error {
	if len(released) == 0 {
		return nil
	}
	var errs []error
	for _, seg := range released {
		errs = append(errs, seg.file.Close())
		if _, err := os.Lstat(s.path("spare")); err == nil {
			errs = append(errs, os.Remove(seg.path))
		} else {
			errs = append(errs, os.Rename(seg.path, s.path("spare")))
		}
	}
	errs = append(errs, syncDir(s.cfg.Dir))
	signal(s.prepare)
	if err := errors.Join(errs...); err != nil {
		return fault.New(fault.Unavailable, "release audit segments: %w", err)
	}
	return nil
}
