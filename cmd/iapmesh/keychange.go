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
	var grace, ttl, patience time.Duration
	var out, public string
	byRotator, wait := false, waitNot
	cmd := &cobra.Command{
		Use: "rotate KEY", Short: "Give a key a successor, and retire it after a grace",
		Long: `Give a key a successor with the same scope. Both serve until the grace ends; nodes of the old one bind to it by themselves.
The successor is made here, and printed once or written to --key-out; or elsewhere, and enrolled by its --public-key; or, with
--by-rotator, by the node that the key's schedule names, which puts it where its node.yaml says.

Where a key takes a second administrator (control_key_approval), its successor does, too: the old key stays as it is until then.`,
		Example: `  iapmesh key rotate us-east-proxies --grace 1h --key-out us-east-2.key
  iapmesh key rotate us-east-proxies --by-rotator --wait`,
		Args: exactArgs("KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if byRotator {
				for _, other := range []string{"grace", "ttl", "key-out", "public-key"} {
					if cmd.Flags().Changed(other) {
						return usagef("--%s does not go with --by-rotator: the key's schedule says", other)
					}
				}
				return c.rotateByRotator(cmd.Context(), args[0], wait != waitNot, patience)
			}
			req := &iapmeshv1.RotateKeyRequest{Key: args[0], Grace: durationpb.New(grace)}
			if ttl != 0 {
				req.Ttl = durationpb.New(ttl)
			}
			if cmd.Flags().Changed("public-key") {
				return c.rotateToPublicKey(cmd, req, public, wait)
			}
			return c.rotateKey(cmd.Context(), req, out, wait)
		},
	}
	cmd.Flags().DurationVar(&grace, "grace", time.Hour, "how long the old key goes on to admit nodes")
	cmd.Flags().DurationVar(&ttl, "ttl", 0, "how long nodes may join with the successor (default: as long as with the old key)")
	cmd.Flags().StringVar(&public, "public-key", "", "the successor's public half, `HEX|@FILE`, of a key that iapmesh key generate made; @- for standard input")
	cmd.Flags().StringVar(&out, "key-out", "", "write the successor to this new `FILE`, mode 0600, instead of printing it")
	cmd.Flags().BoolVar(&byRotator, "by-rotator", false, "let the node that the key's schedule names make the successor, now")
	cmd.Flags().DurationVar(&patience, "wait-timeout", 5*time.Minute, "with --by-rotator and --wait: give up after this time")
	wait.flag(cmd, "then wait until every live node knows both; with --by-rotator, until the successor is active")
	return cmd
}

// rotateToPublicKey gives a key a successor that was made elsewhere.
func (c *cli) rotateToPublicKey(cmd *cobra.Command, req *iapmeshv1.RotateKeyRequest, public string, wait waitFor) error {
	if cmd.Flags().Changed("key-out") {
		return usagef("--key-out goes not with --public-key: the key stays where it was made")
	}
	var err error
	if req.SuccessorPublicKey, err = c.readPublicKey(public); err != nil {
		return err
	}
	resp, err := unary(cmd.Context(), c, iapmeshv1.NewKeyServiceClient, iapmeshv1.KeyServiceClient.RotateKey, req)
	if err != nil {
		return unknownKey(err)
	}
	if resp.Receipt, err = c.awaitReceipt(cmd.Context(), resp.Receipt, wait); err != nil {
		return err
	}
	return c.print(resp, func(t *table) { rotatedLines(t, resp) })
}

func rotatedLines(t *table, resp *iapmeshv1.RotateKeyResponse) {
	if awaitsApproval(resp.Successor) {
		t.line("%s stays as it is until its successor is approved", resp.Predecessor.Id)
	} else {
		t.line("%s", retiringLine(resp.Predecessor))
	}
	t.line("successor %s", keyLine(resp.Successor))
	if resp.Successor.Rotator != "" {
		t.line("note: the key has a schedule, and where node %s keeps its secret is still the old one, until the next rotation; --by-rotator makes one that goes there",
			resp.Successor.Rotator)
	}
	receiptLines(t, resp.Receipt)
}

func (c *cli) rotateKey(ctx context.Context, req *iapmeshv1.RotateKeyRequest, out string, wait waitFor) error {
	secret, file, err := c.newKey(out)
	if err != nil {
		return err
	}
	req.SuccessorPublicKey = secret.PublicKey()
	resp, err := unary(ctx, c, iapmeshv1.NewKeyServiceClient, iapmeshv1.KeyServiceClient.RotateKey, req)
	if err != nil {
		return unknownKey(c.keyRefused(ctx, file, secret, err))
	}
	err = c.handOver(secret, file, resp, func(t *table) { rotatedLines(t, resp) })
	if err == nil { // not before the key is in safe hands: a wait may be interrupted
		_, err = c.awaitReceipt(ctx, resp.Receipt, wait)
	}
	return err
}

func newKeyRevokeCommand(c *cli) *cobra.Command {
	req := &iapmeshv1.RevokeKeyRequest{}
	cascade, wait := "", waitNot
	var hand keyInHand
	cmd := &cobra.Command{
		Use: "revoke KEY | revoke --with-key-file FILE", Short: "Revoke a key, for good, and by its cascade the nodes under it",
		Long: `Revoke a key, for good. --cascade says what becomes of the nodes that joined under it:
  keep        they stay; only no more join
  quarantine  they are cut off until each is released: iapmesh nodes release; of those that have departed, the sessions end
  kill        they are revoked, and every session that they signed with them
--dry-run shows what that would end: nodes, signing keys, live sessions, routes without a proxy; it changes nothing. Exit status 1 if
the mesh would refuse it, as where quorum would be lost.

Whoever holds a key, and is no administrator, may revoke it too, with cascade keep only: for a key that was found where it should
not be. --with-key-file proves it; no profile is needed where --address names a node of the mesh.`,
		Example: `  iapmesh key revoke us-east-proxies --cascade kill --dry-run
  iapmesh key revoke us-east-proxies --cascade quarantine --reason "key found in a public repository" --wait
  iapmesh key revoke --with-key-file found.key --address 10.0.0.1:7443 --reason "found in a build log"`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case hand.file != "":
				return holderOnly(cmd, args)
			case len(hand.addresses) > 0:
				return usagef("--address goes with --with-key-file; an administrator's profile says where the mesh is")
			}
			return exactArgs("KEY")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if hand.file != "" {
				return c.revokeByHolder(cmd.Context(), hand, req.Reason)
			}
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
	f.StringVar(&hand.file, "with-key-file", "", "revoke the key in this `FILE`, mode 0600, by proof of holding it; - for standard input")
	f.StringSliceVar(&hand.addresses, "address", nil, "with --with-key-file: `HOST:PORT` of nodes of its mesh (default: the profile's control nodes)")
	f.BoolVar(&req.DryRun, "dry-run", false, "show what it would end, and change nothing")
	wait.flag(cmd, "wait until every live node has it")
	return cmd
}

func (c *cli) revokeKey(ctx context.Context, req *iapmeshv1.RevokeKeyRequest, wait waitFor) error {
	resp, err := unary(ctx, c, iapmeshv1.NewKeyServiceClient, iapmeshv1.KeyServiceClient.RevokeKey, req)
	if err != nil {
		return unknownKey(err)
	}
	if resp.Receipt, err = c.awaitReceipt(ctx, resp.Receipt, wait); err != nil {
		return err
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
