package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func newGossipCommand(c *cli) *cobra.Command {
	return group("gossip", "The key that gossip is encrypted by", newGossipStatusCommand(c), newGossipRotateCommand(c))
}

func newGossipStatusCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show how old the gossip key is, and how far a change of it is",
		Long: `Show how old the gossip key is, and how far a change of it is: steady, there is one key; install, nodes learn to decrypt by the new one;
use, they encrypt by it, and still decrypt by the old one. Each step waits until every live node has the one before.`,
		Example: "  iapmesh gossip status",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := c.gossipRing(cmd.Context())
			if err != nil {
				return err
			}
			now := time.Now()
			return c.print(resp, func(t *table) {
				t.row("phase", ringPhaseCell(resp.Ring))
				t.row("since", stampText(resp.Ring.GetSince(), now))
				t.row("newest key", stampText(resp.Ring.GetBegunAt(), now))
				t.row("acknowledged", acknowledgedText(resp.Receipt))
				t.row("lagging", strings.Join(laggards(resp.Receipt), ","))
				t.row("next rotation", stampText(resp.NextRotation, now))
			})
		},
	}
}

func (c *cli) gossipRing(ctx context.Context) (*iapmeshv1.GetGossipRingResponse, error) {
	return unary(ctx, c, iapmeshv1.NewCustodyServiceClient, iapmeshv1.CustodyServiceClient.GetGossipRing, &iapmeshv1.GetGossipRingRequest{})
}

func ringPhaseCell(r *iapmeshv1.GossipRing) cell {
	out := cell{text: enumText(r.GetPhase(), "GOSSIP_RING_PHASE_"), style: yellow}
	if r.GetPhase() == iapmeshv1.GossipRingPhase_GOSSIP_RING_PHASE_STEADY {
		out.style = green
	}
	return out
}

func newGossipRotateCommand(c *cli) *cobra.Command {
	wait := false
	var patience time.Duration
	cmd := &cobra.Command{
		Use: "rotate", Short: "Replace the gossip key, step by step",
		Long: `Replace the gossip key: nodes learn to decrypt by the new one, then encrypt by it, then forget the old one. Each step waits until every
live node has the one before, so that nobody is taken for dead meanwhile. It also happens by schedule, and whenever a node goes.`,
		Example: "  iapmesh gossip rotate --wait",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewCustodyServiceClient, iapmeshv1.CustodyServiceClient.RotateGossipKey, &iapmeshv1.RotateGossipKeyRequest{})
			if fault.Is(err, fault.Conflict) {
				return hint(err, "iapmesh gossip status shows how far it is, and who lags.")
			}
			if err != nil {
				return err
			}
			if wait {
				if resp.Ring, resp.Receipt, err = c.awaitRing(cmd.Context(), patience); err != nil {
					return err
				}
			}
			return c.print(resp, func(t *table) {
				if wait {
					t.line("the gossip key is replaced")
					return
				}
				t.line("the gossip key is being replaced: phase %s", ringPhaseCell(resp.Ring).text)
				t.line("iapmesh gossip status shows how far it is")
			})
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until every live node has forgotten the old key, and show each step")
	cmd.Flags().DurationVar(&patience, "wait-timeout", 5*time.Minute, "with --wait: give up after this time")
	return cmd
}

func (c *cli) awaitRing(ctx context.Context, patience time.Duration) (ring *iapmeshv1.GossipRing, receipt *iapmeshv1.Receipt, err error) {
	err = c.poll(ctx, patience, func(ctx context.Context) (string, bool, error) {
		resp, err := c.gossipRing(ctx)
		if err != nil {
			return "", false, err
		}
		ring, receipt = resp.Ring, resp.Receipt
		line := fmt.Sprintf("%s, acknowledged by %s", ringPhaseCell(ring).text, acknowledgedText(receipt))
		if lag := laggards(receipt); len(lag) > 0 {
			line += ", lagging: " + strings.Join(lag, ", ")
		}
		return line, ring.GetPhase() == iapmeshv1.GossipRingPhase_GOSSIP_RING_PHASE_STEADY && receipt.GetComplete(), nil
	})
	if errors.Is(err, errPatience) {
		err = hint(fault.New(fault.Unavailable, "wait for the new gossip key: not within %v", patience),
			"The rotation goes on without you; iapmesh gossip status shows how far it is, and who lags.")
	}
	return ring, receipt, err
}
