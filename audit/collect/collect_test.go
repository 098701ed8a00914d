package collect_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/collect"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func TestATrailArrivesWholeAndProved(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	agg := serve(t, dir)
	n := start(t, "n1", t.TempDir(), func() *server { return agg })
	n.append(t, decisions(0, 3000)...)
	eventually(t, "all acknowledged", func() bool { return n.Depth() == 0 })
	if got := paths(t, agg.Aggregator, collect.Filter{}); !slices.Equal(got, numbers(0, 3000)) {
		t.Errorf("%d decisions stored", len(got))
	}
	fetch, err := iapmeshv1.NewAuditServiceClient(agg.dial(t)).Fetch(t.Context(), &iapmeshv1.FetchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	remote, err := collect.VerifyFetch(fetch.Recv, verifier())
	if err != nil {
		t.Fatal(err)
	}
	local, err := collect.VerifyStore(dir, verifier())
	if err != nil {
		t.Fatal(err)
	}
	for where, r := range map[string]audit.Report{"fetched": remote, "stored": local} {
		if len(r.Runs) != 1 || len(r.Findings()) != 0 || r.Runs[0].Proved != 3001 || r.Runs[0].Countersigned != 3001 {
			t.Errorf("%s: %+v", where, r)
		}
	}
}

// Whatever a node has written when it is told to end is with the aggregator when it has, and where none is connected it does not wait.
func TestATrailIsShippedToItsEnd(t *testing.T) {
	t.Parallel()
	agg := serve(t, t.TempDir())
	n := start(t, "n1", t.TempDir(), func() *server { return agg })
	n.append(t, decisions(0, 10)...)
	if err := n.shipper.Drain(t.Context()); err != nil || n.Depth() != 0 {
		t.Errorf("drained: %v, and %d records are left", err, n.Depth())
	}
	n.append(t, decisions(10, 500)...)
	last := decisions(500, 501)[0]
	last.Kind = audit.KindOutcome // which is written when there is time
	if _, err := n.Append(&last); err != nil {
		t.Fatal(err)
	}
	n.stop()
	if n.Depth() != 0 {
		t.Errorf("%d records were left behind", n.Depth())
	}
	if got := paths(t, agg.Aggregator, collect.Filter{}); !slices.Equal(got, numbers(0, 500)) {
		t.Errorf("%d decisions stored when the node had ended, want 500", len(got))
	}
	alone := start(t, "n2", t.TempDir(), func() *server { return agg })
	if err := alone.shipper.Drain(t.Context()); err != nil { // so it is connected
		t.Fatal(err)
	}
	agg.stop()
	alone.append(t, decisions(0, 10)...)
	brief, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := alone.shipper.Drain(brief); !fault.Is(err, fault.Unavailable) {
		t.Errorf("drained without an aggregator: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		alone.stop()
	}()
	select {
	case <-ended:
	case <-time.After(patience): // it would linger for an hour
		t.Fatal("it waits for nobody")
	}
}

func TestBrokenStreamsAndRestartsStoreEachRecordOnce(t *testing.T) {
	t.Parallel()
	store, spoolDir := t.TempDir(), t.TempDir()
	var mu sync.Mutex
	agg := serve(t, store)
	current := func() *server {
		mu.Lock()
		defer mu.Unlock()
		return agg
	}
	n := start(t, "n1", spoolDir, current)
	for round := range 4 {
		n.append(t, decisions(1000*round, 1000*round+1000)...)
		eventually(t, "something acknowledged", func() bool { return n.Depth() < 1000 })
		switch round {
		case 0, 2: // the aggregator restarts
			mu.Lock()
			agg.stop()
			agg = serve(t, store)
			mu.Unlock()
		case 1: // the node restarts, cleanly or not
			n.stop()
			n = start(t, "n1", spoolDir, current)
		case 3:
			n.Distrust()
			n.stop()
			n = start(t, "n1", spoolDir, current)
		}
	}
	n.append(t, decisions(4000, 4010)...)
	eventually(t, "all acknowledged", func() bool { return n.Depth() == 0 })
	if got := paths(t, current().Aggregator, collect.Filter{}); !slices.Equal(got, numbers(0, 4010)) {
		t.Errorf("%d decisions stored, want 4010", len(got))
	}
	r, err := collect.VerifyStore(store, verifier())
	if err != nil || len(r.Findings()) != 0 || len(r.Runs) != 2 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestWhatWasNotProvedWhenTheAggregatorDiedIsSentAgain(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	agg := serve(t, store)
	n := start(t, "n1", t.TempDir(), func() *server { return agg })
	n.append(t, decisions(0, 500)...)
	eventually(t, "all acknowledged", func() bool { return n.Depth() == 0 })
	n.stop()
	agg.stop()
	files := segmentsOf(t, store, "n1")
	last := files[len(files)-1]
	data, err := os.ReadFile(last)
	if err != nil {
		t.Fatal(err)
	}
	// A torn stretch: whole records, and half of one, that no checkpoint follows.
	var torn []byte
	run, _ := audit.ParseRun(n.RunName())
	for i := range 3 {
		torn = audit.AppendFrame(torn, audit.Frame{Run: run, Seq: uint64(501 + i), Body: []byte(`{"kind":"decision","path":"torn"}`)})
	}
	if err := os.WriteFile(last, append(data, torn[:len(torn)-5]...), 0o600); err != nil {
		t.Fatal(err)
	}
	again := open(t, store)
	defer again.Close()
	if got := paths(t, again, collect.Filter{}); !slices.Equal(got, numbers(0, 500)) {
		t.Errorf("%d decisions, last %v", len(got), got[len(got)-1])
	}
	if r, err := collect.VerifyStore(store, verifier()); err != nil || len(r.Findings()) != 0 {
		t.Errorf("%v, %v", r.Findings(), err)
	}
}

func segmentsOf(t testing.TB, dir, node string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, node, "*", "*.segment"))
	if err != nil || len(files) == 0 {
		t.Fatalf("segments: %v, %v", files, err)
	}
	return files
}

