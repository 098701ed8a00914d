package keyring

import (
	"slices"
	"time"

	"github.com/iapmesh/iapmesh/internal/revision"
)

// LiveWithin is how recently a node must have reported to count as live.
const LiveWithin = 15 * time.Second

// Ack is what a node last reported over its authenticated stream: the revision of the view by which it decides.
type Ack struct {
	Node       string
	Revision   revision.Revision
	ReportedAt time.Time // zero: never, to this leader
}

// PromoteFacts are what the leader knows of the nodes that must verify a key: one Ack for each trusted node.
type PromoteFacts struct {
	Now            time.Time
	ListeningSince time.Time // when this leader began to take reports
	Acks           []Ack
	JWKSMaxAge     time.Duration // for how long applications keep a key set; 0: JWKSMaxAge
}

// Readiness says whether an announced key may sign, and if not, what it waits for.
type Readiness struct {
	Ready     bool
	Waiting   []string  // live nodes whose view does not hold the key yet
	Lagging   []string  // nodes that are not live: listed, never blocking
	NotBefore time.Time // assertion keys: until applications have fetched the key set anew
}

// ReadyToPromote holds an announced key against what the nodes have reported. For its first 15 s a leader cannot tell a silent
// node from one that has not reached it yet, so that all count as live; and without any live node nothing is ready.
func ReadyToPromote(k SigningKey, f PromoteFacts) Readiness {
	r, acknowledged := acknowledgedBy(k.Revision, f)
	if k.Kind == SigningAssertion {
		maxAge := f.JWKSMaxAge
		if maxAge == 0 {
			maxAge = JWKSMaxAge
		}
		r.NotBefore = k.AnnouncedAt.Add(2 * maxAge)
	}
	r.Ready = k.State == SigningAnnounced && acknowledged && len(r.Waiting) == 0 && !f.Now.Before(r.NotBefore)
	return r
}

// acknowledgedBy says whom a record waits for that was written at a revision, and whether any live node has it at all.
func acknowledgedBy(at revision.Revision, f PromoteFacts) (r Readiness, acknowledged bool) {
	canTell := f.Now.Sub(f.ListeningSince) >= LiveWithin
	for _, a := range f.Acks {
		live := !a.ReportedAt.IsZero() && f.Now.Sub(a.ReportedAt) < LiveWithin
		switch holds := !a.Revision.Before(at); {
		case live && holds:
			acknowledged = !at.IsZero()
		case live || !canTell:
			r.Waiting = append(r.Waiting, a.Node)
		default:
			r.Lagging = append(r.Lagging, a.Node)
		}
	}
	slices.Sort(r.Waiting)
	slices.Sort(r.Lagging)
	return r, acknowledged
}
