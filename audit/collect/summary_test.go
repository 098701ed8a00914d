package collect_test

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/collect"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// stamped are decisions that were made just now: a route each, of one key and one user.
func stamped(n int, route string) (all []audit.Record) {
	for i, r := range decisions(0, n) {
		r.Time, r.Route, r.Actor.Subject = time.Now(), route, fmt.Sprint("okta/", i%3)
		all = append(all, r)
	}
	return all
}

// asked is what one learns of a summary: the message, and what it says, with its notes verified.
func asked(t testing.TB, s *server, req *iapmeshv1.SummarizeRequest) (audit.Summary, []audit.Held) {
	t.Helper()
	resp, err := iapmeshv1.NewAuditServiceClient(s.dial(t)).Summarize(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	summary, err := collect.SummaryOf(resp.Summary, req.ProvisioningKeys)
	if err != nil {
		t.Fatal(err)
	}
	var held []audit.Held
	agg, _ := public("agg")
	for _, r := range summary.Runs {
		node, err := public(r.Node)
		if err != nil {
			t.Fatal(err)
		}
		h, err := audit.Hold(r, "m", node, "agg", agg)
		if err != nil {
			t.Error(err)
		}
		held = append(held, h)
	}
	return summary, held
}

func key1() *iapmeshv1.SummarizeRequest {
	return &iapmeshv1.SummarizeRequest{ProvisioningKeys: []string{"key1"}}
}

func expect(nodes ...string) (all []audit.Expected) {
	for _, n := range nodes {
		all = append(all, audit.Expected{Node: n})
	}
	return all
}

// until is a window that began a while ago and ends now. Its slack is more than any test takes.
func until(now time.Time) audit.Window {
	return audit.Window{From: now.Add(-24 * time.Hour), To: now, Slack: time.Hour}
}

func recount(t testing.TB, s *server, req *iapmeshv1.SummarizeRequest, claimed audit.Summary) (audit.Report, []string) {
	t.Helper()
	r, err := collect.NewRecount(verifier(), req, claimed)
	if err != nil {
		t.Fatal(err)
	}
	fetch, err := iapmeshv1.NewAuditServiceClient(s.dial(t)).Fetch(t.Context(), &iapmeshv1.FetchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Read(fetch.Recv); err != nil {
		t.Fatal(err)
	}
	return r.Result()
}

func TestASummaryIsCompleteAndCanBeCountedAgain(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	agg := serve(t, store)
	current := func() *server { return agg }
	a, b := start(t, "n1", t.TempDir(), current), start(t, "n2", t.TempDir(), current)
	a.append(t, stamped(300, "billing")...)
	b.append(t, stamped(20, "echo")...)
	eventually(t, "all acknowledged", func() bool { return a.Depth()+b.Depth() == 0 })
	summary, held := asked(t, agg, key1())
	want := []audit.KeyActivity{{Key: "key1", Subjects: []string{"okta/0", "okta/1", "okta/2"}, Decisions: []audit.DecisionCount{
		{Route: "billing", Decision: audit.Allow, By: audit.ByServing, Records: 300}, {Route: "echo", Decision: audit.Allow, By: audit.ByServing, Records: 20},
	}}}
	if diff := cmp.Diff(want, summary.Keys); diff != "" {
		t.Error(diff)
	}
	now := time.Now()
	if c := audit.Judge(expect("n1", "n2"), held, until(now)); !c.Complete || c.Nodes != 2 || c.Records != 322 || now.Sub(c.UpTo) > time.Hour {
		t.Errorf("%+v", c)
	}
	c := audit.Judge(expect("n1", "n2", "n3"), held, until(now))
	if len(c.Missing) != 1 || c.Missing[0].Kind != audit.MissingNode || c.Missing[0].Node != "n3" {
		t.Errorf("a node that never shipped: %+v", c.Missing)
	}
	// The trail grows on; what was claimed still holds.
	a.append(t, stamped(50, "billing")...)
	eventually(t, "all acknowledged", func() bool { return a.Depth() == 0 })
	if report, diffs := recount(t, agg, key1(), summary); !report.OK() || len(diffs) != 0 {
		t.Errorf("counted again: %v, %v", diffs, report.Findings())
	}
	for name, tamper := range map[string]func(*audit.Summary){
		"fewer decisions":   func(s *audit.Summary) { s.Keys[0].Decisions[0].Records-- },
		"a route left out":  func(s *audit.Summary) { s.Keys[0].Decisions = s.Keys[0].Decisions[:1] },
		"a user left out":   func(s *audit.Summary) { s.Keys[0].Subjects = s.Keys[0].Subjects[1:] },
		"a sign-in more":    func(s *audit.Summary) { s.Keys[0].SignIns++ },
		"a run left out":    func(s *audit.Summary) { s.Runs = s.Runs[:1] },
		"records made up":   func(s *audit.Summary) { s.Runs[0].Ranges[0].To += 1000 },
		"fewer in the span": func(s *audit.Summary) { s.Runs[0].InSpan-- },
		"a gap made up":     func(s *audit.Summary) { s.Runs[0].Gaps = append(s.Runs[0].Gaps, audit.TrailGap{}) },
		"a run before it":   func(s *audit.Summary) { s.Runs[0].PreviousRun, s.Runs[0].PreviousSize = audit.Run(1).String(), 3 },
	} {
		lie, _ := asked(t, agg, key1())
		tamper(&lie)
		if _, diffs := recount(t, agg, key1(), lie); len(diffs) == 0 {
			t.Errorf("%s: not noticed", name)
		}
	}
	// Another summary leaves out what was counted before.
	req := key1()
	for _, r := range summary.Runs {
		req.Counted = append(req.Counted, &iapmeshv1.RunRanges{Node: r.Node, Run: r.Run.String(), Ranges: collect.RangesProto(r.Ranges)})
	}
	if rest, _ := asked(t, agg, req); len(rest.Keys[0].Decisions) != 1 || rest.Keys[0].Decisions[0].Records != 50 || rest.Runs[0].Ranges[0].To != 351 {
		t.Errorf("the rest is %+v", rest)
	}
	// A span is one of time.
	req = key1()
	req.To = timestamppb.New(now.Add(-time.Hour))
	if none, _ := asked(t, agg, req); len(none.Keys[0].Decisions) != 0 || none.Runs[0].InSpan != 0 || len(none.Runs[0].Ranges) != 1 {
		t.Errorf("an hour ago: %+v", none)
	}
}

func TestASummaryNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	agg := serve(t, store)
	n := start(t, "n1", t.TempDir(), func() *server { return agg })
	n.append(t, stamped(100, "billing")...)
	for range 5 {
		n.Gap("billing", "not_durable")
	}
	eventually(t, "the gap is in the trail", func() bool { // as one record, or two where a second ended between
		summary, _ := asked(t, agg, key1())
		records := uint64(0)
		for _, r := range summary.Runs {
			for _, g := range r.Gaps {
				records += g.Count
			}
		}
		return records == 5
	})
	summary, held := asked(t, agg, key1())
	c := audit.Judge(expect("n1"), held, until(time.Now()))
	gaps, records := len(c.Missing), uint64(0)
	for _, m := range c.Missing {
		if records += m.Records; m.Kind != audit.MissingGap || m.Route != "billing" {
			t.Errorf("a gap: %+v", m)
		}
	}
	if records != 5 {
		t.Errorf("a gap: %+v", c.Missing)
	}
	if _, diffs := recount(t, agg, key1(), summary); len(diffs) != 0 {
		t.Errorf("counted again: %v", diffs)
	}
	n.stop()
	agg.stop()
	late := until(time.Now().Add(2 * time.Hour))
	if c = audit.Judge(expect("n1"), held, late); len(c.Missing) != gaps+1 || c.Missing[gaps].Kind != audit.MissingAfter {
		t.Errorf("a node that is silent: %+v", c.Missing)
	}

	// A hole: records 10 to 19 are taken out of the store, all else is as it was.
	file := segmentsOf(t, store, "n1")[0] // the only one: all of it is less than a segment holds
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var kept []byte
	for at := 0; at < len(whole); {
		f, size, err := audit.DecodeFrame(whole[at:])
		if err != nil || size == 0 {
			break
		}
		at += size
		switch {
		case f.Kind == audit.RecordFrame && f.Seq >= 10 && f.Seq < 20:
		case f.Kind == audit.RecordFrame && f.Seq == 50:
			f.Body = bytes.Replace(f.Body, []byte(`"route":"billing"`), []byte(`"route":"trading"`), 1)
			fallthrough
		default:
			kept = audit.AppendFrame(kept, f)
		}
	}
	if err := os.WriteFile(file, kept, 0o600); err != nil {
		t.Fatal(err)
	}
	count := &audit.Summarizer{Keys: []string{"key1"}}
	for at := 0; at < len(kept); {
		f, size, err := audit.DecodeFrame(kept[at:])
		if err != nil || size == 0 {
			break
		}
		at += size
		count.Add("n1", f)
	}
	holed := count.Summary()
	agg1, _ := public("agg")
	node, _ := public("n1")
	h, err := audit.Hold(holed.Runs[0], "m", node, "agg", agg1)
	if err != nil {
		t.Fatal(err)
	}
	c = audit.Judge(expect("n1"), []audit.Held{h}, until(time.Now()))
	at := slices.IndexFunc(c.Missing, func(m audit.Missing) bool { return m.Kind == audit.MissingRecords })
	if at < 0 || c.Missing[at].FromSeq != 10 || c.Missing[at].ToSeq != 20 {
		t.Errorf("a hole: %+v", c.Missing)
	}
	// What is counted over a trail that was changed is caught, whoever counted.
	r, err := collect.NewRecount(verifier(), key1(), holed)
	if err != nil {
		t.Fatal(err)
	}
	runID, _ := audit.ParseRun(n.RunName())
	sent := false
	err = r.Read(func() (*iapmeshv1.FetchResponse, error) {
		if sent {
			return nil, fmt.Errorf("read: %w", os.ErrClosed)
		}
		sent = true
		return &iapmeshv1.FetchResponse{Node: "n1", Run: runID.String(), Part: &iapmeshv1.FetchResponse_Frames{Frames: kept}}, nil
	})
	if err == nil {
		t.Fatal("a stream that breaks is no proof")
	}
	if _, diffs := r.Result(); !slices.ContainsFunc(diffs, func(d string) bool { return strings.Contains(d, "changed") || strings.Contains(d, "unproved") }) {
		t.Errorf("a record that was changed: %v", diffs)
	}
}

func TestASummaryOfTwoAggregatorsCountsOnce(t *testing.T) {
	t.Parallel()
	first, second := serve(t, t.TempDir()), serve(t, t.TempDir())
	dir := t.TempDir()
	n := start(t, "n1", dir, func() *server { return first })
	n.append(t, stamped(100, "billing")...)
	eventually(t, "all acknowledged", func() bool { return n.Depth() == 0 })
	n.stop()
	n = start(t, "n1", dir, func() *server { return second })
	n.append(t, stamped(40, "billing")...)
	eventually(t, "all acknowledged by the second", func() bool { return n.Depth() == 0 })
	one, heldOne := asked(t, first, key1())
	req := key1()
	for _, r := range one.Runs {
		req.Counted = append(req.Counted, &iapmeshv1.RunRanges{Node: r.Node, Run: r.Run.String(), Ranges: collect.RangesProto(r.Ranges)})
	}
	two, heldTwo := asked(t, second, req)
	if a, b := one.Keys[0].Decisions[0].Records, two.Keys[0].Decisions[0].Records; a != 100 || b != 40 {
		t.Errorf("%d and %d decisions, want 100 and 40", a, b)
	}
	if c := audit.Judge(expect("n1"), audit.MergeHeld(heldOne, heldTwo), until(time.Now())); !c.Complete || c.Records != 141 {
		t.Errorf("%+v", c)
	}
}

func TestSummarizeRefuses(t *testing.T) {
	t.Parallel()
	agg := serve(t, t.TempDir())
	run := audit.Run(7).String()
	for name, req := range map[string]*iapmeshv1.SummarizeRequest{
		"no key":       {},
		"an empty key": {ProvisioningKeys: []string{""}},
		"twice":        {ProvisioningKeys: []string{"a", "a"}},
		"many":         {ProvisioningKeys: make([]string, audit.MaxSummaryKeys+1)},
		"no run":       {ProvisioningKeys: []string{"a"}, Counted: []*iapmeshv1.RunRanges{{Node: "n1", Run: "x"}}},
		"no node":      {ProvisioningKeys: []string{"a"}, Counted: []*iapmeshv1.RunRanges{{Node: "../n", Run: run}}},
		"backwards":    {ProvisioningKeys: []string{"a"}, Counted: []*iapmeshv1.RunRanges{{Node: "n1", Run: run, Ranges: []*iapmeshv1.SeqRange{{From: 2, To: 1}}}}},
	} {
		if _, err := iapmeshv1.NewAuditServiceClient(agg.dial(t)).Summarize(t.Context(), req); !fault.Is(fault.FromStatus(err), fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever an aggregator answers: no panic, and what is taken is what it would have written.
func FuzzSummaryOf(f *testing.F) {
	good := collect.SummaryProto(audit.Summary{
		Keys: []audit.KeyActivity{{Key: "key1", SignIns: 2, Subjects: []string{"a", "b"}, Decisions: []audit.DecisionCount{{Route: "r", Decision: "allow", By: "both", Records: 3}}}},
		Runs: []audit.RunCoverage{{Node: "n1", Run: 7, Ranges: []audit.SeqRange{{From: 0, To: 3}}, Checkpoint: []byte("x"), PreviousRun: audit.Run(6).String(), PreviousSize: 1,
			Gaps: []audit.TrailGap{{Seq: 1, Span: audit.Span{Count: 2, Route: "r"}}}}},
	})
	twice := proto.CloneOf(good)
	twice.Runs = append(twice.Runs, twice.Runs[0])
	for _, m := range []*iapmeshv1.TrailSummary{good, twice, {}, {Keys: []*iapmeshv1.KeyActivity{nil}}, {Runs: []*iapmeshv1.RunCoverage{nil}}} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var m iapmeshv1.TrailSummary
		if proto.Unmarshal(data, &m) != nil {
			return
		}
		s, err := collect.SummaryOf(&m, []string{"key1"})
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("%v", err)
			}
			return
		}
		again, err := collect.SummaryOf(collect.SummaryProto(s), []string{"key1"})
		if diff := cmp.Diff(s, again); err != nil || diff != "" {
			t.Fatalf("%v %s", err, diff)
		}
		var held []audit.Held
		for _, r := range s.Runs {
			held = append(held, audit.Held{RunCoverage: r})
		}
		audit.Judge(expect("n1"), audit.MergeHeld(held, held), audit.Window{To: time.Unix(1e9, 0)})
	})
}
