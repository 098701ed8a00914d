package audit_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/audit"
)

// written feeds records to a summarizer as one run.
func written(s *audit.Summarizer, node string, r audit.Run, from uint64, records ...audit.Record) {
	for i, rec := range records {
		s.Add(node, audit.Frame{Run: r, Seq: from + uint64(i), Body: rec.AppendJSON(nil)})
	}
}

func decided(second int64, route, decision, serving, minting, subject string) audit.Record {
	return audit.Record{Kind: audit.KindDecision, Time: at(second), Route: route, Decision: decision,
		Actor: audit.Actor{Subject: subject, ProvisioningKey: serving, MintingProvisioningKey: minting}}
}

func TestASummaryCountsByRouteDecisionAndHowItStandsOnTheKey(t *testing.T) {
	t.Parallel()
	signIn := func(second int64, key, decision, by string) audit.Record {
		return audit.Record{Kind: audit.KindSignIn, Time: at(second), Decision: decision, Detail: map[string]string{"by": by},
			Actor: audit.Actor{Subject: "dev/ana", ProvisioningKey: key, MintingProvisioningKey: key}}
	}
	s := &audit.Summarizer{Keys: []string{"k1", "k2"}, From: at(10), To: at(100)}
	written(s, "n1", run, 0,
		audit.Record{Kind: audit.KindRun, Time: at(0), Detail: map[string]string{"previous_run": audit.Run(4).String(), "previous_size": "12"}},
		decided(9, "billing", audit.Allow, "k1", "k1", "dev/early"), // before the span
		decided(10, "billing", audit.Allow, "k1", "k1", "dev/ana"),
		decided(11, "billing", audit.Allow, "k1", "k2", "dev/bob"),
		decided(12, "billing", audit.Deny, "k1", "k2", "dev/bob"),
		decided(13, "echo", audit.Allow, "k3", "k1", "dev/ana"),
		decided(14, "k1", audit.Allow, "k3", "k3", "dev/k1"), // the key's id, but not as a key
		audit.Record{Kind: audit.KindOutcome, Time: at(15), Actor: audit.Actor{ProvisioningKey: "k1"}},
		signIn(16, "k1", audit.Allow, "provider"), signIn(16, "k1", audit.Allow, "host"), signIn(17, "k1", audit.Deny, ""),
		decided(100, "billing", audit.Allow, "k1", "k1", "dev/late"), // after it
	)
	got := s.Summary()
	want := []audit.KeyActivity{
		{Key: "k1", SignIns: 1, SignInsRefused: 1, Subjects: []string{"dev/ana", "dev/bob"}, Decisions: []audit.DecisionCount{
			{Route: "billing", Decision: "allow", By: "both", Records: 1}, {Route: "billing", Decision: "allow", By: "serving", Records: 1},
			{Route: "billing", Decision: "deny", By: "serving", Records: 1}, {Route: "echo", Decision: "allow", By: "minting", Records: 1},
		}},
		{Key: "k2", Subjects: []string{"dev/bob"}, Decisions: []audit.DecisionCount{
			{Route: "billing", Decision: "allow", By: "minting", Records: 1}, {Route: "billing", Decision: "deny", By: "minting", Records: 1},
		}},
	}
	if diff := cmp.Diff(want, got.Keys); diff != "" {
		t.Error(diff)
	}
	runs := []audit.RunCoverage{{Node: "n1", Run: run, Ranges: []audit.SeqRange{{From: 0, To: 12, First: at(0), Last: at(100)}},
		PreviousRun: audit.Run(4).String(), PreviousSize: 12, InSpan: 9}}
	if diff := cmp.Diff(runs, got.Runs); diff != "" {
		t.Error(diff)
	}
}

