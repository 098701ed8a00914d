package spool_test

import (
	"bytes"
	"errors"
	"os"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/spool"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// fill appends until the spool refuses, and returns why; what was appended is durable then.
func fill(t *testing.T, s *spool.Spool, r func(int) *audit.Record) error {
	t.Helper()
	var last *spool.Ticket
	for i := range 100_000 {
		ticket, err := s.Append(r(i))
		if err == nil {
			last = &ticket
			continue
		}
		if s.Bytes() < 2*segmentBytes { // only the next segment is not ready yet
			eventually(t, "the second segment", func() bool { return s.Bytes() >= 2*segmentBytes })
			continue
		}
		if s.Healthy() == nil { // it has become ready meanwhile
			continue
		}
		if last != nil {
			if err := last.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		return err
	}
	t.Fatal("the spool never refused")
	return nil
}

func TestAFullSpoolKeepsRoomForDenialsAndGaps(t *testing.T) {
	t.Parallel()
	cfg := config(t.TempDir())
	cfg.MaxBytes = 2 * segmentBytes
	s, _ := running(t, cfg)
	if err := fill(t, s, decision); !fault.Is(err, fault.Exhausted) {
		t.Fatalf("full: %v", err)
	}
	if err := s.Healthy(); !fault.Is(err, fault.Exhausted) {
		t.Errorf("healthy: %v", err)
	}
	durable(t, s, denial(1))
	s.Gap("billing", "spool full")
	s.Gap("billing", "spool full")
	eventually(t, "the gap", func() bool { // as one record, or two where a second ended between
		var count uint64
		for _, r := range read(t, s, nil, s.RunName(), s.Depth())[s.RunName()].records {
			if r.Kind == audit.KindGap && r.Gap.Route == "billing" && r.Gap.Reason == "spool full" {
				count += r.Gap.Count
			}
		}
		return count == 2
	})
	// A flood of denials ends before the room of the gaps does.
	if err := fill(t, s, denial); !fault.Is(err, fault.Exhausted) {
		t.Fatalf("denials: %v", err)
	}
	before := s.Depth()
	s.Gap("billing", "spool full")
	eventually(t, "another gap record", func() bool { return s.Depth() == before+1 })
}

func TestAcknowledgedRoomIsUsedAgain(t *testing.T) {
	t.Parallel()
	cfg := config(t.TempDir())
	cfg.MaxBytes = 2 * segmentBytes
	s, stop := running(t, cfg)
	var acknowledged uint64
	for round := range 4 {
		if err := fill(t, s, decision); !fault.Is(err, fault.Exhausted) {
			t.Fatalf("round %d: %v", round, err)
		}
		tr := read(t, s, nil, s.RunName(), acknowledged+s.Depth())[s.RunName()]
		acknowledged = tr.proved
		run, _ := audit.ParseRun(s.RunName())
		if err := s.Acknowledge(run, tr.proved, audit.Hash{1}, nil); !fault.Is(err, fault.Conflict) {
			t.Fatalf("another root: %v", err)
		}
		if err := s.Acknowledge(run, tr.proved+1, tr.root, nil); !fault.Is(err, fault.Invalid) {
			t.Fatalf("a size that was not shipped: %v", err)
		}
		if err := s.Acknowledge(run, tr.proved, tr.root, nil); err != nil {
			t.Fatal(err)
		}
		if d := s.Depth(); d != 0 {
			t.Fatalf("depth %d after acknowledgement", d)
		}
		eventually(t, "room again", func() bool { return s.Healthy() == nil })
	}
	stop()
	s, _ = running(t, cfg)
	if d := s.Depth(); d != 0 {
		t.Errorf("depth %d after restart: the acknowledgement was forgotten", d)
	}
}

// badDisk fails on demand.
type badDisk struct {
	noSpace, badSync atomic.Bool
	fatal            []byte // badSync is set when it is written; nil: nothing
}

type badFile struct {
	spool.File
	disk *badDisk
}

func (d *badDisk) open(path string, flag int) (spool.File, error) {
	f, err := os.OpenFile(path, flag, 0o600)
	return badFile{f, d}, err
}

func (f badFile) WriteAt(b []byte, at int64) (int, error) {
	if f.disk.noSpace.Load() && at+int64(len(b)) >= segmentBytes {
		return 0, syscall.ENOSPC
	}
	if len(f.disk.fatal) > 0 && bytes.Contains(b, f.disk.fatal) {
		f.disk.badSync.Store(true)
	}
	return f.File.WriteAt(b, at)
}

func (f badFile) Sync() error {
	if f.disk.badSync.Load() {
		return syscall.EIO
	}
	return f.File.Sync()
}

func TestASyncThatFailsPoisonsTheSpool(t *testing.T) {
	t.Parallel()
	disk := badDisk{fatal: []byte("/invoice/2")} // not before: a checkpoint could meet it first
	cfg := config(t.TempDir())
	cfg.OpenFile = disk.open
	s, stop := running(t, cfg)
	kept := durable(t, s, decision(1))
	ticket, err := s.Append(decision(2))
	if err != nil {
		t.Fatal(err)
	}
	if err := ticket.Wait(t.Context()); !fault.Is(err, fault.Unavailable) || !errors.Is(err, syscall.EIO) {
		t.Fatalf("wait: %v", err)
	}
	disk.badSync.Store(false) // the disk says that all is well again: it is not believed
	if _, err := s.Append(decision(3)); !fault.Is(err, fault.Unavailable) {
		t.Errorf("append: %v", err)
	}
	if err := s.Healthy(); !fault.Is(err, fault.Unavailable) {
		t.Errorf("healthy: %v", err)
	}
	stop()
	s, _ = running(t, cfg)
	if s.RunName() == kept.Run {
		t.Error("the run goes on after a sync that failed")
	}
	if tr := read(t, s, nil, s.RunName(), 1)[kept.Run]; tr.proved < kept.Seq+1 {
		t.Errorf("proved %d: the durable record %d is lost", tr.proved, kept.Seq)
	}
}

func TestAFullDiskRefusesAndRecovers(t *testing.T) {
	t.Parallel()
	var disk badDisk
	cfg := config(t.TempDir())
	cfg.OpenFile = disk.open
	s, _ := running(t, cfg)
	eventually(t, "a segment ahead", func() bool { return s.Bytes() >= 2*segmentBytes })
	disk.noSpace.Store(true)
	eventually(t, "the disk's own reason", func() bool { // a segment that had its room already may still become ready
		if err := fill(t, s, decision); !fault.Is(err, fault.Exhausted) {
			t.Fatalf("full disk: %v", err)
		}
		return errors.Is(s.Healthy(), syscall.ENOSPC)
	})
	durable(t, s, denial(1))
	disk.noSpace.Store(false)
	eventually(t, "room again", func() bool { return s.Healthy() == nil })
	durable(t, s, decision(1))
}