// segmentWith is the segment that holds a text: how many records the first stretch of a trail takes depends on when its second ends.
func segmentWith(t testing.TB, dir, node, text string) (file string, data []byte) {
	t.Helper()
	for _, file := range segmentsOf(t, dir, node) {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, []byte(text)) {
			return file, data
		}
	}
	t.Fatalf("no segment holds %s", text)
	return "", nil
}

func TestAChangedStoreIsFound(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	agg := serve(t, store)
	n := start(t, "n1", t.TempDir(), func() *server { return agg })
	n.append(t, decisions(0, 2000)...)
	eventually(t, "all acknowledged", func() bool { return n.Depth() == 0 })
	n.append(t, decisions(2000, 2010)...)
	eventually(t, "all acknowledged", func() bool { return n.Depth() == 0 })
	agg.stop()
	file, whole := segmentWith(t, store, "n1", `"path":"77"`)
	for name, tc := range map[string]struct {
		change func([]byte) []byte
		want   audit.FindingKind
	}{
		"one byte": {func(b []byte) []byte {
			b[bytes.Index(b, []byte(`"path":"77"`))+8] = '9'
			return b
		}, audit.FindingDamaged},
		"a record, checksum and all": {func(b []byte) []byte {
			var out []byte
			for at := 0; at < len(b); {
				f, n, err := audit.DecodeFrame(b[at:])
				if err != nil || n == 0 {
					break
				}
				at += n
				if f.Kind == audit.RecordFrame && f.Seq == 78 {
					f.Body = bytes.Replace(f.Body, []byte("ana@"), []byte("eve@"), 1)
				}
				out = audit.AppendFrame(out, f)
			}
			return out
		}, audit.FindingChanged},
		"cut off": {func(b []byte) []byte { return b[:bytes.Index(b, []byte(`"path":"77"`))] }, audit.FindingDamaged},
	} {
		if err := os.WriteFile(file, tc.change(bytes.Clone(whole)), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := collect.VerifyStore(store, verifier())
		if err != nil {
			t.Fatal(err)
		}
		if r.OK() || !slices.ContainsFunc(r.Findings(), func(f audit.Finding) bool { return f.Kind == tc.want }) {
			t.Errorf("%s: want %s, found %v", name, tc.want, r.Findings())
		}
		if name == "a record, checksum and all" && (r.Runs[0].Proved < 10 || r.Runs[0].Size != 2011) {
			t.Errorf("%s: the stretches after it are not proved: %+v", name, r.Runs[0])
		}
	}
}

func TestWhatANodeLostIsMissingAndTheRestIsProved(t *testing.T) {
	t.Parallel()
	first, second := serve(t, t.TempDir()), serve(t, t.TempDir())
	var mu sync.Mutex
	agg := first
	dir := t.TempDir()
	n := start(t, "n1", dir, func() *server {
		mu.Lock()
		defer mu.Unlock()
		return agg
	})
	// Enough for segments to be recycled once the first aggregator has them; the second has to begin in the middle.
	for i := range 8 {
		n.append(t, decisions(1000*i, 1000*i+1000)...)
		eventually(t, "all acknowledged", func() bool { return n.Depth() == 0 })
	}
	mu.Lock()
	agg = second
	mu.Unlock()
	first.stop()
	n.append(t, decisions(8000, 8100)...)
	eventually(t, "all acknowledged by the second", func() bool { return n.Depth() == 0 })
	var r audit.Report
	got := paths(t, second.Aggregator, collect.Filter{})
	if len(got) == 0 || len(got) >= 8100 || got[len(got)-1] != "8099" {
		t.Fatalf("%d decisions at the second aggregator", len(got))
	}
	fetch, err := iapmeshv1.NewAuditServiceClient(second.dial(t)).Fetch(t.Context(), &iapmeshv1.FetchRequest{Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	if r, err = collect.VerifyFetch(fetch.Recv, verifier()); err != nil {
		t.Fatal(err)
	}
	if len(r.Findings()) != 1 || r.Findings()[0].Kind != audit.FindingMissing || r.Runs[0].Proved != r.Runs[0].Records || r.Runs[0].Proved != uint64(len(got)) {
		t.Errorf("%+v", r)
	}
}

func TestAQueryFollows(t *testing.T) {
	t.Parallel()
	agg := serve(t, t.TempDir())
	n := start(t, "n1", t.TempDir(), func() *server { return agg })
	n.append(t, decisions(0, 5)...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []string
	var last error
	for e, err := range agg.Records(ctx, collect.Filter{Route: "billing", Follow: true}) {
		if err != nil {
			last = err
			break
		}
		got = append(got, e.Record.Path)
		if len(got) == 5 {
			n.append(t, decisions(5, 10)...)
		}
		if len(got) == 10 {
			other := start(t, "n2", t.TempDir(), func() *server { return agg })
			other.append(t, decisions(10, 11)...)
		}
		if len(got) == 11 {
			cancel()
		}
	}
	if !slices.Equal(got, numbers(0, 11)) || !errors.Is(last, context.Canceled) {
		t.Errorf("%v, %v", got, last)
	}
}
