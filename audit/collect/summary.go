package collect

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Summarize serves audit.Summarizer over all that is stored.
func (a *Aggregator) Summarize(ctx context.Context, req *iapmeshv1.SummarizeRequest) (*iapmeshv1.SummarizeResponse, error) {
	s, err := NewSummarizer(req)
	if err != nil {
		return nil, fault.ToStatus(err)
	}
	summary, err := a.summarize(ctx, s)
	if err != nil {
		return nil, fault.ToStatus(err)
	}
	return &iapmeshv1.SummarizeResponse{Summary: SummaryProto(summary)}, nil
}

// NewSummarizer makes what counts as a request says; an aggregator's and that of whoever counts again count alike.
func NewSummarizer(req *iapmeshv1.SummarizeRequest) (*audit.Summarizer, error) {
	if n := len(req.GetProvisioningKeys()); n == 0 || n > audit.MaxSummaryKeys {
		return nil, fault.New(fault.Invalid, "summarize: %d provisioning keys, want 1 to %d", n, audit.MaxSummaryKeys)
	}
	seen := map[string]bool{}
	for _, k := range req.GetProvisioningKeys() {
		if k == "" || seen[k] {
			return nil, fault.New(fault.Invalid, "summarize: provisioning key %.40q: empty, or named twice", k)
		}
		seen[k] = true
	}
	counted, err := parseRanges(req.GetCounted())
	if err != nil {
		return nil, err
	}
	s := &audit.Summarizer{Keys: req.GetProvisioningKeys(), From: timeOf(req.GetFrom()), To: timeOf(req.GetTo())}
	s.Counts = func(node string, run audit.Run, seq uint64) bool { return !counted.holds(node, run, seq) }
	return s, nil
}

func (a *Aggregator) summarize(ctx context.Context, s *audit.Summarizer) (audit.Summary, error) {
	names, err := nodes(a.cfg.Dir)
	if err != nil {
		return audit.Summary{}, err
	}
	standing := map[runKey]audit.RunCoverage{}
	for _, node := range names {
		runs, err := runsOf(a.cfg.Dir, node)
		if err != nil {
			return audit.Summary{}, err
		}
		for _, run := range runs {
			l, err := a.log(node, run)
			if err != nil {
				return audit.Summary{}, err
			}
			segments, note, forked := l.standing()
			standing[runKey{node, run}] = audit.RunCoverage{Checkpoint: note, Forked: forked}
			if err := readRun(ctx, l, segments, s); err != nil {
				return audit.Summary{}, err
			}
		}
	}
	out := s.Summary()
	for i := range out.Runs {
		at := standing[runKey{out.Runs[i].Node, out.Runs[i].Run}]
		out.Runs[i].Forked = at.Forked
		if at.Checkpoint != nil {
			out.Runs[i].Checkpoint = at.Checkpoint
		}
	}
	return out, nil
}

// readRun reads what is stored of a run.
func readRun(ctx context.Context, l *runLog, segments []segment, r Reader) error {
	c := cursor{run: l.run, segments: segments, damaged: func(text string) { r.Damaged(l.node, l.run, text) }}
	defer c.close()
	for n := 0; ; n++ {
		if n%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		f, err := c.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		r.Add(l.node, f)
	}
}

func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func stampOf(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// rangesOf are records by run.
type rangesOf map[runKey][]audit.SeqRange

// maxRangeRuns bounds the runs that a request or an answer names.
const maxRangeRuns = 100_000

func parseRanges(all []*iapmeshv1.RunRanges) (rangesOf, error) {
	if len(all) > maxRangeRuns {
		return nil, fault.New(fault.Invalid, "summarize: %d runs, at most %d", len(all), maxRangeRuns)
	}
	out := rangesOf{}
	for _, r := range all {
		run, err := audit.ParseRun(r.GetRun())
		if err != nil {
			return nil, err
		}
		if err := audit.CheckName(r.GetNode()); err != nil {
			return nil, err
		}
		ranges, err := seqRangesOf(r.GetRanges())
		if err != nil {
			return nil, err
		}
		k := runKey{r.GetNode(), run}
		if out[k] != nil {
			return nil, fault.New(fault.Invalid, "summarize: run %s of %s is named twice", run, r.GetNode())
		}
		out[k] = ranges
	}
	return out, nil
}

func (r rangesOf) holds(node string, run audit.Run, seq uint64) bool {
	for _, s := range r[runKey{node, run}] {
		if s.From <= seq && seq < s.To {
			return true
		}
	}
	return false
}

func seqRangesOf(ps []*iapmeshv1.SeqRange) ([]audit.SeqRange, error) {
	if len(ps) > audit.MaxSummaryRanges {
		return nil, fault.New(fault.Invalid, "summary: %d ranges of a run, at most %d", len(ps), audit.MaxSummaryRanges)
	}
	var out []audit.SeqRange
	end := uint64(0)
	for _, p := range ps {
		if p.GetFrom() >= p.GetTo() || p.GetFrom() < end {
			return nil, fault.New(fault.Invalid, "summary: range %d to %d: empty, or out of order", p.GetFrom(), p.GetTo())
		}
		end = p.GetTo()
		out = append(out, audit.SeqRange{From: p.GetFrom(), To: p.GetTo(), First: timeOf(p.GetFirst()), Last: timeOf(p.GetLast())})
	}
	return out, nil
}
