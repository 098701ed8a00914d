package control

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Reports holds what each node last said of itself over its authenticated stream. They are the acknowledgements of rotations
// and revocations. They live in the leader's memory: a new leader hears them again within a second.
type Reports struct {
	now     func() time.Time
	mu      sync.Mutex
	reports map[string]Report // by node id; guarded by mu
	changed chan struct{}     // closed and replaced at each report; guarded by mu
}

// Report is one node's last.
type Report struct {
	*iapmeshv1.NodeReport
	At      time.Time
	reached []keyring.Reach // the latest revisions that it was heard to serve by, oldest first; never changed, only replaced or added to
}

// maxReached bounds how many of them are remembered.
const maxReached = 64

// NewReports makes an empty table.
func NewReports(now func() time.Time) *Reports {
	return &Reports{now: now, reports: map[string]Report{}, changed: make(chan struct{})}
}

// Set stores a node's report, which it may shorten.
func (r *Reports) Set(node string, report *iapmeshv1.NodeReport) {
	clipMinted(report)
	clipRotations(report)
	r.mu.Lock()
	defer r.mu.Unlock()
	old, had := r.reports[node]
	now := r.now()
	r.reports[node] = Report{report, now, reach(old.reached, keyring.Reach{Revision: state.RevisionOf(report.GetRevision()), At: now})}
	if !had || state.RevisionOf(old.GetRevision()) != state.RevisionOf(report.GetRevision()) || r.now().Sub(old.At) > keyring.LiveWithin {
		close(r.changed)
		r.changed = make(chan struct{})
	}
}

// reach adds what was heard. A node whose view went back reaches what is later anew.
func reach(have []keyring.Reach, heard keyring.Reach) []keyring.Reach {
	if n := len(have); n > 0 && !have[n-1].Revision.Before(heard.Revision) {
		if have[n-1].Revision == heard.Revision {
			return have
		}
		return []keyring.Reach{heard}
	}
	if len(have) >= 2*maxReached {
		have = slices.Clone(have[len(have)-maxReached:])
	}
	return append(have, heard)
}

// Get returns a node's last report.
func (r *Reports) Get(node string) (Report, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	report, ok := r.reports[node]
	return report, ok
}

// Live reports whether the node reported within keyring.LiveWithin.
func (r *Reports) Live(node string) bool {
	report, ok := r.Get(node)
	return ok && r.now().Sub(report.At) <= keyring.LiveWithin
}

// Changed returns a channel that closes when a node next reports another revision.
func (r *Reports) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// Receipt says which nodes serve at or a later revision, and which lag. Nodes that may not serve (departed, quarantined, revoked)
// are not asked; it is complete once every live node has it.
func (r *Reports) Receipt(at revision.Revision, v *state.View) *iapmeshv1.Receipt {
	out := &iapmeshv1.Receipt{Revision: state.RevisionProto(at), Complete: true}
	for _, n := range sortedNodes(v) {
		if !n.Trusted() {
			continue
		}
		report, ok := r.Get(n.ID)
		served := state.RevisionOf(report.GetRevision())
		if ok && !served.Before(at) {
			out.Acknowledged = append(out.Acknowledged, &iapmeshv1.Acknowledgement{NodeId: n.ID, Name: n.Name, Region: n.Region})
			continue
		}
		live := r.Live(n.ID)
		out.Lagging = append(out.Lagging, &iapmeshv1.Laggard{
			NodeId: n.ID, Name: n.Name, Region: n.Region, Revision: state.RevisionProto(served), Since: state.Stamp(report.At), Live: live,
		})
		if live {
			out.Complete = false
		}
	}
	if len(out.Acknowledged) == 0 {
		out.Complete = false // a leader that has heard nobody yet, itself included, knows nothing
	}
	return out
}

// Acknowledged reports whether every live proxy serves at or a later revision: then it can verify what was announced there.
func (r *Reports) Acknowledged(at revision.Revision, v *state.View) bool {
	heard := false
	for _, n := range v.Keyring.Nodes {
		if !n.Trusted() || !r.Live(n.ID) {
			continue
		}
		heard = true
		report, _ := r.Get(n.ID)
		if state.RevisionOf(report.GetRevision()).Before(at) {
			return false
		}
	}
	return heard
}

func sortedNodes(v *state.View) []*keyring.Node {
	return slices.SortedFunc(maps.Values(v.Keyring.Nodes), func(a, b *keyring.Node) int {
		return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
}