func TestASummarySaysWhatItWasCountedOver(t *testing.T) {
	t.Parallel()
	s := &audit.Summarizer{Keys: []string{"k1"}, From: at(10), To: at(100),
		Counts: func(_ string, _ audit.Run, seq uint64) bool { return seq != 3 }}
	allow := func(second int64) audit.Record { return decided(second, "billing", audit.Allow, "k1", "", "") }
	written(s, "n1", run, 2, allow(20), allow(21))
	s.Add("n1", audit.Frame{Kind: audit.CheckpointFrame, Run: run, Seq: 4, Body: []byte("note at 4")})
	written(s, "n1", run, 7, allow(30), allow(29), audit.Record{Kind: audit.KindGap, Time: at(31), Gap: &audit.Span{Count: 5, Route: "billing", From: at(30), To: at(31)}},
		audit.Record{Kind: audit.KindGap, Time: at(32), Gap: &audit.Span{Count: 1, From: at(1), To: at(2)}}) // of before the span
	written(s, "n1", run, 7, allow(30)) // again
	s.Add("n1", audit.Frame{Run: run, Seq: 11, Body: []byte("no record at all")})
	s.Damaged("n0", 9, "bytes")
	got := s.Summary()
	want := []audit.RunCoverage{{Node: "n0", Run: 9}, {
		Node: "n1", Run: run, Checkpoint: []byte("note at 4"), InSpan: 5,
		Ranges: []audit.SeqRange{{From: 2, To: 4, First: at(20), Last: at(21)}, {From: 7, To: 12, First: time.Time{}, Last: at(32)}},
		Gaps:   []audit.TrailGap{{Seq: 9, Span: audit.Span{Count: 5, Route: "billing", From: at(30), To: at(31)}}},
	}}
	if diff := cmp.Diff(want, got.Runs); diff != "" {
		t.Error(diff)
	}
	if n := got.Keys[0].Decisions[0].Records; n != 3 {
		t.Errorf("%d decisions, want 3", n)
	}
}

func TestASummaryTellsWhenANodeStoodDown(t *testing.T) {
	t.Parallel()
	s := &audit.Summarizer{From: at(10), To: at(20)}
	word := func(second, putOut int64) audit.Record {
		r := audit.NewStandDown("revoked", "stolen", at(putOut))
		r.Time = at(second)
		return *r
	}
	written(s, "n1", run, 0, word(5, 4), audit.Record{Kind: audit.KindRevocation, Time: at(6), Detail: map[string]string{"action": "key.revoke", "put_out": "x"}}, word(30, 29))
	want := []audit.StandDown{{Seq: 0, At: at(5), PutOut: at(4)}, {Seq: 2, At: at(30), PutOut: at(29)}} // the span is the counts'
	if diff := cmp.Diff(want, s.Summary().Runs[0].StoodDown); diff != "" {
		t.Error(diff)
	}
	for i := range int64(200) {
		written(s, "n1", run, uint64(3+i), word(31+i, 30+i))
	}
	if got := s.Summary().Runs[0].StoodDown; len(got) != audit.MaxStandDowns || got[len(got)-1].Seq != 202 {
		t.Errorf("%d words, the last at %d", len(got), got[len(got)-1].Seq)
	}
}

// What is counted is bounded, and does not depend on the order in which it came.
func TestASummaryIsBounded(t *testing.T) {
	t.Parallel()
	count := func(backwards bool) audit.Summary {
		s := &audit.Summarizer{Keys: []string{"k1"}}
		const n = audit.MaxSummaryRows + 100
		for i := range n {
			if backwards {
				i = n - 1 - i
			}
			r := audit.Run(i + 1)
			written(s, "n1", r, 0, decided(int64(i), fmt.Sprintf("r%06d", i), audit.Allow, "k1", "", fmt.Sprintf("dev/%06d", i)))
			written(s, "n2", r, 0, decided(int64(i), fmt.Sprintf("r%06d", i), audit.Allow, "k1", "", ""))
		}
		return s.Summary()
	}
	k := count(false).Keys[0]
	if diff := cmp.Diff(k, count(true).Keys[0]); diff != "" {
		t.Errorf("the other way round: %s", diff)
	}
	if len(k.Subjects) != audit.MaxSummarySubjects || !k.MoreSubjects || len(k.Decisions) != audit.MaxSummaryRows+1 {
		t.Fatalf("%d subjects, %d rows", len(k.Subjects), len(k.Decisions))
	}
	if last := k.Decisions[audit.MaxSummaryRows]; !last.Others || last.Records == 0 {
		t.Errorf("the rest is %+v", last)
	}
	s := &audit.Summarizer{Keys: []string{"k1"}}
	for i := range 3000 {
		written(s, "n1", 1, 2*uint64(i), audit.Record{Kind: audit.KindGap, Time: at(int64(i)), Gap: &audit.Span{Count: 1, From: at(int64(i)), To: at(int64(i))}})
	}
	if r := s.Summary().Runs[0]; len(r.Ranges) != audit.MaxSummaryRanges || len(r.Gaps) != audit.MaxSummaryGaps {
		t.Errorf("%d ranges, %d gaps", len(r.Ranges), len(r.Gaps))
	}
}

