package audit

import (
	"cmp"
	"crypto/ed25519"
	"fmt"
	"slices"
	"time"
)

// FindingKind says what is wrong with a stretch of a trail.
type FindingKind string

// The kinds of findings.
const (
	FindingMissing  FindingKind = "missing"  // records are not there
	FindingChanged  FindingKind = "changed"  // the records are not those whose root was signed: one or more was changed, exchanged or moved
	FindingDamaged  FindingKind = "damaged"  // bytes that are no intact frame
	FindingUnsigned FindingKind = "unsigned" // a checkpoint that the node did not sign
	FindingFork     FindingKind = "fork"     // the node signed two different trees
	FindingUnproved FindingKind = "unproved" // no checkpoint covers the records (yet)
	FindingNoRun    FindingKind = "no_run"   // a whole run is not there, or not the one that the next run names
)

// Finding is one thing wrong: with the records From ≤ seq < To of a run, where it concerns records.
type Finding struct {
	Node string      `json:"node"`
	Run  string      `json:"run"`
	Kind FindingKind `json:"kind"`
	From uint64      `json:"from"`
	To   uint64      `json:"to"`
	Text string      `json:"text,omitempty"`
}

func (f Finding) String() string {
	return fmt.Sprintf("%s/%s %d-%d %s: %s", f.Node, f.Run, f.From, f.To, f.Kind, f.Text)
}

// Alarming reports whether the finding means that the trail is not what the node wrote. Records of the last second are unproved in any
// trail that is still growing, so that alone is no alarm.
func (f Finding) Alarming() bool { return f.Kind != FindingUnproved }

// RunReport says what is proved of a run.
type RunReport struct {
	Node          string    `json:"node"`
	Run           string    `json:"run"`
	Records       uint64    `json:"records"`       // that are there
	Proved        uint64    `json:"proved"`        // of these, covered by a verified checkpoint
	Size          uint64    `json:"size"`          // of the largest verified checkpoint
	Root          string    `json:"root"`          // its root, in hexadecimal
	At            time.Time `json:"at"`            // its time
	Checkpoints   uint64    `json:"checkpoints"`   // verified
	Countersigned uint64    `json:"countersigned"` // size of the largest checkpoint that the aggregator countersigned
	Gaps          uint64    `json:"gaps"`          // requests that the node itself states to have served without a record
	Findings      []Finding `json:"findings,omitempty"`
}

// Report is the result of a verification, by node and run.
type Report struct {
	Runs []RunReport `json:"runs"`
}

// Findings returns all findings, in the order of the runs.
func (r Report) Findings() []Finding {
	var all []Finding
	for _, run := range r.Runs {
		all = append(all, run.Findings...)
	}
	return all
}

// OK reports whether nothing alarming was found.
func (r Report) OK() bool { return !slices.ContainsFunc(r.Findings(), Finding.Alarming) }

// Verifier checks trails with public keys alone. Frames of one run must be added in their order; runs may be interleaved. It needs memory
// for the hashes of the records between two checkpoints.
type Verifier struct {
	// NodeKey returns the public key of a node. It is asked once for each run.
	NodeKey func(node string) (ed25519.PublicKey, error)
	// Aggregator and AggregatorKey: if set, countersignatures of this aggregator are verified too.
	Aggregator    string
	AggregatorKey ed25519.PublicKey

	runs map[runKey]*runState
}

type runKey struct {
	node string
	run  Run
}

// runState is what is known of a run so far.
type runState struct {
	report   RunReport
	key      ed25519.PublicKey
	tree     *Tree  // up to the last checkpoint or edge; nil after a checkpoint that did not match, until the next edge
	leaves   []Hash // after tree
	from     uint64 // where the stretch that the next checkpoint proves begins
	next     uint64 // seq of the next record
	previous map[string]string
	roots    map[uint64]Hash // of the newest verified checkpoint: what the next run names
}

// Add checks one frame of a node's trail.
func (v *Verifier) Add(node string, f Frame) {
	s := v.state(node, f.Run)
	switch f.Kind {
	case EdgeFrame:
		s.edge(f)
	case RecordFrame:
		s.record(f)
	case CheckpointFrame:
		v.checkpoint(s, f.Body)
	}
}

// Damaged notes that in the trail of a run, where the next frame was due, there are bytes that are none.
func (v *Verifier) Damaged(node string, run Run, text string) {
	s := v.state(node, run)
	s.find(FindingDamaged, s.next, s.next, text)
}

func (v *Verifier) state(node string, run Run) *runState {
	k := runKey{node, run}
	if s := v.runs[k]; s != nil {
		return s
	}
	s := &runState{report: RunReport{Node: node, Run: run.String()}, tree: NewTree(), roots: map[uint64]Hash{}}
	if v.runs == nil {
		v.runs = map[runKey]*runState{}
	}
	v.runs[k] = s
	key, err := v.NodeKey(node)
	if err != nil {
		s.find(FindingUnsigned, 0, 0, fmt.Sprintf("no public key of %s: %v", node, err))
	}
	s.key = key
	return s
}

func (s *runState) find(kind FindingKind, from, to uint64, text string) {
	s.report.Findings = append(s.report.Findings, Finding{Node: s.report.Node, Run: s.report.Run, Kind: kind, From: from, To: to, Text: text})
}

