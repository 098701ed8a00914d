package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func newControlCommand(c *cli) *cobra.Command {
	cmd := group("control", "Control nodes as a group: who votes, who leads", newControlListCommand(c), newControlTransferCommand(c), newControlRemoveCommand(c))
	cmd.Long = `Control nodes keep the mesh's state: those that vote commit it, by majority, and the one that leads decides. The leader gives every
control node that stays a vote by itself; there is nothing to add here.`
	return cmd
}

func newControlListCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the control nodes: who leads, who votes, who lags",
		Long: `List the control nodes. PART is leader, voter or, until it has kept up for a while, follower. LAG is how many revisions a node is behind.
A voter that has not reported to the leader for 15 s is silent: the mesh does without it already. A leader that was elected just now has
heard from everybody within a second or two.
-o json gives what nodes list gives, of the control nodes alone.`,
		Example: "  iapmesh control list",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			status, err := c.status(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(controlNodes(status), func(t *table) { controlTable(t, status) })
		},
	}
}

// controlNodes are those that have the role and are not gone.
func controlNodes(s *iapmeshv1.Status) *iapmeshv1.ListNodesResponse {
	out := &iapmeshv1.ListNodesResponse{}
	for _, n := range s.Nodes {
		if isControlNode(n.Node) && !gone(n.Node) {
			out.Nodes = append(out.Nodes, n)
		}
	}
	return out
}

func isControlNode(n *iapmeshv1.Node) bool {
	for _, r := range n.Roles {
		if r == iapmeshv1.Role_ROLE_CONTROL {
			return true
		}
	}
	return false
}

func controlTable(t *table, s *iapmeshv1.Status) {
	nodes := controlNodes(s).Nodes
	voters, live := 0, 0
	for _, n := range nodes {
		if n.Voter {
			voters++
			if votes(n) {
				live++
			}
		}
	}
	silent, more := "", ""
	if live < voters {
		silent, more = fmt.Sprintf(", %d silent", voters-live), "more "
	}
	spare := max(live-voters/2-1, 0) // whom the majority of all who vote does not need
	t.line("%d of %d control nodes vote%s: the mesh goes on without %d %sof them", voters, len(nodes), silent, spare, more)
	t.line("")
	t.head("REGION", "NAME", "PART", "STATE", "REVISION", "LAG", "ADDRESS", "ID")
	for _, n := range nodes {
		part := cell{text: "follower", style: dim}
		switch {
		case n.Leader:
			part = cell{text: "leader", style: green}
		case n.Voter:
			part = cell{text: "voter"}
		}
		lag := cell{text: fmt.Sprint(n.Lag)}
		if n.Report == nil {
			lag.text = ""
		} else if n.Lag > 0 {
			lag.style = yellow
		}
		t.row(n.Node.Region, n.Node.Name, part, standingCell(n, s.At.AsTime()), revisionText(n.Report.GetRevision()), lag, n.Node.GetAddresses().GetMesh(), n.Node.Id)
	}
}

// votes reports whether a voter can vote now, as far as its leader knows.
func votes(n *iapmeshv1.NodeStatus) bool {
	return n.Voter && n.Node.State == iapmeshv1.NodeState_NODE_STATE_ACTIVE && (n.Live || n.Leader)
}

func newControlTransferCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "transfer [NODE]", Short: "Hand the lead to another control node",
		Long: `Hand the lead to another control node that votes: to the one that you name, or to the live one that is least behind. It returns once
another leads; users notice nothing. Before you take the leader's machine down, or quarantine or revoke its node.`,
		Example: "  iapmesh control transfer\n  iapmesh control transfer ctl-us-1",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("want at most one NODE")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			to := ""
			if len(args) == 1 {
				to = args[0]
			}
			return c.transferLead(cmd.Context(), to)
		},
	}
}

func (c *cli) transferLead(ctx context.Context, to string) error {
	before, err := c.status(ctx)
	if err != nil {
		return err
	}
	req := &iapmeshv1.TransferLeadRequest{To: to, From: before.Leader}
	resp, err := unary(ctx, c, iapmeshv1.NewControlServiceClient, iapmeshv1.ControlServiceClient.TransferLead, req)
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Conflict) {
		return hint(err, "iapmesh control list shows who votes.")
	}
	if err != nil {
		return err
	}
	return c.print(resp, func(t *table) {
		name := func(id string) string {
			for _, n := range before.Nodes {
				if n.Node.Id == id {
					return n.Node.Name + " (" + n.Node.Region + ")"
				}
			}
			return id
		}
		if resp.Leader == resp.From {
			t.line("%s leads already", name(resp.Leader))
			return
		}
		t.line("%s leads, no longer %s", name(resp.Leader), name(resp.From))
	})
}

func newControlRemoveCommand(c *cli) *cobra.Command {
	return newNodeActCommand(c, nodeAct{
		use: "remove NODE", short: "Say that a control node is gone: it votes no more",
		long: `Say that a control node is gone, for good: it departs, and votes no more. The mesh refuses it where too few votes would be left, and for
the leader: hand the lead over first. It is "iapmesh nodes remove" for a control node, and refuses any other.`,
		example: "  iapmesh control remove ctl-us-1 --reason \"the machine is no more\"",
		do: func(cmd *cobra.Command, node, reason string) (nodeAnswer, **iapmeshv1.Receipt, error) {
			have, err := unary(cmd.Context(), c, iapmeshv1.NewNodeServiceClient, iapmeshv1.NodeServiceClient.GetNode, &iapmeshv1.GetNodeRequest{Node: node})
			if err != nil {
				return nil, nil, err
			}
			n := have.GetNode().GetNode()
			if !isControlNode(n) {
				return nil, nil, fault.New(fault.Invalid, "node %s (%s) is no control node: iapmesh nodes remove %s", n.Name, n.Id, n.Name)
			}
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewNodeServiceClient, iapmeshv1.NodeServiceClient.RemoveNode, &iapmeshv1.RemoveNodeRequest{Node: n.Id, Reason: reason})
			if err != nil {
				return nil, nil, err
			}
			return resp, &resp.Receipt, nil
		},
		done: func(t *table, n *iapmeshv1.Node) { t.line("node %s (%s) has departed", n.Name, n.Id) },
	})
}