// expectedNode is n1, which could write from 0 to the end.
var expectedNode = []audit.Expected{{Node: "n1", Since: at(0)}}

// started is a run that began at a second.
func started(second int64) audit.Run { return audit.Run(uint64(at(second).UnixMilli())<<16 | 1) }

func heldRun(r audit.Run, size uint64, proved int64, ranges ...audit.SeqRange) audit.Held {
	return audit.Held{RunCoverage: audit.RunCoverage{Node: "n1", Run: r, Ranges: ranges, InSpan: size}, Proved: audit.Checkpoint{Size: size, Time: at(proved)}}
}

func seqs(from, to uint64, first, last int64) audit.SeqRange {
	return audit.SeqRange{From: from, To: to, First: at(first), Last: at(last)}
}

func TestWhetherATrailIsComplete(t *testing.T) {
	t.Parallel()
	const hour = 3600
	second, third := started(2*hour), started(4*hour)
	follows := func(h audit.Held, previous audit.Run, size uint64) audit.Held {
		h.PreviousRun, h.PreviousSize = previous.String(), size
		return h
	}
	said := func(h audit.Held, seq uint64, when, putOut int64) audit.Held {
		h.StoodDown = append(h.StoodDown, audit.StandDown{Seq: seq, At: at(when), PutOut: at(putOut)})
		return h
	}
	putOut := []audit.Expected{{Node: "n1", Since: at(0), PutOut: at(7 * hour)}}
	gone := []audit.Expected{{Node: "n1", Since: at(0), PutOut: at(7 * hour), Gone: true}}
	forked := heldRun(started(0), 10, 10*hour, seqs(0, 10, 0, 10*hour))
	forked.Forked = true
	gap := heldRun(started(0), 10, 10*hour, seqs(0, 10, 0, 10*hour))
	gap.Gaps = []audit.TrailGap{{Seq: 3, Span: audit.Span{Count: 5, Route: "billing", From: at(6 * hour), To: at(6*hour + 2)}}}
	whole := audit.Window{From: at(5 * hour), To: at(10 * hour), Slack: 15 * time.Second}
	for name, tc := range map[string]struct {
		expected []audit.Expected
		held     []audit.Held
		window   audit.Window
		want     string // the kinds of what is missing, with sequence numbers
		upTo     int64
	}{
		"one run to the end":        {expectedNode, []audit.Held{heldRun(started(0), 10, 10*hour, seqs(0, 10, 0, 9*hour))}, whole, "", 10 * hour},
		"a little behind":           {expectedNode, []audit.Held{heldRun(started(0), 10, 10*hour-5, seqs(0, 10, 0, 9*hour))}, whole, "", 10*hour - 5},
		"nothing after":             {expectedNode, []audit.Held{heldRun(started(0), 10, 8*hour, seqs(0, 10, 0, 7*hour))}, whole, "after 28800", 8 * hour},
		"never shipped":             {expectedNode, nil, whole, "never_shipped", 5 * hour},
		"not yet there, gone":       {[]audit.Expected{{Node: "n1", Since: at(11 * hour)}, {Node: "n2", Since: at(0), PutOut: at(hour), Gone: true}}, nil, whole, "", 10 * hour},
		"left, and nothing after":   {gone, []audit.Held{heldRun(started(0), 10, 6*hour, seqs(0, 10, 0, 6*hour))}, whole, "after 21600", 6 * hour},
		"left with all":             {gone, []audit.Held{heldRun(started(0), 10, 7*hour, seqs(0, 10, 0, 6*hour))}, whole, "", 10 * hour},
		"left, all but a second":    {gone, []audit.Held{heldRun(started(0), 10, 7*hour-1, seqs(0, 10, 0, 6*hour))}, whole, "", 10 * hour},
		"left at once, and nothing": {[]audit.Expected{{Node: "n1", Since: at(7*hour - 5), PutOut: at(7 * hour), Gone: true}}, nil, whole, "never_shipped", 7*hour - 5},
		"left with a hole":          {gone, []audit.Held{heldRun(started(0), 10, 7*hour-1, seqs(0, 5, 0, 6*hour), seqs(6, 10, 6*hour, 7*hour-1))}, whole, "records 5-6", 10 * hour},
		"put out, without a word":   {putOut, []audit.Held{heldRun(started(0), 10, 7*hour, seqs(0, 10, 0, 7*hour))}, whole, "after 25200", 7 * hour},
		"put out, and says so":      {putOut, []audit.Held{said(heldRun(started(0), 10, 8*hour, seqs(0, 10, 0, 8*hour)), 9, 8*hour, 7*hour)}, whole, "", 10 * hour},
		"says so of another time":   {putOut, []audit.Held{said(heldRun(started(0), 10, 8*hour, seqs(0, 10, 0, 8*hour)), 9, 8*hour, 6*hour)}, whole, "after 28800", 8 * hour},
		"says so, unsigned":         {putOut, []audit.Held{said(heldRun(started(0), 9, 8*hour, seqs(0, 9, 0, 8*hour)), 9, 8*hour, 7*hour)}, whole, "after 28800", 8 * hour},
		"says so, with a hole":      {putOut, []audit.Held{said(heldRun(started(0), 10, 8*hour, seqs(0, 5, 0, 6*hour), seqs(9, 10, 8*hour, 8*hour)), 9, 8*hour, 7*hour)}, whole, "records 5-9", 10 * hour},
		"said so before the window": {putOut, []audit.Held{said(heldRun(started(0), 10, 8*hour, seqs(0, 10, 0, 8*hour)), 9, 8*hour, 7*hour)}, audit.Window{From: at(9 * hour), To: at(10 * hour)}, "", 10 * hour},
		"ran again, and says so": {putOut, []audit.Held{
			said(heldRun(started(0), 10, 8*hour, seqs(0, 10, 0, 8*hour)), 9, 8*hour, 7*hour),
			follows(said(heldRun(started(9*hour), 5, 9*hour+5, seqs(0, 3, 9*hour, 9*hour), seqs(4, 5, 9*hour+5, 9*hour+5)), 4, 9*hour+5, 7*hour), started(0), 10),
		}, whole, "records 3-4", 10 * hour},
		"ran again, and says nothing": {putOut, []audit.Held{
			said(heldRun(started(0), 10, 8*hour, seqs(0, 10, 0, 8*hour)), 9, 8*hour, 7*hour),
			follows(heldRun(started(9*hour), 5, 9*hour+5, seqs(0, 5, 9*hour, 9*hour+5)), started(0), 10),
		}, whole, "after 32405", 9*hour + 5},
		"removed, comes back, says so": {gone, []audit.Held{said(heldRun(started(0), 10, 9*hour, seqs(0, 8, 0, 8*hour), seqs(9, 10, 9*hour, 9*hour)), 9, 9*hour, 7*hour)}, whole, "records 8-9", 10 * hour},
		"a hole in the span":           {expectedNode, []audit.Held{heldRun(started(0), 30, 10*hour, seqs(0, 10, 0, 6*hour), seqs(20, 30, 7*hour, 9*hour))}, whole, "records 10-20", 10 * hour},
		"a hole before the span":       {expectedNode, []audit.Held{heldRun(started(0), 30, 10*hour, seqs(0, 10, 0, hour), seqs(20, 30, 2*hour, 9*hour))}, whole, "", 10 * hour},
		"its beginning is missing":     {expectedNode, []audit.Held{heldRun(started(6*hour), 30, 10*hour, seqs(20, 30, 7*hour, 9*hour))}, whole, "records 0-20", 10 * hour},
		"signed more than is there":    {expectedNode, []audit.Held{heldRun(started(0), 30, 10*hour, seqs(0, 28, 0, 9*hour))}, whole, "records 28-30", 10 * hour},
		"there more than signed": {expectedNode, []audit.Held{{RunCoverage: audit.RunCoverage{Node: "n1", Run: started(0), Ranges: []audit.SeqRange{seqs(0, 9, 0, 9*hour)}},
			Proved: audit.Checkpoint{Size: 7, Time: at(10 * hour)}}}, whole, "proof 7-9", 10 * hour},
		"nothing signed": {expectedNode, []audit.Held{{RunCoverage: audit.RunCoverage{Node: "n1", Run: started(0), Ranges: []audit.SeqRange{seqs(0, 9, 0, 9*hour)}}}}, whole, "proof 0-9, after 18000", 5 * hour},
		"a run after another": {expectedNode, []audit.Held{
			heldRun(started(0), 10, 1*hour, seqs(0, 10, 0, hour)), follows(heldRun(second, 5, 10*hour, seqs(0, 5, 2*hour, 9*hour)), started(0), 10),
		}, audit.Window{From: at(0), To: at(10 * hour)}, "", 10 * hour},
		"the end of the run before": {expectedNode, []audit.Held{
			heldRun(started(0), 10, 1*hour, seqs(0, 10, 0, hour)), follows(heldRun(second, 5, 10*hour, seqs(0, 5, 2*hour, 9*hour)), started(0), 12),
		}, audit.Window{From: at(0), To: at(10 * hour)}, "records 10-12", 10 * hour},
		"the run before is longer than said": {expectedNode, []audit.Held{
			heldRun(started(0), 10, 1*hour, seqs(0, 10, 0, hour)), follows(heldRun(second, 5, 10*hour, seqs(0, 5, 2*hour, 9*hour)), started(0), 8),
		}, audit.Window{From: at(0), To: at(10 * hour)}, "fork 8-10", 10 * hour},
		"the run before is missing": {expectedNode, []audit.Held{follows(heldRun(third, 5, 10*hour, seqs(0, 5, 4*hour, 9*hour)), second, 12)},
			audit.Window{From: at(3 * hour), To: at(10 * hour)}, "run 0-12", 10 * hour},
		"the run before is missing, but was over": {expectedNode, []audit.Held{follows(heldRun(third, 5, 10*hour, seqs(0, 5, 4*hour, 9*hour)), second, 12)}, whole, "", 10 * hour},
		"forked":                  {expectedNode, []audit.Held{forked}, whole, "fork", 10 * hour},
		"a gap":                   {expectedNode, []audit.Held{gap}, whole, "gap 3-4 of 5 on billing", 10 * hour},
		"a gap before the window": {expectedNode, []audit.Held{gap}, audit.Window{From: at(7 * hour), To: at(10 * hour)}, "", 10 * hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := audit.Judge(tc.expected, tc.held, tc.window)
			var missing []string
			for _, m := range got.Missing {
				text := string(m.Kind)
				switch {
				case m.Kind == audit.MissingAfter:
					text += fmt.Sprint(" ", m.From.Sub(at(0)).Seconds())
				case m.ToSeq > 0:
					text += fmt.Sprintf(" %d-%d", m.FromSeq, m.ToSeq)
				}
				if m.Records > 0 {
					text += fmt.Sprintf(" of %d on %s", m.Records, m.Route)
				}
				missing = append(missing, text)
			}
			if diff := cmp.Diff(tc.want, strings.Join(missing, ", ")); diff != "" {
				t.Error(diff)
			}
			if got.Complete != (tc.want == "") || !got.UpTo.Equal(at(tc.upTo)) {
				t.Errorf("complete %v up to %s, want %s", got.Complete, got.UpTo, at(tc.upTo))
			}
		})
	}
}

