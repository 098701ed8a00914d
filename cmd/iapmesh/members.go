package main

import (
	"github.com/spf13/cobra"

	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func newMembersCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "members", Short: "Show who is there, as gossip sees it",
		Long: `Show who is there, as the node that answers hears it by gossip. That is hearsay: it steers and warns, and decides about nobody's
access. What nodes report over authenticated streams is in "iapmesh status".`,
		Example: "  iapmesh members",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewClusterServiceClient, iapmeshv1.ClusterServiceClient.ListMembers, &iapmeshv1.ListMembersRequest{})
			if err != nil {
				return err
			}
			return c.print(resp, func(t *table) {
				t.head("REGION", "NAME", "STATE", "ADDRESS", "ROLES", "POOL", "VERSION", "ID")
				for _, m := range resp.Members {
					state := cell{text: m.State, style: green}
					if m.State != "alive" {
						state.style = yellow
					}
					t.row(m.Region, m.Name, state, m.Address, rolesText(m.Roles), m.Pool, m.Version, m.NodeId)
				}
			})
		},
	}
}
