package keyring

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// QuorumFacts are what the leader knows of those who commit.
type QuorumFacts struct {
	Nodes          map[string]*Node
	Voters         []string             // the engine's voting members by node id; none: the engine is external, and every active control node counts as one
	Leader         string               // who asks, by node id: it is live
	Heard          map[string]time.Time // by node id: when it last reported; absent: never, to this leader
	ListeningSince time.Time            // when this leader began to take reports
	Now            time.Time
}

// QuorumAfter refuses to take the nodes in removing out of a mesh if the voters that remain could no longer commit: if those of them that are
// active and live are fewer than a majority of all voters as they are now. That much it takes to commit the removal, and no less to commit
// that the engine's members are fewer then, as those who are removed are spoken to no more. With an external engine one must remain.
// What takes no voter away is never refused, nor, while a majority is live, is taking away who is silent.
//
// For its first 15 s a leader cannot tell a silent voter from one that has not reached it yet: where that makes the difference it is
// Unavailable, else Denied.
func QuorumAfter(f QuorumFacts, removing []string) error {
	voters, need := f.voters()
	remaining, taken, unheard := 0, 0, 0
	var silent []string
	for _, id := range voters {
		n := f.Nodes[id]
		switch {
		case slices.Contains(removing, id):
			taken++
		case n == nil || n.State != NodeActive && n.State != NodeLapsed:
		case n.State == NodeActive && f.live(id):
			remaining++
		case n.State == NodeActive && !f.canTell() && f.Heard[id].Before(f.ListeningSince):
			unheard++
			silent = append(silent, f.silence(n))
		default:
			silent = append(silent, f.silence(n))
		}
	}
	if taken == 0 || remaining >= need {
		return nil
	}
	slices.Sort(silent)
	if remaining+unheard >= need {
		return fault.New(fault.Unavailable, "whether the mesh can do without %d of %d control nodes is not known yet: node %s leads since %s, and %s; try again",
			taken, len(voters), f.Leader, stamp(f.ListeningSince), strings.Join(silent, ", "))
	}
	what := "add control nodes first"
	if len(silent) > 0 {
		what = strings.Join(silent, ", ") + ": start it again, or take it out if it is gone (iapmesh control remove), and add control nodes first"
	}
	return fault.New(fault.Denied, "this would take %d of %d control nodes and leave %d live, where %d are needed to commit anything; %s",
		taken, len(voters), remaining, need, what)
}

// voters are those who commit, and how many of them it takes.
func (f QuorumFacts) voters() (ids []string, need int) {
	if len(f.Voters) > 0 {
		return f.Voters, len(f.Voters)/2 + 1
	}
	for id, n := range f.Nodes {
		if n.HasRole(RoleControl) && n.State == NodeActive {
			ids = append(ids, id)
		}
	}
	return ids, 1
}

func (f QuorumFacts) live(id string) bool {
	at := f.Heard[id]
	return id == f.Leader || !at.IsZero() && f.Now.Sub(at) <= LiveWithin
}

func (f QuorumFacts) canTell() bool { return f.Now.Sub(f.ListeningSince) >= LiveWithin }

// silence says of a voter that does not count for how long it has been silent.
func (f QuorumFacts) silence(n *Node) string {
	at := f.Heard[n.ID]
	switch {
	case n.State == NodeLapsed:
		return fmt.Sprintf("%s (%s) has lapsed at %s", n.Name, n.ID, stamp(n.StateSince))
	case at.IsZero():
		return fmt.Sprintf("%s (%s) was not heard since %s", n.Name, n.ID, stamp(f.ListeningSince))
	}
	return fmt.Sprintf("%s (%s) is silent since %s", n.Name, n.ID, stamp(at))
}
