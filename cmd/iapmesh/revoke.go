package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func newRevokeCommand(c *cli) *cobra.Command {
	cmd := group("revoke", "Refuse a session, a user, a node or a signing key from now on",
		newRevokeTargetCommand(c, revokeTarget{
			use: "session SESSION", short: "End one session", target: iapmeshv1.RevokeTarget_REVOKE_TARGET_SESSION,
			example: "  iapmesh revoke session 4f1c… --reason \"lost laptop\" --wait",
		}),
		newRevokeTargetCommand(c, revokeTarget{
			use: "user IDP/SUBJECT", short: "End all sessions of a user; with --block, new sign-ins too", target: iapmeshv1.RevokeTarget_REVOKE_TARGET_USER,
			example: "  iapmesh revoke user okta/00u1x2 --block --reason \"left the company\" --wait", check: checkSubject, block: true,
		}),
		newRevokeTargetCommand(c, revokeTarget{
			use: "node NODE", short: "Cut a node off, for good, with every session that it signed", target: iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE,
			example: "  iapmesh revoke node px-1 --dry-run\n  iapmesh revoke node px-1 --reason stolen",
		}),
		newRevokeTargetCommand(c, revokeTarget{
			use: "signing-key KID", short: "Refuse whatever a signing key has signed", target: iapmeshv1.RevokeTarget_REVOKE_TARGET_SIGNING_KEY,
			example: "  iapmesh revoke signing-key s-abcdefghijklmnop --reason leaked",
		}),
	)
	cmd.Long = `Refuse a session, a user, a node or a signing key in every region, open streams and tunnels included. The receipt says which nodes
refuse it now and which lag; --wait shows it arrive, and iapmesh receipt show tells later when it was in effect everywhere.`
	return cmd
}

// revokeTarget is what one of revoke's commands refuses.
type revokeTarget struct {
	use, short, example string
	target              iapmeshv1.RevokeTarget
	check               func(string) error
	block               bool
}

func newRevokeTargetCommand(c *cli, target revokeTarget) *cobra.Command {
	req := &iapmeshv1.RevokeRequest{Target: target.target}
	wait, dryRun := waitNot, false
	_, argument, _ := strings.Cut(target.use, " ")
	cmd := &cobra.Command{
		Use: target.use, Short: target.short, Example: target.example, Args: exactArgs(argument),
		RunE: func(cmd *cobra.Command, args []string) error {
			if target.check != nil {
				if err := target.check(args[0]); err != nil {
					return err
				}
			}
			req.Value = args[0]
			if dryRun {
				return c.previewNode(cmd.Context(), req.Value)
			}
			return c.revoke(cmd.Context(), req, wait)
		},
	}
	if target.block {
		cmd.Flags().BoolVar(&req.Block, "block", false, "refuse new sign-ins, too, until the revocation is lifted")
	}
	if target.target == iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE {
		cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what it would end, and change nothing; exit status 1 if it would be refused")
	}
	cmd.Flags().StringVar(&req.Reason, "reason", "", "`TEXT` for the record")
	wait.flag(cmd, "wait until every live node refuses it")
	return cmd
}

// checkSubject refuses an e-mail: it is what a user is called, and may be called by another tomorrow.
func checkSubject(value string) error {
	if strings.Contains(value, "/") {
		return nil
	}
	if strings.Contains(value, "@") {
		return usageError{hint(fmt.Errorf("%q is an e-mail address; a user is refused by subject, IDP/SUBJECT, which stays when addresses change hands", value),
			"Find it with: iapmesh audit query --user %s --kind sign_in --limit 1 -o json | jq -r .record.actor.subject", value)}
	}
	return usagef("%q: want IDP/SUBJECT, such as okta/00u1x2", value)
}

func (c *cli) revoke(ctx context.Context, req *iapmeshv1.RevokeRequest, wait waitFor) error {
	resp, err := unary(ctx, c, iapmeshv1.NewRevocationServiceClient, iapmeshv1.RevocationServiceClient.Revoke, req)
	if err != nil {
		return err
	}
	if resp.Receipt, err = c.awaitReceipt(ctx, resp.Receipt, wait); err != nil {
		return err
	}
	return c.print(resp, func(t *table) {
		t.line("revoked %s %s", strings.ReplaceAll(enumText(req.Target, "REVOKE_TARGET_"), "-", " "), resp.Resolved)
		receiptLines(t, resp.Receipt)
	})
}
