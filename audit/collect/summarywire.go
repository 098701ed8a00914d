package collect

import (
	"slices"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// SummaryProto writes a summary as a message.
func SummaryProto(s audit.Summary) *iapmeshv1.TrailSummary {
	out := &iapmeshv1.TrailSummary{}
	for _, k := range s.Keys {
		p := &iapmeshv1.KeyActivity{
			ProvisioningKey: k.Key, SignIns: k.SignIns, SignInsRefused: k.SignInsRefused, Subjects: k.Subjects, MoreSubjects: k.MoreSubjects,
		}
		for _, d := range k.Decisions {
			p.Decisions = append(p.Decisions, &iapmeshv1.DecisionCount{Route: d.Route, Decision: d.Decision, By: d.By, Records: d.Records, Others: d.Others})
		}
		out.Keys = append(out.Keys, p)
	}
	for _, r := range s.Runs {
		p := &iapmeshv1.RunCoverage{
			Node: r.Node, Run: r.Run.String(), Ranges: RangesProto(r.Ranges), Checkpoint: r.Checkpoint, PreviousRun: r.PreviousRun, PreviousSize: r.PreviousSize,
			InSpan: r.InSpan, MoreGaps: r.MoreGaps, Forked: r.Forked,
		}
		for _, d := range r.StoodDown {
			p.StoodDown = append(p.StoodDown, &iapmeshv1.StandDown{Seq: d.Seq, At: stampOf(d.At), PutOut: stampOf(d.PutOut)})
		}
		for _, g := range r.Gaps {
			p.Gaps = append(p.Gaps, &iapmeshv1.TrailGap{Seq: g.Seq, Records: g.Count, Route: g.Route, Reason: g.Reason, From: stampOf(g.From), To: stampOf(g.To)})
		}
		out.Runs = append(out.Runs, p)
	}
	return out
}

// RangesProto writes ranges as messages.
func RangesProto(ranges []audit.SeqRange) []*iapmeshv1.SeqRange {
	var out []*iapmeshv1.SeqRange
	for _, r := range ranges {
		out = append(out, &iapmeshv1.SeqRange{From: r.From, To: r.To, First: stampOf(r.First), Last: stampOf(r.Last)})
	}
	return out
}

// SummaryOf reads a summary that an aggregator has answered a request for these keys with. It believes nothing: what is not in the form
// in which SummaryProto writes is Invalid.
func SummaryOf(p *iapmeshv1.TrailSummary, keys []string) (audit.Summary, error) {
	var out audit.Summary
	if len(p.GetKeys()) != len(keys) || len(p.GetRuns()) > maxRangeRuns {
		return out, fault.New(fault.Invalid, "summary: of %d keys and %d runs, want %d and at most %d", len(p.GetKeys()), len(p.GetRuns()), len(keys), maxRangeRuns)
	}
	for i, k := range p.GetKeys() {
		if k.GetProvisioningKey() != keys[i] {
			return out, fault.New(fault.Invalid, "summary: of key %.40q, asked for %s", k.GetProvisioningKey(), keys[i])
		}
		activity, err := activityOf(k)
		if err != nil {
			return out, err
		}
		out.Keys = append(out.Keys, activity)
	}
	seen := map[runKey]bool{}
	for _, r := range p.GetRuns() {
		c, err := coverageOf(r)
		if err != nil {
			return out, err
		}
		k := runKey{c.Node, c.Run}
		if seen[k] {
			return out, fault.New(fault.Invalid, "summary: run %s of %s is there twice", c.Run, c.Node)
		}
		seen[k] = true
		out.Runs = append(out.Runs, c)
	}
	return out, nil
}

func activityOf(k *iapmeshv1.KeyActivity) (audit.KeyActivity, error) {
	out := audit.KeyActivity{
		Key: k.GetProvisioningKey(), SignIns: k.GetSignIns(), SignInsRefused: k.GetSignInsRefused(), Subjects: k.GetSubjects(), MoreSubjects: k.GetMoreSubjects(),
	}
	if n := len(k.GetDecisions()); n > audit.MaxSummaryRows+1 {
		return out, fault.New(fault.Invalid, "summary: %d counts of a key, at most %d", n, audit.MaxSummaryRows)
	}
	if n := len(out.Subjects); n > audit.MaxSummarySubjects || !slices.IsSorted(out.Subjects) || len(slices.Compact(slices.Clone(out.Subjects))) != n {
		return out, fault.New(fault.Invalid, "summary: %d subjects: more than %d, or not in order", n, audit.MaxSummarySubjects)
	}
	for _, d := range k.GetDecisions() {
		out.Decisions = append(out.Decisions, audit.DecisionCount{Route: d.GetRoute(), Decision: d.GetDecision(), By: d.GetBy(), Records: d.GetRecords(), Others: d.GetOthers()})
	}
	rows := out.Decisions
	if n := len(rows); n > 0 && rows[n-1].Others {
		rows = rows[:n-1]
	}
	for i, d := range rows {
		if d.Others || (i > 0 && audit.CompareCounts(rows[i-1], d) >= 0) {
			return out, fault.New(fault.Invalid, "summary: counts of key %.40s are not in order", out.Key)
		}
	}
	return out, nil
}

func coverageOf(r *iapmeshv1.RunCoverage) (audit.RunCoverage, error) {
	out := audit.RunCoverage{
		Node: r.GetNode(), Checkpoint: r.GetCheckpoint(), PreviousRun: r.GetPreviousRun(), PreviousSize: r.GetPreviousSize(), InSpan: r.GetInSpan(),
		MoreGaps: r.GetMoreGaps(), Forked: r.GetForked(),
	}
	if err := audit.CheckName(out.Node); err != nil {
		return out, err
	}
	var err error
	if out.Run, err = audit.ParseRun(r.GetRun()); err != nil {
		return out, err
	}
	if out.PreviousRun != "" {
		if _, err := audit.ParseRun(out.PreviousRun); err != nil {
			return out, err
		}
	}
	if out.Ranges, err = seqRangesOf(r.GetRanges()); err != nil {
		return out, err
	}
	if len(r.GetGaps()) > audit.MaxSummaryGaps || len(out.Checkpoint) > audit.MaxNote {
		return out, fault.New(fault.Invalid, "summary: %d gaps and a note of %d bytes, at most %d and %d", len(r.GetGaps()), len(out.Checkpoint), audit.MaxSummaryGaps, audit.MaxNote)
	}
	if len(r.GetStoodDown()) > audit.MaxStandDowns {
		return out, fault.New(fault.Invalid, "summary: run %s stood down %d times, at most %d", out.Run, len(r.GetStoodDown()), audit.MaxStandDowns)
	}
	for _, d := range r.GetStoodDown() {
		out.StoodDown = append(out.StoodDown, audit.StandDown{Seq: d.GetSeq(), At: timeOf(d.GetAt()), PutOut: timeOf(d.GetPutOut())})
	}
	for _, g := range r.GetGaps() {
		out.Gaps = append(out.Gaps, audit.TrailGap{Seq: g.GetSeq(), Span: audit.Span{
			Count: g.GetRecords(), Route: g.GetRoute(), Reason: g.GetReason(), From: timeOf(g.GetFrom()), To: timeOf(g.GetTo()),
		}})
	}
	return out, nil
}