// edge goes on from a tree of which the records are not needed: after records that are missing, or that did not match.
func (s *runState) edge(f Frame) {
	tree, err := f.Tree()
	switch {
	case err != nil:
		s.find(FindingDamaged, f.Seq, f.Seq, err.Error())
		return
	case f.Seq < s.next:
		return // where the records of a later checkpoint are there already, it adds nothing
	case f.Seq > s.next:
		s.find(FindingMissing, s.next, f.Seq, "records are not in the trail")
	case s.tree != nil:
		// Our own tree goes on. If it has just been verified, the edge must be its own.
		if len(s.leaves) == 0 && s.from == f.Seq && s.tree.Root() != tree.Root() {
			s.find(FindingDamaged, f.Seq, f.Seq, "the edge is not the tree's")
		}
		return
	}
	s.unproved("before records that are missing")
	s.tree, s.leaves, s.from, s.next = tree, nil, f.Seq, f.Seq
}

// unproved gives up the records that no checkpoint has covered.
func (s *runState) unproved(text string) {
	if s.next > s.from {
		s.find(FindingUnproved, s.from, s.next, text)
	}
}

func (s *runState) record(f Frame) {
	switch {
	case f.Seq < s.next:
		s.find(FindingChanged, f.Seq, f.Seq+1, "the record is there twice")
		return
	case f.Seq > s.next:
		s.find(FindingMissing, s.next, f.Seq, "records are not in the trail")
		s.unproved("before records that are missing")
		s.tree, s.leaves, s.from, s.next = nil, nil, f.Seq, f.Seq
	}
	s.leaves = append(s.leaves, LeafHash(f.Body))
	s.next++
	s.report.Records++
	if rec, err := Decode(f.Body); err == nil {
		if rec.Kind == KindGap && rec.Gap != nil {
			s.report.Gaps += rec.Gap.Count
		}
		if f.Seq == 0 && rec.Kind == KindRun {
			s.previous = rec.Detail
		}
	}
}

func (v *Verifier) checkpoint(s *runState, signed []byte) {
	c, err := OpenCheckpoint(signed, s.report.Node, s.key)
	if err == nil && c.Run.String() != s.report.Run {
		err = fmt.Errorf("checkpoint is of run %s", c.Run)
	}
	if err != nil {
		s.find(FindingUnsigned, s.from, s.next, err.Error())
		return
	}
	if root, ok := s.roots[c.Size]; ok && root != c.Root {
		s.find(FindingFork, c.Size, c.Size, fmt.Sprintf("signed roots %x and %x", root[:8], c.Root[:8]))
		return
	}
	if c.Size > s.next {
		s.find(FindingMissing, s.next, c.Size, "a checkpoint was signed over records that are not in the trail")
		s.unproved("before records that are missing")
		s.tree, s.leaves, s.from, s.next = nil, nil, c.Size, c.Size
		return
	}
	if c.Size < s.from {
		return // older than what is proved: it adds nothing
	}
	n := c.Size - s.from
	if s.tree != nil {
		for _, leaf := range s.leaves[:n] {
			s.tree.Append(leaf)
		}
	}
	s.leaves = s.leaves[n:]
	if s.tree == nil || s.tree.Root() != c.Root {
		if s.tree != nil {
			s.find(FindingChanged, s.from, c.Size, fmt.Sprintf("the signed root at %d is not that of these records", c.Size))
		} else if n > 0 {
			s.find(FindingUnproved, s.from, c.Size, "after records that are missing or changed")
		}
		s.tree, s.from = nil, c.Size
		return
	}
	s.from = c.Size
	s.report.Proved += n
	s.report.Checkpoints++
	s.report.Size, s.report.Root, s.report.At = c.Size, fmt.Sprintf("%x", c.Root[:]), c.Time
	clear(s.roots)
	s.roots[c.Size] = c.Root
	if v.Aggregator != "" {
		if _, err := VerifyCountersignature(signed, v.Aggregator, v.AggregatorKey); err == nil {
			s.report.Countersigned = c.Size
		}
	}
}

// Report ends the verification: what no checkpoint covers is unproved, and each run must be the one that its successor names.
func (v *Verifier) Report() Report {
	var r Report
	for _, s := range v.runs {
		s.unproved("no checkpoint covers them")
		s.from = s.next
		v.linked(s)
		r.Runs = append(r.Runs, s.report)
	}
	slices.SortFunc(r.Runs, func(a, b RunReport) int { return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Run, b.Run)) })
	return r
}

// linked checks the run that the first record of s names.
func (v *Verifier) linked(s *runState) {
	name := s.previous["previous_run"]
	if name == "" {
		return
	}
	run, err := ParseRun(name)
	before := v.runs[runKey{s.report.Node, run}]
	switch size, root := s.previous["previous_size"], s.previous["previous_root"]; {
	case size == "0": // nothing of it had become durable
	case err != nil || before == nil:
		s.find(FindingNoRun, 0, 0, fmt.Sprintf("the run before it, %q with %s records, is not in the trail", name, size))
	case fmt.Sprint(before.report.Size) != size || before.report.Root != root:
		s.find(FindingNoRun, 0, 0, fmt.Sprintf("the run before it, %s, had %s records; %d of them are proved", name, size, before.report.Size))
	}
}
