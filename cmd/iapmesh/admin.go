package main

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"time"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/profile"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func newAdminCommand(c *cli) *cobra.Command {
	return group("admin", "The mesh's administrators, and your own credential as one",
		newAdminIssueCommand(c), newAdminListCommand(c), newAdminRevokeCommand(c), newAdminRenewCommand(c), newAdminWhoAmICommand(c))
}

func newAdminRenewCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "renew", Short: "Renew the profile's certificate for 90 days",
		Long: `Renew the certificate of the profile for 90 days, for the key that it has; the mesh's roots and the addresses of its control nodes
are brought up to date, too. A certificate that has expired cannot renew itself.`,
		Example: "  iapmesh admin renew",
		Args:    exactArgs(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.renewAdmin(cmd.Context()) },
	}
}

func (c *cli) renewAdmin(ctx context.Context) error {
	p, err := c.load()
	if err != nil {
		return err
	}
	credential, err := p.Credential()
	if err != nil {
		return err
	}
	key, ok := credential.PrivateKey.(ed25519.PrivateKey)
	if !ok {
		return fault.New(fault.Invalid, "profile of %s: key: %T, want Ed25519", p.Name, credential.PrivateKey)
	}
	csr, err := keyring.NewCSR(key)
	if err != nil {
		return err
	}
	resp, err := unary(ctx, c, iapmeshv1.NewAdminServiceClient, iapmeshv1.AdminServiceClient.RenewAdmin, &iapmeshv1.RenewAdminRequest{Csr: csr})
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(resp.Certificate)
	if err != nil || !key.Public().(ed25519.PublicKey).Equal(leaf.PublicKey) {
		return fault.New(fault.Internal, "the certificate that came back is not for this profile's key")
	}
	renewed := *p
	renewed.Certificate = profile.CertificatePEM(resp.Certificate)
	if len(resp.Bundle) > 0 {
		renewed.Roots = profile.CertificatePEM(resp.Bundle...)
	}
	if status, err := c.status(ctx); err == nil { // else the old addresses have served until now
		if addresses := controlAddresses(status); len(addresses) > 0 {
			renewed.ControlNodes = addresses
		}
	}
	path, err := renewed.Save(c.profileRef)
	if err != nil {
		return hint(err, "The old certificate still serves; make room for the profile and repeat.")
	}
	return c.print(resp, func(t *table) {
		t.line("administrator %s: certificate renewed until %s, in %s", p.Name, leaf.NotAfter.UTC().Format(time.RFC3339), path)
	})
}

func controlAddresses(s *iapmeshv1.Status) []string {
	var out []string
	for _, n := range s.Nodes {
		if hasRole(n.Node, iapmeshv1.Role_ROLE_CONTROL) && n.Node.State == iapmeshv1.NodeState_NODE_STATE_ACTIVE && n.Node.Addresses.GetMesh() != "" {
			out = append(out, n.Node.Addresses.Mesh)
		}
	}
	return out
}

func newAdminWhoAmICommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Show as whom the mesh knows you", Example: "  iapmesh admin whoami", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewAdminServiceClient, iapmeshv1.AdminServiceClient.WhoAmI, &iapmeshv1.WhoAmIRequest{})
			if err != nil {
				return err
			}
			return c.print(resp, func(t *table) {
				t.row("name", resp.Admin.GetName())
				t.row("id", resp.Admin.GetId())
				t.row("expires", stampText(resp.Admin.GetExpiresAt(), time.Now()))
			})
		},
	}
}
