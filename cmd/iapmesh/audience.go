package main

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func newAudienceCommand(c *cli) *cobra.Command {
	return group("audience", "Who can open which of the mesh's secrets", newAudienceListCommand(c), newAudienceRotateCommand(c))
}

func newAudienceListCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the audiences: their members, the names of their secrets, and how old their keys are",
		Long: `List the audiences. What several nodes must hold lies in the mesh's state encrypted under an audience's key, which is wrapped to each
member. Control nodes are members of all. A key is replaced when a member goes, by schedule, and by "iapmesh audience rotate".`,
		Example: "  iapmesh audience list",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewCustodyServiceClient, iapmeshv1.CustodyServiceClient.ListAudiences, &iapmeshv1.ListAudiencesRequest{})
			if err != nil {
				return err
			}
			names := c.nodeNames(cmd.Context())
			now := time.Now()
			return c.print(resp, func(t *table) {
				t.head("AUDIENCE", "VERSION", "ROTATED", "NEXT", "MEMBERS", "SECRETS")
				for _, a := range resp.Audiences {
					members := make([]string, 0, len(a.Members))
					for _, id := range a.Members {
						members = append(members, names(id))
					}
					t.row(a.Name, a.Version, stampText(a.RotatedAt, now), stampText(a.NextRotation, now), strings.Join(members, ","), strings.Join(a.Secrets, ","))
				}
			})
		},
	}
}

func newAudienceRotateCommand(c *cli) *cobra.Command {
	wait := waitNot
	cmd := &cobra.Command{
		Use: "rotate NAME", Short: "Give an audience a new key, and encrypt its secrets again",
		Long: `Give an audience a new key for the members that it has, and encrypt its secrets again. What the secrets hold stays as it is: a client
secret, a signing key or a gossip key is replaced by a command of its own.`,
		Example: "  iapmesh audience rotate proxies --wait",
		Args:    exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewCustodyServiceClient, iapmeshv1.CustodyServiceClient.RotateAudience, &iapmeshv1.RotateAudienceRequest{Name: args[0]})
			if fault.Is(err, fault.NotFound) {
				return hint(err, "iapmesh audience list shows which there are.")
			}
			if err != nil {
				return err
			}
			if resp.Receipt, err = c.awaitReceipt(cmd.Context(), resp.Receipt, wait); err != nil {
				return err
			}
			return c.print(resp, func(t *table) {
				t.line("audience %s: key version %d for %d members", resp.Audience.GetName(), resp.Audience.GetVersion(), len(resp.Audience.GetMembers()))
				receiptLines(t, resp.Receipt)
			})
		},
	}
	wait.flag(cmd, "wait until every live node has the new key")
	return cmd
}
