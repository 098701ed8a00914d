package control

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// errLeads refuses to take nodes away of which this one leads. Another leader helps only where the mesh can do without them.
func (c *Controller) errLeads(t *tx, removing ...string) error {
	if err := c.keepsQuorum(t, removing...); fault.Is(err, fault.Denied) {
		return fmt.Errorf("node %s leads; %w", c.NodeID, err)
	}
	return fault.New(fault.Denied, "node %s leads: hand the lead to another first (iapmesh control transfer)", c.NodeID)
}

// transferPoll is how often the old leader looks whether another has been elected.
const transferPoll = 20 * time.Millisecond

// TransferLead hands the lead to another voter: the one that is named, or the live one that is least behind. It returns once another
// leads. Nothing happens where the node that is to give up the lead does not lead, or the named one does.
func (c *Controller) TransferLead(ctx context.Context, by string, req *iapmeshv1.TransferLeadRequest) (*iapmeshv1.TransferLeadResponse, error) {
	term, err := c.mustLead()
	if err != nil {
		return nil, err
	}
	if req.From != "" && req.From != c.NodeID {
		return &iapmeshv1.TransferLeadResponse{From: req.From, Leader: c.NodeID}, nil
	}
	if c.Voters == nil || c.Config.Leader == nil {
		return nil, fault.New(fault.Conflict, "transfer the lead: this engine has no voters among the nodes")
	}
	if !c.restores.TryLock() { // which would end in the middle; it would go on, but only when somebody repeats it
		return nil, fault.New(fault.Conflict, "transfer the lead: a restoration is being written, or the lead handed over, just now")
	}
	defer c.restores.Unlock()
	to, err := c.successor(ctx, req.To)
	if err != nil {
		return nil, err
	}
	if to.ID == c.NodeID {
		return &iapmeshv1.TransferLeadResponse{From: c.NodeID, Leader: c.NodeID}, nil
	}
	if err := c.Voters.TransferLeadershipTo(ctx, to.ID, to.Address); err != nil {
		return nil, err
	}
	leader, err := c.awaitAnother(ctx, store.Term(term))
	if err != nil {
		return nil, err
	}
	c.Logger.Info("lead handed over", "by", by, "to", to.ID, "leader", leader)
	c.record(ctx, audit.KindAdmin, by, map[string]string{"action": "control.transfer", "from": c.NodeID, "to": to.ID, "leader": leader})
	return &iapmeshv1.TransferLeadResponse{From: c.NodeID, Leader: leader}, nil
}

// successor is the voter that is to lead. A silent one would not be elected, and until that is known nobody leads.
func (c *Controller) successor(ctx context.Context, ref string) (Voter, error) {
	v, err := c.view()
	if err != nil {
		return Voter{}, err
	}
	servers, err := c.Voters.Servers(ctx)
	if err != nil {
		return Voter{}, err
	}
	servers = slices.DeleteFunc(servers, func(s Voter) bool { return !s.Voter })
	if ref != "" {
		return c.namedSuccessor(v, servers, ref)
	}
	var best *Voter
	least := uint64(0)
	for i, s := range servers {
		if n := v.Keyring.Nodes[s.ID]; s.ID == c.NodeID || n == nil || n.State != keyring.NodeActive || !c.Reports.Live(s.ID) {
			continue
		}
		report, _ := c.Reports.Get(s.ID)
		if behind := lag(v.Revision, state.RevisionOf(report.GetRevision())); best == nil || behind < least {
			best, least = &servers[i], behind
		}
	}
	if best == nil {
		return Voter{}, fault.New(fault.Conflict, "transfer the lead: no other control node votes and is live")
	}
	return *best, nil
}

func (c *Controller) namedSuccessor(v *state.View, voters []Voter, ref string) (Voter, error) {
	id, err := FindNode(v, ref)
	if err != nil {
		return Voter{}, err
	}
	i := slices.IndexFunc(voters, func(s Voter) bool { return s.ID == id })
	switch n := v.Keyring.Nodes[id]; {
	case id == c.NodeID:
		return Voter{ID: id}, nil
	case i < 0:
		return Voter{}, fault.New(fault.Conflict, "transfer the lead: node %s does not vote", id)
	case n.State != keyring.NodeActive:
		return Voter{}, fault.New(fault.Conflict, "transfer the lead: node %s is %s", id, n.State)
	case !c.Reports.Live(id):
		return Voter{}, fault.New(fault.Conflict, "transfer the lead: node %s is silent", id)
	}
	return voters[i], nil
}

// awaitAnother waits until the engine knows another leader than this node, which led in a term, or until this one leads in a later.
func (c *Controller) awaitAnother(ctx context.Context, led store.Term) (string, error) {
	ticker := time.NewTicker(transferPoll)
	defer ticker.Stop()
	for {
		if id, _ := c.Leader(); id != "" && id != c.NodeID {
			return id, nil
		}
		if term, _ := c.Leading(); term > led {
			return "", fault.New(fault.Unavailable, "the lead was given up, and came back to this node: the other was not elected")
		}
		select {
		case <-ctx.Done():
			return "", fault.New(fault.Unavailable, "the lead was given up, and nobody is known to lead yet: %w", context.Cause(ctx))
		case <-ticker.C:
		}
	}
}