// A node that has left holds nobody back: what the others have signed since counts. How much of its last seconds is there is said.
func TestANodeThatHasEndedIsNamedAndHoldsNobodyBack(t *testing.T) {
	t.Parallel()
	w := audit.Window{From: at(0), To: at(1000), Slack: 15 * time.Second}
	other := heldRun(started(0), 10, 997, seqs(0, 10, 0, 990))
	other.Node = "n2"
	left := func(proved int64) []audit.Held {
		return []audit.Held{heldRun(started(0), 10, proved, seqs(0, 10, 0, 500)), other}
	}
	expected := []audit.Expected{{Node: "n1", Since: at(0), PutOut: at(600), Gone: true}, {Node: "n2", Since: at(0)}}
	for name, tc := range map[string]struct {
		proved int64
		upTo   int64
		ended  []audit.Ended
	}{
		"to its end":       {600, 997, nil},
		"nearly":           {598, 997, []audit.Ended{{Node: "n1", UpTo: at(598), End: at(600)}}},
		"not to its end":   {580, 580, nil},
		"and long before":  {100, 100, nil},
		"beyond, by clock": {601, 997, nil},
	} {
		got := audit.Judge(expected, left(tc.proved), w)
		if diff := cmp.Diff(tc.ended, got.Ended); diff != "" || !got.UpTo.Equal(at(tc.upTo)) || got.Complete != (tc.upTo == 997) {
			t.Errorf("%s: complete %v up to %s: %s", name, got.Complete, got.UpTo, diff)
		}
	}
	// One that nobody has said to be stopped is awaited, however near its trail is to where it was put out.
	expected[0].Gone = false
	if got := audit.Judge(expected, left(599), w); got.Complete || !got.UpTo.Equal(at(599)) || len(got.Ended) != 0 {
		t.Errorf("not confirmed: %+v", got)
	}
}

