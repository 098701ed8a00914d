package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// handOver prints what became of a new key: the record where -o asks for it, else the secret alone on stdout and the rest beside it.
func (c *cli) handOver(secret keyring.ProvisioningSecret, file *secretFile, m proto.Message, about func(*table)) error {
	if c.output != "table" {
		return c.print(m, nil)
	}
	t := &table{paint: painter(terminal(c.stderr))}
	about(t)
	if file != nil {
		t.line("the key is in %s", file.f.Name())
	}
	if err := t.flush(c.stderr); err != nil {
		return err
	}
	if file != nil {
		return nil
	}
	if _, err := fmt.Fprintln(c.stdout, secret.String()); err != nil {
		return hint(err, "The key is lost with that. Revoke it (iapmesh key revoke %s) and issue another.", secret.ID())
	}
	_, err := fmt.Fprintln(c.stderr, "It is not shown again. Keep it in a secret manager, or a file of mode 0600.")
	return err
}

func newKeyRotateCommand(c *cli) *cobra.Command {
	var grace, ttl time.Duration
	var out string
	cmd := &cobra.Command{
		Use: "rotate KEY", Short: "Give a key a successor, and retire it after a grace",
		Long: `Give a key a successor with the same scope. Both serve until the grace ends; nodes of the old one stay bound to it.
The successor is made here, and printed once or written to --key-out.`,
		Example: "  iapmesh key rotate us-east-proxies --grace 1h --key-out us-east-2.key",
		Args:    exactArgs("KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &iapmeshv1.RotateKeyRequest{Key: args[0], Grace: durationpb.New(grace)}
			if ttl != 0 {
				req.Ttl = durationpb.New(ttl)
			}
			return c.rotateKey(cmd.Context(), req, out)
		},
	}
	cmd.Flags().DurationVar(&grace, "grace", time.Hour, "how long the old key goes on to admit nodes")
	cmd.Flags().DurationVar(&ttl, "ttl", 0, "how long nodes may join with the successor (default: as long as with the old key)")
	cmd.Flags().StringVar(&out, "key-out", "", "write the successor to this new `FILE`, mode 0600, instead of printing it")
	return cmd
}

func (c *cli) rotateKey(ctx context.Context, req *iapmeshv1.RotateKeyRequest, out string) error {
	secret, file, err := c.newKey(out)
	if err != nil {
		return err
	}
	req.SuccessorPublicKey = secret.PublicKey()
	resp, err := unary(ctx, c, iapmeshv1.NewKeyServiceClient, iapmeshv1.KeyServiceClient.RotateKey, req)
	if err != nil {
		return c.keyRefused(file, secret, err)
	}
	return c.handOver(secret, file, resp, func(t *table) {
		t.line("%s is retiring; it admits nodes until %s", resp.Predecessor.Id, resp.Predecessor.GraceUntil.AsTime().Format(time.RFC3339))
		t.line("successor %s", keyLine(resp.Successor))
	})
}

func newKeyRevokeCommand(c *cli) *cobra.Command {
	req := &iapmeshv1.RevokeKeyRequest{}
	cascade, wait := "", false
	cmd := &cobra.Command{
		Use: "revoke KEY", Short: "Revoke a key, for good, and by its cascade the nodes under it",
		Long: `Revoke a key, for good. --cascade says what becomes of the nodes that joined under it:
  keep        they stay; only no more join
  quarantine  they are cut off; to release them comes with a later release
  kill        they are revoked, and every session that they signed with them
--dry-run shows what that would end: nodes, signing keys, live sessions, routes without a proxy; it changes nothing. Exit status 1 if
the mesh would refuse it, as where quorum would be lost.`,
		Example: `  iapmesh key revoke us-east-proxies --cascade kill --dry-run
  iapmesh key revoke us-east-proxies --cascade quarantine --reason "key found in a public repository" --wait`,
		Args: exactArgs("KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if err = required(cmd, "cascade"); err != nil {
				return err
			}
			if req.Cascade, err = parseCascade(cascade); err != nil {
				return err
			}
			req.Key = args[0]
			return c.revokeKey(cmd.Context(), req, wait)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cascade, "cascade", "", "`WHAT` becomes of its nodes: keep, quarantine or kill (required)")
	f.StringVar(&req.Reason, "reason", "", "`TEXT` for the record")
	f.BoolVar(&req.DryRun, "dry-run", false, "show what it would end, and change nothing")
	f.BoolVar(&wait, "wait", false, "wait until every live node has it")
	return cmd
}

func (c *cli) revokeKey(ctx context.Context, req *iapmeshv1.RevokeKeyRequest, wait bool) error {
	resp, err := unary(ctx, c, iapmeshv1.NewKeyServiceClient, iapmeshv1.KeyServiceClient.RevokeKey, req)
	if err != nil {
		return err
	}
	if wait && resp.Receipt != nil {
		if resp.Receipt, err = c.followReceipt(ctx, resp.Receipt.Revision); err != nil {
			return err
		}
	}
	err = c.print(resp, func(t *table) {
		verb := "revoked"
		if req.DryRun {
			verb = "dry run, nothing changed: would revoke"
		}
		t.line("%s key %s (%s), cascade %s: %d nodes change", verb, resp.Key.Id, resp.Key.Name, enumText(req.Cascade, "CASCADE_"), len(resp.Affected))
		blastLines(t, resp.Lineage, resp.Blast, req.DryRun)
		receiptLines(t, resp.Receipt)
	})
	return refusedFirst(err, resp.Blast)
}
