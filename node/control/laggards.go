package control

import (
	"time"

	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// maxRoutes bounds the routes that a laggard names, of each kind.
const maxRoutes = 20

// Receipt says which nodes serve at or a later revision, and which lag: with the latest moment at which routes stop there by themselves.
func (c *Controller) Receipt(at revision.Revision, v *state.View) *iapmeshv1.Receipt {
	return c.receiptAt(at, v, c.knownCommitted(at, v))
}

// knownCommitted is a moment by which the revision was committed and in the leader's own view.
func (c *Controller) knownCommitted(at revision.Revision, v *state.View) time.Time {
	if v.Revision.Before(at) {
		return c.Now() // not even here: no answer of this leader's has vouched for a state with it
	}
	return c.commits.know(at, c.Now(), "")
}

func (c *Controller) receiptAt(at revision.Revision, v *state.View, committed time.Time) *iapmeshv1.Receipt {
	out := c.Reports.Receipt(at, v)
	out.Id = c.ReceiptID(at)
	now := c.Now()
	_, since := c.Leading()
	for _, a := range out.Acknowledged {
		if heard, ok := c.nodeFact(v.Keyring.Nodes[a.NodeId]).ReachedBy(at); ok {
			a.At = state.Stamp(heard)
		}
	}
	for _, l := range out.Lagging {
		report, _ := c.Reports.Get(l.NodeId)
		if now.Sub(since) < keyring.LiveWithin && report.At.Before(since) {
			out.Complete = false // for its first 15 s a leader cannot tell a silent node from one that has not reached it yet
		}
		n := v.Keyring.Nodes[l.NodeId]
		asOf := viewAsOf(n, committed, report.At, since)
		l.AsOf = state.Stamp(asOf)
		lagsBehind(l, n, v, asOf)
	}
	out.Everywhere = out.Complete && len(out.Lagging) == 0
	return out
}

// viewAsOf bounds from above the moment as of which a node's view is known to hold everything, which is what the node's own age counts
// from, for a node that has not said that it serves by a change.
//
// Every answer that makes a view fresh names a revision, and counts only once the view has reached it (state.Freshness). From the
// moment that the leader's view held the change, each answer names a revision with it. So a view without the change is fresh as
// of the commit at most, whoever feeds it: the leader, a control node of its region, or one elsewhere that is less cut off than the
// leader can see. It may hold the change already, unheard; then it refuses what the change refuses, and the bound does no harm.
//
// A control node is freshened by the leader's answers to its reports and by nothing else: by none after the last one that was heard.
// Reports to an earlier leader are not known here, so that all before this one's term count as if heard until then. A follower may
// be fed by any control node, so that for it the commit is the only bound. Clocks do not enter but by their rate: both sides count
// from the same question, which was asked before it was heard.
func viewAsOf(n *keyring.Node, committed, heard, leadingSince time.Time) time.Time {
	if n == nil || !n.HasRole(keyring.RoleControl) {
		return committed
	}
	if heard.Before(leadingSince) {
		heard = leadingSince
	}
	if heard.Before(committed) {
		return heard
	}
	return committed
}

// lagsBehind names the routes that the node decides for: which stop when its view is too old, by when the last of them does, and which go
// on by the old view. A node that has not been heard to serve by the newest manifest may go by routes that are not known here.
func lagsBehind(l *iapmeshv1.Laggard, n *keyring.Node, v *state.View, asOf time.Time) {
	if n == nil || !n.HasRole(keyring.RoleProxy) {
		return
	}
	if state.RevisionOf(l.Revision).Before(v.ManifestRevision) {
		l.OlderConfiguration = true
		return
	}
	var longest time.Duration
	for _, route := range v.Config.Routes {
		if !v.Selects(n, route) {
			continue
		}
		names := &l.RoutesThatGoOn
		if limit := time.Duration(route.MaxStaleness); limit > 0 && route.DenyStale() {
			names, longest = &l.RoutesThatStop, max(longest, limit)
		}
		if len(*names) == maxRoutes {
			l.RoutesLeftOut++
			continue
		}
		*names = append(*names, route.Name)
	}
	if longest > 0 {
		l.StopsBy = state.Stamp(asOf.Add(longest))
	}
}
