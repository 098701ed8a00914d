package audit

import (
	"cmp"
	"crypto/ed25519"
	"fmt"
	"slices"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// MissingKind says how a stretch of a trail is missing.
type MissingKind string

// The kinds of what is missing.
const (
	MissingNode    MissingKind = "never_shipped" // nothing of the node is there
	MissingAfter   MissingKind = "after"         // nothing after From, until To
	MissingRecords MissingKind = "records"       // of a run, FromSeq ≤ seq < ToSeq
	MissingRun     MissingKind = "run"           // a whole run
	MissingGap     MissingKind = "gap"           // requests that the node served without a record, as it says itself
	MissingFork    MissingKind = "fork"          // the node showed two histories: one was refused
	MissingProof   MissingKind = "proof"         // records that no signature of their node covers
)

// Missing is a stretch of time of which not all records are there, as far as the trail itself tells.
type Missing struct {
	Kind    MissingKind `json:"kind"`
	Node    string      `json:"node"`
	Run     string      `json:"run,omitempty"`
	FromSeq uint64      `json:"from_seq,omitempty"`
	ToSeq   uint64      `json:"to_seq,omitempty"`
	From    time.Time   `json:"from,omitzero"`
	To      time.Time   `json:"to,omitzero"`
	Records uint64      `json:"records,omitempty"`
	Route   string      `json:"route,omitempty"`
	Text    string      `json:"text,omitempty"`
}

// Expected is a node whose trail there should be: it could write records from Since on. If the mesh has put it out, at PutOut, it could until
// its trail says that it has stopped by that; where Gone, somebody has said that it was stopped by PutOut already.
type Expected struct {
	Node   string
	Since  time.Time
	PutOut time.Time // zero: it was not
	Gone   bool
}

// until is the end of what a node could write, by what is there of its trail; zero: there is none that is known. A node that was started
// again may have served until it heard once more: so its last run must hold the word, and of several words the last counts.
func (e Expected) until(runs []Held) time.Time {
	var last *Held
	for i := range runs {
		if last == nil || runs[i].Run.Started().After(last.Run.Started()) {
			last = &runs[i]
		}
	}
	var said time.Time
	if last != nil {
		for _, d := range last.StoodDown {
			if d.PutOut.Equal(e.PutOut) && d.Seq < last.Proved.Size && d.At.After(said) {
				said = d.At
			}
		}
	}
	if said.IsZero() && e.Gone {
		return e.PutOut
	}
	return said
}

// Window is a span of time. Slack is how far behind its end a trail that still grows may be.
type Window struct {
	From, To time.Time // From ≤ time < To
	Slack    time.Duration
}

// Held is what is there of a run, with its newest checkpoint verified: zero if there is none.
type Held struct {
	RunCoverage
	Proved Checkpoint
}

// Completeness says whether the records of a window are all there.
type Completeness struct {
	Complete bool      `json:"complete"`
	Nodes    int       `json:"nodes"`   // that could write in the window
	Records  uint64    `json:"records"` // of theirs, in the window
	UpTo     time.Time `json:"up_to"`   // until when the trail of every node is there; one that ended before, to its end
	Ended    []Ended   `json:"ended,omitempty"`
	Missing  []Missing `json:"missing,omitempty"`
}

// Ended is a node that was stopped within the window by what somebody says, not long after the last that its trail proves. How it ended
// nobody has signed: one that was killed may have taken its last records with it.
type Ended struct {
	Node string    `json:"node"`
	UpTo time.Time `json:"up_to"` // the trail is there until then
	End  time.Time `json:"end"`
}

// Hold verifies the newest checkpoint of a run: that its node signed it, and that the aggregator countersigned it. An error says that what
// the aggregator shows is not what it should be.
func Hold(c RunCoverage, mesh string, node ed25519.PublicKey, aggregator string, key ed25519.PublicKey) (Held, error) {
	if len(c.Checkpoint) == 0 {
		return Held{RunCoverage: c}, nil
	}
	proved, err := OpenCheckpoint(c.Checkpoint, c.Node, node)
	if err != nil {
		return Held{RunCoverage: c}, err
	}
	if proved.Run != c.Run || proved.Mesh != mesh {
		return Held{RunCoverage: c}, fault.New(fault.Denied, "checkpoint is of run %s of mesh %s, not %s of %s", proved.Run, proved.Mesh, c.Run, mesh)
	}
	if _, err := VerifyCountersignature(c.Checkpoint, aggregator, key); err != nil {
		return Held{RunCoverage: c}, err
	}
	return Held{RunCoverage: c, Proved: proved}, nil
}

// MergeHeld joins what several aggregators hold.
func MergeHeld(all ...[]Held) []Held {
	merged := map[runKey]*Held{}
	for _, h := range slices.Concat(all...) {
		k := runKey{h.Node, h.Run}
		have := merged[k]
		if have == nil {
			h.Ranges, h.Gaps, h.StoodDown = slices.Clone(h.Ranges), slices.Clone(h.Gaps), slices.Clone(h.StoodDown)
			merged[k] = &h
			continue
		}
		have.Ranges = mergeRanges(append(have.Ranges, h.Ranges...))
		have.InSpan += h.InSpan
		have.Forked, have.MoreGaps = have.Forked || h.Forked, have.MoreGaps || h.MoreGaps
		for _, d := range h.StoodDown {
			if !slices.ContainsFunc(have.StoodDown, func(o StandDown) bool { return o.Seq == d.Seq }) {
				have.StoodDown = append(have.StoodDown, d)
			}
		}
		if have.PreviousRun == "" {
			have.PreviousRun, have.PreviousSize = h.PreviousRun, h.PreviousSize
		}
		if newer := h.Proved; newer.Size > have.Proved.Size || (newer.Size == have.Proved.Size && newer.Time.After(have.Proved.Time)) {
			have.Proved, have.Checkpoint = newer, h.Checkpoint
		}
		for _, g := range h.Gaps {
			if !slices.ContainsFunc(have.Gaps, func(o TrailGap) bool { return o.Seq == g.Seq }) {
				have.Gaps = append(have.Gaps, g)
			}
		}
	}
	var out []Held
	for _, h := range merged {
		out = append(out, *h)
	}
	slices.SortFunc(out, func(a, b Held) int { return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Run, b.Run)) })
	return out
}

