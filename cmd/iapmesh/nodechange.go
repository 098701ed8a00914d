package main

import (
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// nodeAnswer is what every act on a node answers with.
type nodeAnswer interface {
	proto.Message
	GetNode() *iapmeshv1.Node
	GetReceipt() *iapmeshv1.Receipt
}

// nodeAct is one of the commands that do something to a node.
type nodeAct struct {
	use, short, long, example string
	required                  []string // flags
	reasonFor                 string
	// do makes the call; it returns the answer and where its receipt lies.
	do func(cmd *cobra.Command, node, reason string) (nodeAnswer, **iapmeshv1.Receipt, error)
	// done says what became of the node.
	done func(t *table, n *iapmeshv1.Node)
}

func newNodeActCommand(c *cli, act nodeAct) *cobra.Command {
	reason, wait := "", waitNot
	cmd := &cobra.Command{
		Use: act.use, Short: act.short, Long: act.long, Example: act.example, Args: exactArgs("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := required(cmd, act.required...); err != nil {
				return err
			}
			answer, receipt, err := act.do(cmd, args[0], reason)
			if err != nil {
				return nodeHint(err, args[0])
			}
			if *receipt, err = c.awaitReceipt(cmd.Context(), *receipt, wait); err != nil {
				return err
			}
			return c.print(answer, func(t *table) {
				act.done(t, answer.GetNode())
				receiptLines(t, answer.GetReceipt())
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`TEXT` for the record"+act.reasonFor)
	wait.flag(cmd, "wait until every live node knows it")
	return cmd
}

func newNodesQuarantineCommand(c *cli) *cobra.Command {
	return newNodeActCommand(c, nodeAct{
		use: "quarantine NODE", short: "Cut a node off until it is released",
		long: `Cut a node off until it is released: no other node answers it, it can open no secret that is written from now on, and the sessions
that it signed count no more. Its process goes on, and waits.`,
		example:  "  iapmesh nodes quarantine px-1 --reason \"odd traffic since Monday\" --wait",
		required: []string{"reason"}, reasonFor: ", which the node's record keeps (required)",
		do: func(cmd *cobra.Command, node, reason string) (nodeAnswer, **iapmeshv1.Receipt, error) {
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewNodeServiceClient, iapmeshv1.NodeServiceClient.QuarantineNode, &iapmeshv1.QuarantineNodeRequest{Node: node, Reason: reason})
			if err != nil {
				return nil, nil, err
			}
			return resp, &resp.Receipt, nil
		},
		done: func(t *table, n *iapmeshv1.Node) {
			t.line("node %s (%s) is quarantined; it comes back by: iapmesh nodes release %s", n.Name, n.Id, n.Name)
		},
	})
}

func newNodesReleaseCommand(c *cli) *cobra.Command {
	return newNodeActCommand(c, nodeAct{
		use: "release NODE", short: "Let a quarantined node come back",
		long: `Let a quarantined node come back. It does so by itself, without a restart, and signs by a new session key. It stays bound to its
provisioning key: where that one was revoked, "iapmesh nodes rebind" names it another.`,
		example: "  iapmesh nodes release px-1 --reason \"disk examined\"",
		do: func(cmd *cobra.Command, node, reason string) (nodeAnswer, **iapmeshv1.Receipt, error) {
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewNodeServiceClient, iapmeshv1.NodeServiceClient.ReleaseNode, &iapmeshv1.ReleaseNodeRequest{Node: node, Reason: reason})
			if err != nil {
				return nil, nil, err
			}
			return resp, &resp.Receipt, nil
		},
		done: func(t *table, n *iapmeshv1.Node) { t.line("node %s (%s) is released", n.Name, n.Id) },
	})
}

func newNodesRemoveCommand(c *cli) *cobra.Command {
	return newNodeActCommand(c, nodeAct{
		use: "remove NODE", short: "Say that a node is gone: its place is free, what it signed stays good",
		long: `Say that a node is gone, without waiting seven days: it departs, for good, and its place under its key's --max-active is free. The
sessions that it signed count until they expire; if it may be in wrong hands, revoke it instead. If it still runs, it ends. Of a node that
has departed without a word (silent, never confirmed), this says that it is no more, so that lineage awaits none.
A quarantined node cannot be removed: it is released or revoked. A node that you can log in to leaves by itself: iapmesh leave.`,
		example: "  iapmesh nodes remove px-1 --reason \"the machine is no more\"",
		do: func(cmd *cobra.Command, node, reason string) (nodeAnswer, **iapmeshv1.Receipt, error) {
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewNodeServiceClient, iapmeshv1.NodeServiceClient.RemoveNode, &iapmeshv1.RemoveNodeRequest{Node: node, Reason: reason})
			if err != nil {
				return nil, nil, err
			}
			return resp, &resp.Receipt, nil
		},
		done: func(t *table, n *iapmeshv1.Node) { t.line("node %s (%s) has departed", n.Name, n.Id) },
	})
}

func newNodesRebindCommand(c *cli) *cobra.Command {
	key := ""
	cmd := newNodeActCommand(c, nodeAct{
		use: "rebind NODE", short: "Let one node bind to another provisioning key",
		long: `Let one node bind to another provisioning key. When a key is rotated, its nodes bind to the successor by themselves. Under a key that was
revoked they do not: you look at each node, and say so. The node then proves that it still holds its own key. The key that you name
must be active and cover the node: its roles, its region, the same routes, and a place under --max-active.`,
		example:  "  iapmesh nodes rebind px-1 --to us-east-2 --reason \"examined, clean\" --wait",
		required: []string{"to", "reason"}, reasonFor: " (required)",
		do: func(cmd *cobra.Command, node, reason string) (nodeAnswer, **iapmeshv1.Receipt, error) {
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewNodeServiceClient, iapmeshv1.NodeServiceClient.AllowRebind, &iapmeshv1.AllowRebindRequest{Node: node, Key: key, Reason: reason})
			if err != nil {
				return nil, nil, err
			}
			return resp, &resp.Receipt, nil
		},
		done: func(t *table, n *iapmeshv1.Node) {
			t.line("node %s (%s) may bind to key %s, and does once it has proved its own", n.Name, n.Id, n.RebindTo)
		},
	})
	cmd.Flags().StringVar(&key, "to", "", "`KEY` that it may bind to, by id or name (required)")
	return cmd
}