func TestWhatSeveralAggregatorsHoldIsJoined(t *testing.T) {
	t.Parallel()
	a, b := heldRun(run, 20, 200, seqs(0, 20, 0, 200)), heldRun(run, 40, 400, seqs(15, 30, 150, 300), seqs(35, 40, 350, 400))
	a.Gaps, b.Gaps = []audit.TrailGap{{Seq: 16}}, []audit.TrailGap{{Seq: 16}, {Seq: 18}}
	a.StoodDown, b.StoodDown = []audit.StandDown{{Seq: 19}}, []audit.StandDown{{Seq: 19}, {Seq: 29}}
	got := audit.MergeHeld([]audit.Held{a}, []audit.Held{b}, []audit.Held{heldRun(9, 1, 1)})
	if len(got) != 2 || got[0].Proved.Size != 40 || got[0].InSpan != 60 || len(got[0].Gaps) != 2 || len(got[0].StoodDown) != 2 {
		t.Fatalf("%+v", got)
	}
	if diff := cmp.Diff([]audit.SeqRange{seqs(0, 30, 0, 300), seqs(35, 40, 350, 400)}, got[0].Ranges); diff != "" {
		t.Error(diff)
	}
}

func TestANoteThatIsNotTheNodesIsRefused(t *testing.T) {
	t.Parallel()
	tree := audit.NewTree()
	tree.Append(audit.LeafHash([]byte("x")))
	note := noteOf(t, run, tree, 1).Body
	agg := audit.SignWith(key(7))
	signed, err := audit.Countersign(note, "agg", agg, at(100))
	if err != nil {
		t.Fatal(err)
	}
	c := func(node string, r audit.Run, note []byte) audit.RunCoverage {
		return audit.RunCoverage{Node: node, Run: r, Checkpoint: note}
	}
	for name, tc := range map[string]struct {
		c    audit.RunCoverage
		mesh string
		key  byte
		ok   bool
	}{
		"as it should be":   {c("n1", run, signed), "m", 1, true},
		"none":              {c("n1", run, nil), "m", 1, true},
		"another key":       {c("n1", run, signed), "m", 2, false},
		"another node":      {c("n2", run, signed), "m", 1, false},
		"another run":       {c("n1", 6, signed), "m", 1, false},
		"another mesh":      {c("n1", run, signed), "x", 1, false},
		"not countersigned": {c("n1", run, note), "m", 1, false},
		"no note":           {c("n1", run, []byte("x")), "m", 1, false},
	} {
		got, err := audit.Hold(tc.c, tc.mesh, public(tc.key), "agg", public(7))
		if (err == nil) != tc.ok || (tc.ok && len(tc.c.Checkpoint) > 0) != (got.Proved.Size == 1) {
			t.Errorf("%s: %+v, %v", name, got.Proved, err)
		}
	}
}

