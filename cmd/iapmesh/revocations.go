package main

import (
	"time"

	"github.com/spf13/cobra"

	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func newRevocationsCommand(c *cli) *cobra.Command {
	return group("revocations", "What is refused now, and how to lift it", newRevocationsListCommand(c), newRevocationsLiftCommand(c))
}

func newRevocationsListCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the sessions and users that are refused, newest first", Example: "  iapmesh revocations list", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewRevocationServiceClient, iapmeshv1.RevocationServiceClient.ListRevocations, &iapmeshv1.ListRevocationsRequest{})
			if err != nil {
				return err
			}
			now := time.Now()
			return c.print(resp, func(t *table) {
				t.head("KIND", "VALUE", "BLOCK", "REVISION", "AT", "UNTIL", "BY", "REASON")
				for _, s := range resp.Revocations {
					r := s.Revocation
					block, until := "", stampText(r.ExpiresAt, now)
					if r.Block {
						block, until = "blocked", "lifted"
					}
					t.row(kindText(r.Kind), r.Value, block, revisionText(s.Revision), stampText(r.At, now), until, r.By, r.Reason)
				}
			})
		},
	}
}

// kindText is a revocation's kind as the command line writes it.
func kindText(k iapmeshv1.RevocationKind) string {
	if k == iapmeshv1.RevocationKind_REVOCATION_KIND_SUBJECT {
		return "user"
	}
	return enumText(k, "REVOCATION_KIND_")
}

func newRevocationsLiftCommand(c *cli) *cobra.Command {
	wait := waitNot
	cmd := &cobra.Command{
		Use: "lift KIND VALUE", Short: "Lift the revocation of a session or a user",
		Long: `Lift the revocation of a session or a user: sessions from before it count again unless they are over, and a blocked user may sign
in. Nodes, keys and signing keys are revoked for good.`,
		Example: "  iapmesh revocations lift user okta/00u1x2",
		Args:    exactArgs("KIND", "VALUE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &iapmeshv1.LiftRevocationRequest{Value: args[1]}
			switch args[0] {
			case "session":
				req.Kind = iapmeshv1.RevocationKind_REVOCATION_KIND_SESSION
			case "user", "subject":
				req.Kind = iapmeshv1.RevocationKind_REVOCATION_KIND_SUBJECT
			default:
				return usagef("kind %.40q: want session or user", args[0])
			}
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewRevocationServiceClient, iapmeshv1.RevocationServiceClient.LiftRevocation, req)
			if err != nil {
				return err
			}
			if resp.Receipt, err = c.awaitReceipt(cmd.Context(), resp.Receipt, wait); err != nil {
				return err
			}
			return c.print(resp, func(t *table) {
				t.line("lifted the revocation of %s %s", args[0], args[1])
				receiptLines(t, resp.Receipt)
			})
		},
	}
	wait.flag(cmd, "wait until every live node has lifted it")
	return cmd
}
