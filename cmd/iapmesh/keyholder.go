package main

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/cluster/enroll"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// keyInHand is how a key is revoked by whoever holds it.
type keyInHand struct {
	file      string
	addresses []string
}

// holderOnly refuses what an administrator alone may ask for.
func holderOnly(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("unexpected argument %q: the file says which key", args[0])
	}
	if cascade, _ := cmd.Flags().GetString("cascade"); cascade != "" && cascade != "keep" {
		return usagef("--cascade %.40q: whoever holds a key revokes it with cascade keep only; what joined by it is an administrator's to judge", cascade)
	}
	for _, name := range []string{"dry-run", "wait"} {
		if cmd.Flags().Changed(name) {
			return usagef("--%s takes a profile, and goes not with --with-key-file", name)
		}
	}
	return nil
}

// revokeByHolder asks the mesh to refuse the key in a file from now on.
func (c *cli) revokeByHolder(ctx context.Context, k keyInHand, reason string) error {
	secret, err := c.readKey(k.file)
	if err != nil {
		return err
	}
	if len(k.addresses) == 0 {
		p, err := c.load()
		if err != nil {
			return hint(err, "Without a profile, name a node of the mesh: --address HOST:PORT.")
		}
		if !pinned(p, secret.Pin()) {
			return hint(fault.New(fault.Invalid, "key %s is of another mesh than the profile's %s", secret.ID(), p.Mesh), "Name a node of its mesh: --address HOST:PORT.")
		}
		k.addresses = p.ControlNodes
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	waiting := c.await("the mesh")
	resp, err := enroll.Revoke(ctx, enroll.Revocation{Addresses: k.addresses, Secret: secret, Reason: reason, Logger: slog.New(slog.DiscardHandler)})
	waiting.stop()
	switch fault.KindOf(err) {
	case fault.Unavailable:
		return hint(err, "The key may still admit nodes. Asked: %s; any node of the mesh will do, by --address.", strings.Join(k.addresses, ", "))
	case fault.Unauthenticated:
		return hint(err, "Either the addresses lead to another mesh than the key's, or something between here and there terminates TLS, or the mesh does not know the key.")
	}
	if err != nil {
		return err
	}
	return c.print(resp, func(t *table) {
		if resp.Already {
			t.line("key %s was revoked already, at %s", resp.KeyId, resp.RevokedAt.AsTime().Format(time.RFC3339))
			return
		}
		t.line("revoked key %s, cascade keep, at revision %s: nobody joins by it any more", resp.KeyId, revisionText(resp.Revision))
		t.line("Nodes that have joined by it stay: let an administrator look, by: iapmesh key show %s", resp.KeyId)
	})
}

// revokedBy says who revoked a key: an administrator, or whoever held it.
func revokedBy(k *iapmeshv1.ProvisioningKey) string {
	switch {
	case k.RevokedBy == "":
		return ""
	case k.RevokedBy == "key/"+k.Id:
		return " by whoever held it"
	}
	return " by " + k.RevokedBy
}
