package audit

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"
	"time"
)

// The bounds of a Summary: a node that writes whatever it likes fills nobody's memory.
const (
	MaxSummaryKeys     = 1024
	MaxSummaryRows     = 4096 // of DecisionCount, a key
	MaxSummarySubjects = 1000 // a key
	MaxSummaryGaps     = 1000 // a run
	MaxSummaryRanges   = 1000 // a run
	MaxStandDowns      = 100  // a run: the last
)

// How a decision stands on a provisioning key.
const (
	ByServing = "serving" // a node of the key served it
	ByMinting = "minting" // a node of the key minted the session, another's served it
	ByBoth    = "both"
)

// DecisionCount counts decisions that are alike. With Others it counts those of all routes beyond MaxSummaryRows.
type DecisionCount struct {
	Route, Decision, By string
	Records             uint64
	Others              bool
}

// KeyActivity counts what was done under one provisioning key.
type KeyActivity struct {
	Key            string
	Decisions      []DecisionCount // by route, decision, by
	SignIns        uint64          // users who proved who they are to one of its nodes, and were given a session
	SignInsRefused uint64          // and were given none
	Subjects       []string        // distinct, sorted: the first MaxSummarySubjects
	MoreSubjects   bool
}

// SeqRange holds the records From ≤ seq < To of a run, and the earliest and latest of their times.
type SeqRange struct {
	From, To    uint64
	First, Last time.Time
}

// TrailGap is what a node itself states: requests that it served without a record.
type TrailGap struct {
	Seq uint64
	Span
}

// RunCoverage is what there is of one run.
type RunCoverage struct {
	Node         string
	Run          Run
	Ranges       []SeqRange // ascending, disjoint; beyond MaxSummaryRanges the rest is left out, and so is missing
	Checkpoint   []byte     // the newest signed note
	PreviousRun  string     // that the run's first record names
	PreviousSize uint64
	InSpan       uint64 // records that were counted
	Gaps         []TrailGap
	MoreGaps     bool
	StoodDown    []StandDown
	Forked       bool
}

// Summary is what a Summarizer has counted, and over what.
type Summary struct {
	Keys []KeyActivity // as asked
	Runs []RunCoverage // by node and run
}

// Summarizer counts what trails say of provisioning keys. Frames of one run must be added in their order; runs may be interleaved. What
// it returns does not depend on the order of the runs. It proves nothing: that is a Verifier's.
type Summarizer struct {
	Keys     []string
	From, To time.Time // From ≤ time < To; zero: open
	// Counts says which records are counted; nil: all. Coverage is always of all.
	Counts func(node string, run Run, seq uint64) bool

	keys  []*keyTally
	byKey map[string]*keyTally
	runs  map[runKey]*runTally
}

type runTally struct {
	RunCoverage
	next  uint64 // seq of the next record
	noted uint64 // size of the newest checkpoint
}

// Add takes one frame of a node's trail.
func (s *Summarizer) Add(node string, f Frame) {
	t := s.run(node, f.Run)
	switch {
	case f.Kind == CheckpointFrame && f.Seq >= t.noted:
		t.Checkpoint, t.noted = bytes.Clone(f.Body), f.Seq
	case f.Kind == RecordFrame && f.Seq >= t.next:
		s.record(t, f)
	}
}

// Damaged notes that there are bytes that are no frame: the records that were there are missing, which is what the ranges say.
func (s *Summarizer) Damaged(node string, run Run, _ string) { s.run(node, run) }

func (s *Summarizer) begin() {
	if s.runs != nil {
		return
	}
	s.runs, s.byKey = map[runKey]*runTally{}, map[string]*keyTally{}
	for _, key := range s.Keys {
		k := &keyTally{KeyActivity: KeyActivity{Key: key}}
		s.keys, s.byKey[key] = append(s.keys, k), k
	}
}

func (s *Summarizer) run(node string, run Run) *runTally {
	s.begin()
	k := runKey{node, run}
	if s.runs[k] == nil {
		s.runs[k] = &runTally{RunCoverage: RunCoverage{Node: node, Run: run}}
	}
	return s.runs[k]
}

func (s *Summarizer) record(t *runTally, f Frame) {
	kind, at, decoded := head(f.Body)
	if !t.extend(f.Seq, at) {
		return
	}
	if f.Seq == 0 && kind == KindRun {
		if r, err := Decode(f.Body); err == nil {
			t.previous(r.Detail)
		}
	}
	if kind == KindRevocation {
		if r, err := Decode(f.Body); err == nil {
			t.standDown(f.Seq, &r)
		}
	}
	if !decoded || (!s.To.IsZero() && !at.Before(s.To)) {
		return
	}
	if kind == KindGap {
		if r, err := Decode(f.Body); err == nil && r.Gap != nil && !r.Gap.To.Before(s.From) {
			t.gap(f.Seq, *r.Gap)
		}
	}
	if at.Before(s.From) || (s.Counts != nil && !s.Counts(t.Node, f.Run, f.Seq)) {
		return
	}
	t.InSpan++
	if kind != KindDecision && kind != KindSignIn {
		return
	}
	if !s.concerns(f.Body) {
		return
	}
	r, err := Decode(f.Body)
	if err != nil {
		return
	}
	serving, minting := s.byKey[r.Actor.ProvisioningKey], s.byKey[r.Actor.MintingProvisioningKey]
	if serving != nil {
		serving.count(&r)
	}
	if minting != nil && minting != serving {
		minting.count(&r)
	}
}

// keyField is how the name of either field of a record ends that names a provisioning key, with what lies between it and its value. Within
// a string it cannot stand: there the quotes would be escaped.
var keyField = []byte(`provisioning_key":"`)

