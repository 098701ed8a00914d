package control

import (
	"context"
	"maps"
	"slices"

	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
)

// MaxVoters bounds the voters: more would make each commit wait for more.
const MaxVoters = 7

// promoteVoters gives control nodes the engine's log as soon as they are active, and a vote once they have kept up for PromoteAfter:
// never from one voter to two when three are near, since two fail more easily than one. What was revoked or has left is removed.
// It looks at a view of its own.
func (c *Controller) promoteVoters(ctx context.Context, _ *state.View) error {
	if c.Voters == nil {
		return nil
	}
	// The engine may know a member that an old view does not: a new leader whose view lags would put it out.
	term, _ := c.Leading()
	if err := c.catchUp(ctx, term); err != nil {
		return err
	}
	v := c.Source.Load()
	servers, err := c.Voters.Servers(ctx)
	if err != nil {
		return err
	}
	have := map[string]Voter{}
	voting := 0
	for _, s := range servers {
		have[s.ID] = s
		if s.Voter {
			voting++
		}
		n := v.Keyring.Nodes[s.ID]
		if n == nil || !n.Trusted() {
			c.Logger.Info("control node removed", "node", s.ID)
			if err := c.Voters.RemoveServer(ctx, s.ID); err != nil {
				return err
			}
		}
	}
	var ready []*keyring.Node
	for _, n := range sortedNodes(v) {
		if n.State != keyring.NodeActive || !n.HasRole(keyring.RoleControl) || n.Addresses.Mesh == "" {
			delete(c.steady, n.ID)
			continue
		}
		s, known := have[n.ID]
		if !known {
			c.Logger.Info("control node follows", "node", n.ID, "address", n.Addresses.Mesh)
			if err := c.Voters.AddNonvoter(ctx, n.ID, n.Addresses.Mesh); err != nil {
				return err
			}
			continue
		}
		if s.Voter {
			continue
		}
		if c.keptUp(v, n.ID) {
			ready = append(ready, n)
		}
	}
	for _, n := range choose(voting, ready, votersByRegion(v, servers)) {
		c.Logger.Info("control node votes", "node", n.ID, "region", n.Region)
		if err := c.Voters.AddVoter(ctx, n.ID, n.Addresses.Mesh); err != nil {
			return err
		}
	}
	return nil
}

// keptUp reports whether a candidate has reported, without a silence, for PromoteAfter.
func (c *Controller) keptUp(v *state.View, id string) bool {
	if !c.Reports.Live(id) {
		delete(c.steady, id)
		return false
	}
	report, _ := c.Reports.Get(id)
	if lag(v.Revision, state.RevisionOf(report.GetRevision())) > 1000 {
		delete(c.steady, id)
		return false
	}
	since, ok := c.steady[id]
	if !ok {
		c.steady[id] = c.Now()
		return false
	}
	return c.Now().Sub(since) >= c.PromoteAfter
}

// choose picks who gets a vote now: so many that the voters stay odd, in the regions that have fewest first. An even number is
// accepted only where nobody else is near who could make it odd.
func choose(voting int, ready []*keyring.Node, regions map[string]int) []*keyring.Node {
	var chosen []*keyring.Node
	regions = maps.Clone(regions)
	pool := slices.Clone(ready)
	for len(pool) > 0 && voting+len(chosen) < MaxVoters {
		best := slices.MinFunc(pool, func(a, b *keyring.Node) int { return regions[a.Region] - regions[b.Region] })
		pool = slices.DeleteFunc(pool, func(n *keyring.Node) bool { return n == best })
		regions[best.Region]++
		chosen = append(chosen, best)
	}
	if (voting+len(chosen))%2 == 0 && len(chosen) > 0 {
		return chosen[:len(chosen)-1] // an odd number of voters bears as many losses as the even one above it
	}
	return chosen
}

func votersByRegion(v *state.View, servers []Voter) map[string]int {
	out := map[string]int{}
	for _, s := range servers {
		if n := v.Keyring.Nodes[s.ID]; n != nil && s.Voter {
			out[n.Region]++
		}
	}
	return out
}
