package collect

import (
	"fmt"
	"slices"

	"github.com/iapmesh/iapmesh/audit"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Recount counts again, over the trail as it is fetched, what an aggregator has claimed to have counted, so that nobody has to believe it:
// the frames are proved against the notes that their nodes have signed, and counted here.
type Recount struct {
	verifier *audit.Verifier
	counts   *audit.Summarizer
	req      *iapmeshv1.SummarizeRequest
	claimed  audit.Summary
}

// NewRecount prepares to check the answer to a request. The trail may have grown since: what lies beyond the claimed ranges is proved, but
// not counted.
func NewRecount(v *audit.Verifier, req *iapmeshv1.SummarizeRequest, claimed audit.Summary) (*Recount, error) {
	s, err := NewSummarizer(req)
	if err != nil {
		return nil, err
	}
	within, asked := rangesOf{}, s.Counts
	for _, r := range claimed.Runs {
		within[runKey{r.Node, r.Run}] = r.Ranges
	}
	s.Counts = func(node string, run audit.Run, seq uint64) bool {
		return within.holds(node, run, seq) && asked(node, run, seq)
	}
	return &Recount{verifier: v, counts: s, req: req, claimed: claimed}, nil
}

// Read reads what Fetch streams.
func (r *Recount) Read(recv func() (*iapmeshv1.FetchResponse, error)) error {
	return ReadFetch(recv, Both{r.verifier, r.counts})
}

// Result is the report of the proof, and how the claim differs from what was proved: nothing, if the aggregator spoke the truth.
func (r *Recount) Result() (audit.Report, []string) {
	report, counted := r.verifier.Report(), r.counts.Summary()
	var diffs []string
	differ := func(format string, args ...any) { diffs = append(diffs, fmt.Sprintf(format, args...)) }
	proved := map[string]audit.RunReport{}
	for _, run := range report.Runs {
		proved[run.Node+"/"+run.Run] = run
		for _, f := range run.Findings {
			// What is missing is said by the ranges. What grew since the claim may not be proved yet.
			if f.Kind != audit.FindingMissing && f.Kind != audit.FindingNoRun {
				differ("%s", f)
			}
		}
	}
	for i, claimed := range r.claimed.Keys {
		compareActivity(claimed, counted.Keys[i], differ)
	}
	claimedRuns := map[runKey]audit.RunCoverage{}
	for _, c := range r.claimed.Runs {
		claimedRuns[runKey{c.Node, c.Run}] = c
		at := slices.IndexFunc(counted.Runs, func(o audit.RunCoverage) bool { return o.Node == c.Node && o.Run == c.Run })
		if at < 0 {
			differ("run %s of %s: claimed, and not in the trail", c.Run, c.Node)
			continue
		}
		compareCoverage(c, counted.Runs[at], proved[c.Node+"/"+c.Run.String()], differ)
	}
	for _, c := range counted.Runs {
		if _, ok := claimedRuns[runKey{c.Node, c.Run}]; !ok && (r.counts.To.IsZero() || c.Run.Started().Before(r.counts.To)) {
			differ("run %s of %s: in the trail, and not claimed", c.Run, c.Node)
		}
	}
	return report, diffs
}

func compareActivity(claimed, counted audit.KeyActivity, differ func(string, ...any)) {
	if claimed.SignIns != counted.SignIns || claimed.SignInsRefused != counted.SignInsRefused {
		differ("key %s: %d sign-ins and %d refused claimed, %d and %d in the trail", claimed.Key, claimed.SignIns, claimed.SignInsRefused, counted.SignIns, counted.SignInsRefused)
	}
	if !slices.Equal(claimed.Subjects, counted.Subjects) || claimed.MoreSubjects != counted.MoreSubjects {
		differ("key %s: %d subjects claimed, others (%d) in the trail", claimed.Key, len(claimed.Subjects), len(counted.Subjects))
	}
	if slices.Equal(claimed.Decisions, counted.Decisions) {
		return
	}
	rows := map[audit.DecisionCount]uint64{}
	var order []audit.DecisionCount
	for _, d := range slices.Concat(claimed.Decisions, counted.Decisions) {
		d.Records = 0
		if _, ok := rows[d]; !ok {
			order = append(order, d)
		}
		rows[d] = 0
	}
	of := func(all []audit.DecisionCount, row audit.DecisionCount) (n uint64) {
		for _, d := range all {
			n, d.Records = d.Records, 0
			if d == row {
				return n
			}
		}
		return 0
	}
	for _, row := range order {
		if a, b := of(claimed.Decisions, row), of(counted.Decisions, row); a != b {
			differ("key %s: route %s, %s, %s: %d claimed, %d in the trail", claimed.Key, row.Route, row.Decision, row.By, a, b)
		}
	}
	differ("key %s: the counts of decisions are not those of the trail", claimed.Key)
}

func compareCoverage(claimed, held audit.RunCoverage, proved audit.RunReport, differ func(string, ...any)) {
	name := claimed.Run.String() + " of " + claimed.Node
	end := uint64(0)
	for _, c := range claimed.Ranges {
		if !slices.ContainsFunc(held.Ranges, func(h audit.SeqRange) bool { return h.From <= c.From && c.To <= h.To }) {
			differ("run %s: records %d to %d claimed, and not in the trail", name, c.From, c.To)
		}
		end = c.To
	}
	if proved.Size < end {
		differ("run %s: %d records claimed, %d proved", name, end, proved.Size)
	}
	if claimed.InSpan != held.InSpan {
		differ("run %s: %d records in the span claimed, %d in the trail", name, claimed.InSpan, held.InSpan)
	}
	if claimed.PreviousRun != held.PreviousRun || claimed.PreviousSize != held.PreviousSize {
		differ("run %s: the run before it is another than claimed", name)
	}
	words := slices.DeleteFunc(slices.Clone(held.StoodDown), func(d audit.StandDown) bool { return d.Seq >= end })
	claims := claimed.StoodDown
	if len(held.StoodDown) == audit.MaxStandDowns { // the trail goes on, and the oldest fall out of its count
		claims = slices.DeleteFunc(slices.Clone(claims), func(d audit.StandDown) bool { return d.Seq < held.StoodDown[0].Seq })
	}
	if !slices.EqualFunc(claims, words, func(a, b audit.StandDown) bool {
		return a.Seq == b.Seq && a.At.Equal(b.At) && a.PutOut.Equal(b.PutOut)
	}) {
		differ("run %s: that it stopped because it was put out is claimed %d times, and %d times in the trail", name, len(claims), len(words))
	}
	gaps := slices.DeleteFunc(slices.Clone(held.Gaps), func(g audit.TrailGap) bool { return g.Seq >= end })
	if !slices.EqualFunc(claimed.Gaps, gaps, func(a, b audit.TrailGap) bool {
		return a.Seq == b.Seq && a.Count == b.Count && a.Route == b.Route && a.From.Equal(b.From) && a.To.Equal(b.To)
	}) {
		differ("run %s: %d gaps claimed, %d in the trail", name, len(claimed.Gaps), len(gaps))
	}
}