// concerns reports whether a record may name one of the keys. To look costs far less than to decode.
func (s *Summarizer) concerns(body []byte) bool {
	for {
		at := bytes.Index(body, keyField)
		if at < 0 {
			return false
		}
		body = body[at+len(keyField):]
		if key, _, ok := bytes.Cut(body[:min(len(body), 128)], []byte(`"`)); !ok || s.byKey[string(key)] != nil || bytes.IndexByte(key, '\\') >= 0 {
			return true
		}
	}
}

// extend notes that the record is there, and reports whether it can be told where.
func (t *runTally) extend(seq uint64, at time.Time) bool {
	if n := len(t.Ranges); n > 0 && t.Ranges[n-1].To == seq {
		r := &t.Ranges[n-1]
		r.To++
		if at.Before(r.First) {
			r.First = at
		}
		if at.After(r.Last) {
			r.Last = at
		}
	} else if n < MaxSummaryRanges {
		t.Ranges = append(t.Ranges, SeqRange{From: seq, To: seq + 1, First: at, Last: at})
	} else {
		return false
	}
	t.next = seq + 1
	return true
}

func (t *runTally) previous(detail map[string]string) {
	if _, err := ParseRun(detail["previous_run"]); err != nil {
		return
	}
	if size, err := strconv.ParseUint(detail["previous_size"], 10, 63); err == nil {
		t.PreviousRun, t.PreviousSize = detail["previous_run"], size
	}
}

func (t *runTally) standDown(seq uint64, r *Record) {
	if putOut, ok := r.standDown(); ok {
		if t.StoodDown = append(t.StoodDown, StandDown{seq, r.Time, putOut}); len(t.StoodDown) > MaxStandDowns {
			t.StoodDown = t.StoodDown[1:]
		}
	}
}

func (t *runTally) gap(seq uint64, span Span) {
	if len(t.Gaps) == MaxSummaryGaps {
		t.MoreGaps = true
		return
	}
	t.Gaps = append(t.Gaps, TrailGap{seq, span})
}

// head reads kind and time, which AppendJSON writes first, without decoding the rest; a record that is written otherwise is decoded.
func head(body []byte) (Kind, time.Time, bool) {
	if rest, ok := bytes.CutPrefix(body, []byte(`{"kind":"`)); ok {
		kind, rest, ok := bytes.Cut(rest, []byte(`","time":"`))
		if stamp, _, closed := bytes.Cut(rest[:min(len(rest), 40)], []byte(`"`)); ok && closed && len(kind) <= 16 && bytes.IndexByte(kind, '\\') < 0 {
			if at, err := time.Parse(time.RFC3339Nano, string(stamp)); err == nil {
				return Kind(kind), at, true
			}
		}
	}
	r, err := Decode(body)
	return r.Kind, r.Time, err == nil
}

// keyTally counts under one key.
type keyTally struct {
	KeyActivity
	others uint64
}

func (k *keyTally) count(r *Record) {
	serving, minting := r.Actor.ProvisioningKey == k.Key, r.Actor.MintingProvisioningKey == k.Key
	switch r.Kind {
	case KindSignIn:
		// A user who is handed on from the sign-in host to a route's has one session, and proved who they are once.
		if r.Decision == Deny {
			k.SignInsRefused++
		} else if r.Detail["by"] == "provider" {
			k.SignIns++
		}
	default:
		by := ByServing
		if minting {
			by = ByMinting
			if serving {
				by = ByBoth
			}
		}
		k.decision(DecisionCount{Route: r.Route, Decision: r.Decision, By: by, Records: 1})
	}
	if r.Actor.Subject != "" {
		k.subject(r.Actor.Subject)
	}
}

// CompareCounts orders rows by route, decision and by.
func CompareCounts(a, b DecisionCount) int {
	return cmp.Or(cmp.Compare(a.Route, b.Route), cmp.Compare(a.Decision, b.Decision), cmp.Compare(a.By, b.By))
}

// decision adds to a row. Of too many rows the first in order stay, so that the outcome does not depend on which came first.
func (k *keyTally) decision(d DecisionCount) {
	at, found := slices.BinarySearchFunc(k.Decisions, d, CompareCounts)
	switch {
	case d.Others || at == MaxSummaryRows:
		k.others += d.Records
	case found:
		k.Decisions[at].Records += d.Records
	default:
		k.Decisions = slices.Insert(k.Decisions, at, d)
		if last := len(k.Decisions) - 1; last == MaxSummaryRows {
			k.others += k.Decisions[last].Records
			k.Decisions = k.Decisions[:last]
		}
	}
}

// activity is what was counted so far.
func (k *keyTally) activity() KeyActivity {
	out := k.KeyActivity
	out.Decisions, out.Subjects = slices.Clone(k.Decisions), slices.Clone(k.Subjects)
	if k.others > 0 {
		out.Decisions = append(out.Decisions, DecisionCount{Records: k.others, Others: true})
	}
	return out
}

func (k *keyTally) subject(s string) {
	at, found := slices.BinarySearch(k.Subjects, s)
	if found {
		return
	}
	if k.Subjects = slices.Insert(k.Subjects, at, s); len(k.Subjects) > MaxSummarySubjects {
		k.Subjects, k.MoreSubjects = k.Subjects[:MaxSummarySubjects], true
	}
}

// Summary returns what was counted so far.
func (s *Summarizer) Summary() Summary {
	s.begin()
	var out Summary
	for _, k := range s.keys {
		out.Keys = append(out.Keys, k.activity())
	}
	for _, t := range s.runs {
		out.Runs = append(out.Runs, t.RunCoverage)
	}
	slices.SortFunc(out.Runs, func(a, b RunCoverage) int { return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Run, b.Run)) })
	return out
}