// Whatever a node has written: no panic, and the time that is read off a record's beginning is the one that decoding gives.
func FuzzSummarizer(f *testing.F) {
	for _, body := range [][]byte{
		nil, []byte("{}"), []byte(`{"kind":"gap","time":"2026-11-24T10:00:00Z"}`), []byte(`{"kind":"de\u0063ision","time":"2026-11-24T10:00:00Z","actor":{"provisioning_key":"k\u0031"}}`),
		[]byte(`{"kind":"run","time":"2026-11-24T10:00:00Z","detail":{"previous_run":"0000000000000001","previous_size":"-1"}}`),
	} {
		f.Add(body)
	}
	for _, r := range []audit.Record{
		decided(10, "billing", audit.Allow, "k1", "k2", "dev/ana"), {Kind: audit.KindGap, Time: at(3), Gap: &audit.Span{Count: 3}},
		{Kind: audit.KindSignIn, Time: at(4), Decision: audit.Deny, Actor: audit.Actor{ProvisioningKey: "k1"}},
	} {
		f.Add(r.AppendJSON(nil))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		s := &audit.Summarizer{Keys: []string{"k1", "k2"}}
		s.Add("n1", audit.Frame{Run: run, Body: body})
		got := s.Summary()
		r, err := audit.Decode(body)
		if err != nil || string(r.AppendJSON(nil)) != string(body) {
			return // no node of ours wrote it
		}
		if !got.Runs[0].Ranges[0].First.Equal(r.Time) {
			t.Errorf("time %s, decoded %s", got.Runs[0].Ranges[0].First, r.Time)
		}
		counted := uint64(0)
		for _, k := range got.Keys {
			for _, d := range k.Decisions {
				counted += d.Records
			}
		}
		want := uint64(0)
		for _, key := range s.Keys {
			if r.Kind == audit.KindDecision && (r.Actor.ProvisioningKey == key || r.Actor.MintingProvisioningKey == key) {
				want++
			}
		}
		if counted != want {
			t.Errorf("counted %d times, want %d", counted, want)
		}
	})
}

// What it costs to count: what an aggregator does for each record that it holds.
func BenchmarkSummarizer(b *testing.B) {
	bodies := [][]byte{}
	for i := range 100 {
		r := decided(int64(i), "billing", audit.Allow, fmt.Sprint("key", i%10), "", "dev/ana")
		r.Method, r.Host, r.Path, r.SourceIP, r.Reason = "GET", "billing.example.com", "/invoices/2026", "192.0.2.7", "allowed by route billing"
		bodies = append(bodies, r.AppendJSON(nil))
	}
	s := &audit.Summarizer{Keys: []string{"key1"}}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.Add("n1", audit.Frame{Run: run, Seq: uint64(i), Body: bodies[i%100]})
	}
}
