package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func newNodesCommand(c *cli) *cobra.Command {
	cmd := group("nodes", "Enrolled nodes: what they are, and what you may do to one",
		newNodesListCommand(c), newNodesShowCommand(c), newNodesQuarantineCommand(c), newNodesReleaseCommand(c), newNodesRemoveCommand(c), newNodesRebindCommand(c))
	cmd.Long = `Enrolled nodes. PARENT is the provisioning key that a node joined under, for good; BOUND the one that it is bound to now: the
parent, or a successor of it. A node is cut off for good by "iapmesh revoke node".`
	return cmd
}

func newNodesListCommand(c *cli) *cobra.Command {
	all := false
	cmd := &cobra.Command{
		Use: "list", Short: "List the nodes by region, those that are gone with --all",
		Example: "  iapmesh nodes list\n  iapmesh nodes list -o json | jq -r '.nodes[] | select(.node.state == \"NODE_STATE_QUARANTINED\") | .node.name'",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewNodeServiceClient, iapmeshv1.NodeServiceClient.ListNodes, &iapmeshv1.ListNodesRequest{})
			if err != nil {
				return err
			}
			now := time.Now()
			return c.print(resp, func(t *table) {
				t.head("REGION", "NAME", "ID", "ROLES", "STATE", "SINCE", "PARENT", "BOUND", "LAST SEEN", "CERTIFICATE", "REASON")
				for _, s := range resp.Nodes {
					if n := s.Node; all || !gone(n) {
						t.row(n.Region, n.Name, n.Id, rolesText(n.Roles), nodeStateCell(n.State, s.Live), stampText(n.StateSince, now), n.ProvisioningKey, boundText(n), stampText(s.ReportedAt, now), stampText(n.CertificateExpiresAt, now), n.Reason)
					}
				}
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "nodes that have departed or were revoked, too (-o json always has them)")
	return cmd
}

func gone(n *iapmeshv1.Node) bool {
	return n.State == iapmeshv1.NodeState_NODE_STATE_DEPARTED || n.State == iapmeshv1.NodeState_NODE_STATE_REVOKED
}

// boundText is the key that a node is bound to, with the one that an operator lets it bind to.
func boundText(n *iapmeshv1.Node) string {
	switch {
	case n.RebindTo != "":
		return n.BoundKey + " (may bind to " + n.RebindTo + ")"
	case n.BoundKey == n.ProvisioningKey:
		return "its parent"
	}
	return n.BoundKey
}

// nodeStateCell is a node's state; one that is active and silent is not at its best.
func nodeStateCell(s iapmeshv1.NodeState, live bool) cell {
	out := cell{text: enumText(s, "NODE_STATE_"), style: dim}
	switch s {
	case iapmeshv1.NodeState_NODE_STATE_ACTIVE:
		if out.style = green; !live {
			out.style = yellow
		}
	case iapmeshv1.NodeState_NODE_STATE_LAPSED:
		out.style = yellow
	case iapmeshv1.NodeState_NODE_STATE_QUARANTINED, iapmeshv1.NodeState_NODE_STATE_REVOKED:
		out.style = red
	}
	return out
}

func newNodesShowCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "show NODE", Short: "Show one node, by id or name, and the keys behind it", Example: "  iapmesh nodes show px-1",
		Args: exactArgs("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewNodeServiceClient, iapmeshv1.NodeServiceClient.GetNode, &iapmeshv1.GetNodeRequest{Node: args[0]})
			if err != nil {
				return nodeHint(err, args[0])
			}
			return c.print(resp, func(t *table) { nodeTable(t, resp) })
		},
	}
}

// nodeHint says where to look at what a node is; a key that is not there is named by the error itself.
func nodeHint(err error, node string) error {
	switch {
	case fault.Is(err, fault.NotFound):
		return hint(err, "iapmesh nodes list --all and iapmesh key list show what there is.")
	case fault.Is(err, fault.Conflict):
		return hint(err, "iapmesh nodes show %s says what it is now.", node)
	}
	return err
}

func nodeTable(t *table, resp *iapmeshv1.GetNodeResponse) {
	n, now := resp.Node.Node, time.Now()
	t.row("id", n.Id)
	t.row("name", n.Name)
	t.row("region", n.Region)
	t.row("roles", rolesText(n.Roles))
	if n.RouteSelector != "" {
		t.row("routes", n.RouteSelector)
	}
	t.row("state", nodeStateCell(resp.Node.Node.State, resp.Node.Live))
	t.row("since", stampText(n.StateSince, now))
	if n.Reason != "" {
		t.row("reason", n.Reason)
	}
	t.row("parent", keyText(resp.Parent, n.ProvisioningKey))
	t.row("bound to", keyText(resp.Bound, n.BoundKey))
	if n.RebindTo != "" {
		t.row("may bind to", n.RebindTo)
	}
	t.row("enrolled", stampText(n.EnrolledAt, now))
	t.row("last seen", stampText(resp.Node.ReportedAt, now))
	t.row("certificate", stampText(n.CertificateExpiresAt, now))
	t.row("version", resp.Node.Report.GetVersion())
	for _, a := range [][2]string{{"mesh address", n.Addresses.GetMesh()}, {"gossip address", n.Addresses.GetGossip()}, {"proxy address", n.Addresses.GetProxy()}} {
		if a[1] != "" {
			t.row(a[0], a[1])
		}
	}
}

func keyText(k *iapmeshv1.ProvisioningKey, id string) string {
	if k == nil {
		return id
	}
	return id + " (" + k.Name + ", " + enumText(k.State, "KEY_STATE_") + ")"
}

func nodeRows(t *table, nodes []*iapmeshv1.Node) {
	t.head("NODE", "NAME", "REGION", "ROLES", "STATE", "ENROLLED", "PARENT", "BOUND")
	now := time.Now()
	for _, n := range nodes {
		t.row(n.Id, n.Name, n.Region, rolesText(n.Roles), enumText(n.State, "NODE_STATE_"), stampText(n.EnrolledAt, now), n.ProvisioningKey, boundText(n))
	}
}