// MergeActivity adds what two aggregators have counted, of the same keys in the same order and of different records.
func MergeActivity(a, b []KeyActivity) []KeyActivity {
	out := slices.Clone(a)
	for i := range min(len(a), len(b)) {
		k := &keyTally{KeyActivity: out[i]}
		k.Decisions, k.Subjects = slices.Clone(a[i].Decisions), slices.Clone(a[i].Subjects)
		k.SignIns += b[i].SignIns
		k.SignInsRefused += b[i].SignInsRefused
		k.MoreSubjects = k.MoreSubjects || b[i].MoreSubjects
		if n := len(k.Decisions); n > 0 && k.Decisions[n-1].Others {
			k.others, k.Decisions = k.Decisions[n-1].Records, k.Decisions[:n-1]
		}
		for _, d := range b[i].Decisions {
			k.decision(d)
		}
		for _, s := range b[i].Subjects {
			k.subject(s)
		}
		out[i] = k.activity()
	}
	return out
}

func mergeRanges(all []SeqRange) []SeqRange {
	slices.SortFunc(all, func(a, b SeqRange) int { return cmp.Compare(a.From, b.From) })
	var out []SeqRange
	for _, r := range all {
		if n := len(out); n > 0 && r.From <= out[n-1].To {
			last := &out[n-1]
			last.To = max(last.To, r.To)
			if r.First.Before(last.First) {
				last.First = r.First
			}
			if r.Last.After(last.Last) {
				last.Last = r.Last
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// Judge says whether the trails of all expected nodes are there for the window: their runs linked one to the next, each from its first
// record without a hole, and the last proved to its end. What a node never wrote down, and does not say, nobody can tell.
func Judge(expected []Expected, held []Held, w Window) Completeness {
	out := Completeness{UpTo: w.To}
	runs := map[string][]Held{}
	for _, h := range held {
		runs[h.Node] = append(runs[h.Node], h)
	}
	for _, e := range expected {
		from, to, ends := w.From, w.To, false
		if e.Since.After(from) {
			from = e.Since
		}
		if !e.PutOut.IsZero() {
			if until := e.until(runs[e.Node]); !until.IsZero() && until.Before(to) {
				to, ends = until, true
			}
		}
		if !from.Before(to) {
			continue
		}
		out.Nodes++
		j := judge{node: e.Node, from: from, to: to, slack: w.Slack}
		j.runs(runs[e.Node])
		out.Missing = append(out.Missing, j.missing...)
		switch {
		case !j.upTo.Before(to):
		case ends && !j.short: // nothing more will come: what is proved of the others is no less for that
			if e.Gone { // else its own word is among what is proved
				out.Ended = append(out.Ended, Ended{Node: e.Node, UpTo: j.upTo, End: to})
			}
		case j.upTo.Before(out.UpTo):
			out.UpTo = j.upTo
		}
		for _, h := range runs[e.Node] {
			out.Records += h.InSpan
		}
	}
	out.Complete = len(out.Missing) == 0
	return out
}

// judge looks at one node.
type judge struct {
	node     string
	from, to time.Time
	slack    time.Duration
	upTo     time.Time
	short    bool // the trail does not reach the end
	missing  []Missing
}

// unordered is by how much the records of a run may be out of the order of their times: they are decided on at once, and counted later.
const unordered = time.Minute

// within reports whether something that happened between two times may have happened in the window.
func (j *judge) within(from, to time.Time) bool {
	return from.Add(-unordered).Before(j.to) && !to.Add(unordered).Before(j.from)
}

func (j *judge) add(m Missing) {
	m.Node = j.node
	j.missing = append(j.missing, m)
}

func (j *judge) runs(runs []Held) {
	if len(runs) == 0 {
		j.upTo, j.short = j.from, true
		j.add(Missing{Kind: MissingNode, From: j.from, To: j.to})
		return
	}
	for i := range runs {
		j.holes(&runs[i])
		j.before(runs, i)
		j.gaps(&runs[i])
		if runs[i].Proved.Time.After(j.upTo) {
			j.upTo = runs[i].Proved.Time
		}
	}
	if j.upTo.Before(j.from) {
		j.upTo = j.from
	}
	if j.short = j.upTo.Add(j.slack).Before(j.to); j.short {
		j.add(Missing{Kind: MissingAfter, From: j.upTo, To: j.to})
	}
}

// holes looks for records that are missing within a run.
func (j *judge) holes(h *Held) {
	next, since := uint64(0), h.Run.Started()
	hole := func(to uint64, until time.Time) {
		if to > next && j.within(since, until) {
			j.add(Missing{Kind: MissingRecords, Run: h.Run.String(), FromSeq: next, ToSeq: to, From: since, To: until})
		}
	}
	for _, r := range h.Ranges {
		hole(r.From, r.First)
		next, since = r.To, r.Last
	}
	hole(h.Proved.Size, h.Proved.Time)
	switch {
	case h.Forked && j.within(h.Run.Started(), j.to):
		j.add(Missing{Kind: MissingFork, Run: h.Run.String(), From: h.Proved.Time})
	case next > h.Proved.Size && j.within(h.Run.Started(), since):
		j.add(Missing{Kind: MissingProof, Run: h.Run.String(), FromSeq: h.Proved.Size, ToSeq: next, To: since})
	}
}

// before looks whether the run that a run names as the one before it is there to its end.
func (j *judge) before(runs []Held, i int) {
	h := &runs[i]
	if h.PreviousRun == "" || h.PreviousSize == 0 || !j.within(time.Time{}, h.Run.Started()) {
		return
	}
	at := slices.IndexFunc(runs, func(o Held) bool { return o.Run.String() == h.PreviousRun })
	if at < 0 {
		j.add(Missing{Kind: MissingRun, Run: h.PreviousRun, ToSeq: h.PreviousSize, To: h.Run.Started()})
		return
	}
	end, since := uint64(0), runs[at].Run.Started()
	if n := len(runs[at].Ranges); n > 0 {
		end, since = runs[at].Ranges[n-1].To, runs[at].Ranges[n-1].Last
	}
	switch end = max(end, runs[at].Proved.Size); {
	case end < h.PreviousSize && j.within(since, h.Run.Started()):
		j.add(Missing{Kind: MissingRecords, Run: h.PreviousRun, FromSeq: end, ToSeq: h.PreviousSize, From: since, To: h.Run.Started()})
	case end > h.PreviousSize:
		j.add(Missing{Kind: MissingFork, Run: h.PreviousRun, FromSeq: h.PreviousSize, ToSeq: end, Text: "the next run names fewer records"})
	}
}

func (j *judge) gaps(h *Held) {
	for _, g := range h.Gaps {
		if g.From.Before(j.to) && !g.To.Before(j.from) {
			j.add(Missing{Kind: MissingGap, Run: h.Run.String(), FromSeq: g.Seq, ToSeq: g.Seq + 1, From: g.From, To: g.To, Records: g.Count, Route: g.Route, Text: g.Reason})
		}
	}
	if h.MoreGaps {
		j.add(Missing{Kind: MissingGap, Run: h.Run.String(), Text: fmt.Sprintf("and more than %d gaps", MaxSummaryGaps)})
	}
}
