package keyring

import (
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// After how long a silent node changes state.
const (
	UnconfirmedAfter = 10 * time.Minute   // enrolled → departed, its use returned
	LapseAfter       = 24 * time.Hour     // active → lapsed
	DepartAfter      = 7 * 24 * time.Hour // lapsed → departed
)

// Why a node departs of which nobody has said that it was stopped.
const (
	ReasonSilent      = "silent" // for a week; also why it lapses before
	ReasonUnconfirmed = "never confirmed"
	ReasonLeftBehind  = "its log is of before the restoration: it joins anew"
)

// DepartedUnheard reports whether a node has departed without anybody's word that it was stopped: it may serve somewhere, by an old view.
func (n *Node) DepartedUnheard() bool {
	return n.State == NodeDeparted && (n.Reason == ReasonSilent || n.Reason == ReasonUnconfirmed || n.Reason == ReasonLeftBehind)
}

// Final says that no node leaves that state.
func (s NodeState) Final() bool { return s == NodeDeparted || s == NodeRevoked }

func (n Node) to(s NodeState, reason string, now time.Time) Node {
	n.State, n.Reason, n.StateSince = s, reason, now
	if s.Final() {
		n.RebindTo = "" // it binds to nothing any more
	}
	return n
}

// toFor is to, for a reason that somebody wrote.
func (n Node) toFor(s NodeState, reason string, now time.Time) (Node, error) {
	if err := validText("reason", reason, MaxReason); err != nil {
		return n, err
	}
	return n.to(s, reason, now), nil
}

func nodeConflict(n *Node, what string) error {
	return fault.New(fault.Conflict, "node %s: %s: it is %s since %s", n.ID, what, n.State, stamp(n.StateSince))
}

// ConfirmNode turns enrolled into active. An active node stays as it is, so that a lost reply does no harm.
func ConfirmNode(n Node, now time.Time) (Node, error) {
	switch n.State {
	case NodeActive:
		return n, nil
	case NodeEnrolled:
		return n.to(NodeActive, "", now), nil
	}
	return n, nodeConflict(&n, "confirm")
}

// RecoverNode turns lapsed into active once the node has proved its key again. An active one stays as it is.
func RecoverNode(n Node, now time.Time) (Node, error) {
	switch n.State {
	case NodeActive:
		return n, nil
	case NodeLapsed:
		return n.to(NodeActive, "", now), nil
	}
	return n, nodeConflict(&n, "recover")
}

// DepartNode makes a node depart: it leaves, or an operator says so. A quarantined one cannot leave, because what a departed node
// has signed still counts. Of one that departed without a word somebody may say later that it is no more.
func DepartNode(n Node, reason string, now time.Time) (Node, error) {
	switch {
	case n.DepartedUnheard() && reason != "":
		return n.toFor(NodeDeparted, reason, n.StateSince)
	case n.State == NodeDeparted:
		return n, nil
	case !n.Trusted():
		return n, nodeConflict(&n, "depart")
	}
	return n.toFor(NodeDeparted, reason, now)
}

// QuarantineNode cuts a node off until an operator releases it.
func QuarantineNode(n Node, reason string, now time.Time) (Node, error) {
	switch {
	case n.State == NodeQuarantined:
		return n, nil
	case !n.Trusted():
		return n, nodeConflict(&n, "quarantine")
	}
	return n.toFor(NodeQuarantined, reason, now)
}

// ReleaseNode turns quarantined into active, on an operator's word.
func ReleaseNode(n Node, now time.Time) (Node, error) {
	if n.State != NodeQuarantined {
		return n, nodeConflict(&n, "release")
	}
	return n.to(NodeActive, "", now), nil
}

// RevokeNode revokes a node, for good, from any state.
func RevokeNode(n Node, reason string, now time.Time) (Node, error) {
	if n.State == NodeRevoked {
		return n, nil
	}
	return n.toFor(NodeRevoked, reason, now)
}

// SweepNode does what silence does. silentSince is when the node was last heard or when the caller began to listen, whichever is
// later: else a mesh that was off for a week would dismiss all its nodes. returnUse asks for ReturnUse in the same commit.
func SweepNode(n Node, silentSince, now time.Time) (after Node, changed, returnUse bool) {
	silent := now.Sub(silentSince)
	switch {
	case n.State == NodeEnrolled && now.Sub(n.EnrolledAt) >= UnconfirmedAfter:
		return n.to(NodeDeparted, ReasonUnconfirmed, now), true, true
	case silentSince.IsZero():
		return n, false, false
	case n.State == NodeActive && silent >= LapseAfter:
		return n.to(NodeLapsed, ReasonSilent, now), true, false
	case n.State == NodeLapsed && silent >= DepartAfter && now.Sub(n.StateSince) >= DepartAfter-LapseAfter:
		// However the clock of a leader jumps, as it does when its machine has slept for a week, nobody departs who had no time to come back.
		return n.to(NodeDeparted, ReasonSilent, now), true, false
	}
	return n, false, false
}

// TokensCount reports whether sessions that the node minted still count: also those of one that has departed, until they expire.
func (n *Node) TokensCount() bool { return n.Trusted() || n.State == NodeDeparted }

func compareID(a, b string) int { return strings.Compare(a, b) }
