package spool_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/spool"
	"github.com/iapmesh/iapmesh/internal/fault"
)

const (
	segmentBytes = 512 << 10
	patience     = 2 * time.Minute // bounds every wait; a test that works never reaches it
)

// nodeKey is a fixed key: who signs does not matter here, only that it is verified.
func nodeKey() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)) }

func config(dir string) spool.Config {
	return spool.Config{Dir: dir, Node: "n1", Region: "eu-west", Mesh: "m", Signer: audit.SignWith(nodeKey()), SegmentBytes: segmentBytes}
}

// running opens a spool and runs it; stop ends it cleanly.
func running(t testing.TB, cfg spool.Config) (s *spool.Spool, stop func()) {
	t.Helper()
	s, err := spool.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		poisoned := fault.Is(s.Healthy(), fault.Unavailable)
		cancel()
		if err := <-done; err != nil && !poisoned {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

func decision(i int) *audit.Record {
	return &audit.Record{Kind: audit.KindDecision, Decision: audit.Allow, Route: "billing", Path: fmt.Sprintf("/invoice/%d", i)}
}

func denial(i int) *audit.Record {
	r := decision(i)
	r.Decision = audit.Deny
	return r
}

// durable appends and waits.
func durable(t testing.TB, s *spool.Spool, r *audit.Record) audit.ID {
	t.Helper()
	ticket, err := s.Append(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := ticket.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	return ticket.ID()
}

// trail is what a reader has found of one run.
type trail struct {
	tree    *audit.Tree
	roots   map[uint64]audit.Hash
	records []audit.Record
	missing uint64
	proved  uint64
	root    audit.Hash
}

// read reads until the run is proved up to size, and fails if what it reads does not yield the signed roots.
func read(t testing.TB, s *spool.Spool, next map[audit.Run]uint64, run string, size uint64) map[string]*trail {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	trails := map[string]*trail{}
	r := s.Reader(next)
	for {
		item, err := r.Next(ctx)
		if err != nil {
			t.Fatalf("reading until %s is proved up to %d: %v; have %+v", run, size, err, trails)
		}
		name := item.Run.String()
		tr := trails[name]
		if tr == nil {
			tr = &trail{tree: audit.NewTree(), roots: map[uint64]audit.Hash{}}
			trails[name] = tr
		}
		for b := item.Frames; len(b) > 0; {
			f, n, err := audit.DecodeFrame(b)
			if err != nil || n == 0 {
				t.Fatalf("frame: %v", err)
			}
			b = b[n:]
			if f.Kind == audit.EdgeFrame {
				tr.missing += f.Seq - tr.tree.Size()
				if tr.tree, err = f.Tree(); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if f.Seq != tr.tree.Size() {
				t.Fatalf("run %s: record %d, want %d", name, f.Seq, tr.tree.Size())
			}
			tr.tree.Append(audit.LeafHash(f.Body))
			tr.roots[tr.tree.Size()] = tr.tree.Root()
			rec, err := audit.Decode(f.Body)
			if err != nil {
				t.Fatal(err)
			}
			tr.records = append(tr.records, rec)
		}
		if item.Checkpoint != nil {
			c, err := audit.OpenCheckpoint(item.Checkpoint, "n1", nodeKey().Public().(ed25519.PublicKey))
			if err != nil {
				t.Fatal(err)
			}
			if root, ok := tr.roots[c.Size]; ok && root != c.Root {
				t.Fatalf("run %s: root at %d does not match", name, c.Size)
			}
			tr.proved, tr.root = c.Size, c.Root
			if name == run && c.Size >= size {
				return trails
			}
		}
	}
}

// eventually polls a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

func TestRecordsAreReadBackInOrderAndProved(t *testing.T) {
	t.Parallel()
	s, _ := running(t, config(t.TempDir()))
	eventually(t, "segments ahead", func() bool { return s.Bytes() >= 4*segmentBytes }) // more than the records take
	var wg sync.WaitGroup
	for p := range 8 {
		wg.Go(func() {
			for i := range 500 {
				r := decision(p*1000 + i)
				if i%2 == 1 {
					r.Kind = audit.KindOutcome
				}
				ticket, err := s.Append(r)
				if err != nil {
					t.Error(err)
					return
				}
				if err := ticket.Wait(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	tr := read(t, s, nil, s.RunName(), 4001)[s.RunName()]
	if len(tr.records) != 4001 || tr.records[0].Kind != audit.KindRun || tr.records[0].Detail["reason"] != "first" {
		t.Fatalf("%d records, first %+v", len(tr.records), tr.records[0])
	}
	seen := map[string]bool{}
	for _, r := range tr.records[1:] {
		seen[r.Path] = true
		if r.Node != "n1" || r.Region != "eu-west" || r.Time.IsZero() {
			t.Fatalf("not filled in: %+v", r)
		}
	}
	if len(seen) != 4000 {
		t.Errorf("%d different records of 4000", len(seen))
	}
	if d := s.Depth(); d != 4001 {
		t.Errorf("depth %d", d)
	}
}

func TestACleanEndGoesOnWithTheRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, stop := running(t, config(dir))
	first := durable(t, s, decision(1))
	if _, err := s.Append(&audit.Record{Kind: audit.KindOutcome, DecisionID: first}); err != nil {
		t.Fatal(err)
	}
	stop()
	s, _ = running(t, config(dir))
	id := durable(t, s, decision(2))
	if want := (audit.ID{Node: "n1", Run: first.Run, Seq: 3}); id != want {
		t.Fatalf("after a clean end: %v, want %v", id, want)
	}
	tr := read(t, s, nil, id.Run, 4)[id.Run]
	if tr.records[2].DecisionID != first {
		t.Errorf("outcome of %v, want %v", tr.records[2].DecisionID, first)
	}
}

func TestAnUncleanEndBeginsARunThatNamesTheLast(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := spool.Open(config(dir))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	id := durable(t, s, decision(1))
	s.Distrust()
	cancel()
	<-done

	s, _ = running(t, config(dir))
	if s.RunName() <= id.Run {
		t.Fatalf("run %s after %s", s.RunName(), id.Run)
	}
	trails := read(t, s, nil, s.RunName(), 1)
	was, is := trails[id.Run], trails[s.RunName()]
	if was.proved != 2 {
		t.Errorf("the last run is proved up to %d, want 2", was.proved)
	}
	d := is.records[0].Detail
	if d["previous_run"] != id.Run || d["previous_size"] != "2" || d["previous_root"] != fmt.Sprintf("%x", was.root[:]) || d["reason"] != "unclean" {
		t.Errorf("first record: %v", d)
	}
}

func TestATornEndIsCutOffAndProved(t *testing.T) {
	t.Parallel()
	for name, tear := range map[string]func(data []byte, end int) []byte{
		"half a frame": func(d []byte, end int) []byte { return append(d[:end:end], d[0:40]...) },
		"garbage": func(d []byte, end int) []byte {
			return append(d[:end:end], []byte(strings.Repeat("\x00\x00\x01\x07", 99))...)
		},
		"file cut short":        func(d []byte, end int) []byte { return d[:end:end] },
		"a bit of the last one": func(d []byte, end int) []byte { d[end-1] ^= 1; return d },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s, stop := running(t, config(dir))
			run := s.RunName()
			for i := range 10 {
				durable(t, s, decision(i))
			}
			stop()
			if err := os.Remove(filepath.Join(dir, "clean")); err != nil {
				t.Fatal(err)
			}
			file := segments(t, dir)[0]
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			end := 0 // of the record frames, the checkpoint left out
			for at := 0; ; {
				f, n, err := audit.DecodeFrame(data[at:])
				if err != nil || n == 0 {
					break
				}
				at += n
				if f.Kind == audit.RecordFrame {
					end = at
				}
			}
			if err := os.WriteFile(file, tear(data, end), 0o600); err != nil {
				t.Fatal(err)
			}
			s, _ = running(t, config(dir))
			want := uint64(11)
			if strings.Contains(name, "last one") {
				want = 10
			}
			if got := read(t, s, nil, s.RunName(), 1)[run]; got.proved != want || uint64(len(got.records)) != want {
				t.Errorf("%d records, proved %d, want %d", len(got.records), got.proved, want)
			}
			if s.Depth() < want {
				t.Errorf("depth %d", s.Depth())
			}
		})
	}
}

func segments(t testing.TB, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.segment"))
	if err != nil || len(names) == 0 {
		t.Fatalf("segments: %v, %v", names, err)
	}
	return names
}

func TestADamagedSegmentBecomesACountedGap(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, stop := running(t, config(dir))
	var last audit.ID
	for last.Seq < 8000 {
		if ticket, err := s.Append(decision(1)); err == nil {
			last = ticket.ID()
		}
	}
	stop()
	names := segments(t, dir)
	if len(names) < 3 {
		t.Fatalf("%d segments, the test needs 3", len(names))
	}
	f, err := os.OpenFile(names[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("vandal"), segmentBytes/2); err != nil {
		t.Fatal(err)
	}
	f.Close()

	s, _ = running(t, config(dir))
	durable(t, s, decision(2))
	tr := read(t, s, nil, last.Run, last.Seq+3)[last.Run] // with the decision and the gap record
	var lost uint64
	for _, r := range tr.records {
		if r.Kind == audit.KindGap {
			lost += r.Gap.Count
		}
	}
	if lost == 0 {
		t.Error("no gap record")
	}
	if lost != tr.missing {
		t.Errorf("the gap record counts %d, the reader missed %d", lost, tr.missing)
	}
}

func TestASecondProcessIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	running(t, config(dir))
	if _, err := spool.Open(config(dir)); !fault.Is(err, fault.Conflict) {
		t.Errorf("second open: %v", err)
	}
}

func TestAnotherNodesDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, stop := running(t, config(dir))
	stop()
	other := config(dir)
	other.Node = "n2"
	if _, err := spool.Open(other); !fault.Is(err, fault.Conflict) {
		t.Errorf("open as n2: %v", err)
	}
}

func TestConfigReportsAllThatIsWrong(t *testing.T) {
	t.Parallel()
	err := spool.Config{SegmentBytes: 1, MaxBytes: 1, Reserve: 99}.Validate()
	for _, field := range []string{"dir", "node", "mesh", "signer", "segment_bytes", "reserve"} {
		if err == nil || !strings.Contains(err.Error(), field+":") {
			t.Errorf("%s is not reported: %v", field, err)
		}
	}
	if err := config("x").Validate(); err != nil {
		t.Error(err)
	}
}
