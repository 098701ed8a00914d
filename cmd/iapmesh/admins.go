package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/profile"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func newAdminIssueCommand(c *cli) *cobra.Command {
	var out string
	wait := waitNot
	cmd := &cobra.Command{
		Use: "issue NAME", Short: "Make another administrator, and write the profile",
		Long: `Make another administrator, who may do all that you may, for 90 days unless renewed. The key is made on this machine and goes
into the profile, mode 0600; only a request for its certificate is sent. Whoever holds the profile is that administrator.`,
		Example: "  iapmesh admin issue bob --profile-out bob.json",
		Args:    exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := required(cmd, "profile-out"); err != nil {
				return err
			}
			return c.issueAdmin(cmd.Context(), args[0], out, wait)
		},
	}
	cmd.Flags().StringVar(&out, "profile-out", "", "`FILE|NAME` of the new profile (required)")
	wait.flag(cmd, "wait until every live node knows the new administrator")
	return cmd
}

func (c *cli) issueAdmin(ctx context.Context, name, out string, wait waitFor) error {
	own, err := c.load()
	if err != nil {
		return err
	}
	path, err := freeProfile(out)
	if err != nil {
		return err
	}
	made := profile.Profile{Mesh: own.Mesh, TrustDomain: own.TrustDomain, Name: name, ControlNodes: own.ControlNodes}
	csr, err := newAdminKey(&made)
	if err != nil {
		return err
	}
	resp, err := unary(ctx, c, iapmeshv1.NewAdminServiceClient, iapmeshv1.AdminServiceClient.IssueAdmin, &iapmeshv1.IssueAdminRequest{Name: name, Csr: csr})
	if err != nil {
		return err
	}
	made.Certificate, made.Roots = profile.CertificatePEM(resp.Certificate), profile.CertificatePEM(resp.Bundle...)
	credential, err := made.Credential()
	if err != nil {
		return fault.New(fault.Internal, "the certificate that came back is not for the new key: %w", err)
	}
	if status, err := c.status(ctx); err == nil { // else the addresses of this profile will do
		if addresses := controlAddresses(status); len(addresses) > 0 {
			made.ControlNodes = addresses
		}
	}
	if _, err := made.Save(path); err != nil {
		return hint(err, "The new administrator's key is lost. Take the record back, make room for the profile, and repeat: iapmesh admin revoke %s", name)
	}
	if resp.Receipt, err = c.awaitReceipt(ctx, resp.Receipt, wait); err != nil {
		return err
	}
	return c.print(resp, func(t *table) {
		t.line("administrator %s (%s): certificate until %s, in %s", name, resp.Admin.GetId(), credential.Leaf.NotAfter.UTC().Format(time.RFC3339), path)
		receiptLines(t, resp.Receipt)
	})
}

// newAdminKey puts a new key into a profile and returns the request for its certificate.
func newAdminKey(p *profile.Profile) ([]byte, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fault.New(fault.Internal, "make the administrator's key: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fault.New(fault.Internal, "encode the administrator's key: %w", err)
	}
	p.Key = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	return keyring.NewCSR(key)
}

func newAdminListCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List administrators, those that are revoked last", Example: "  iapmesh admin list", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewAdminServiceClient, iapmeshv1.AdminServiceClient.ListAdmins, &iapmeshv1.ListAdminsRequest{})
			if err != nil {
				return err
			}
			now := time.Now()
			return c.print(resp, func(t *table) {
				t.head("NAME", "ID", "STATE", "EXPIRES", "CREATED", "REASON")
				for _, a := range resp.Admins {
					t.row(a.Name, a.Id, adminStateCell(a, now), stampText(a.ExpiresAt, now), stampText(a.CreatedAt, now), strings.TrimSpace(a.Reason))
				}
			})
		},
	}
}

func adminStateCell(a *iapmeshv1.Admin, now time.Time) cell {
	switch {
	case a.RevokedAt != nil:
		return cell{text: "revoked", style: red}
	case a.ExpiresAt == nil || !now.Before(a.ExpiresAt.AsTime()):
		return cell{text: "expired", style: yellow}
	}
	return cell{text: "active", style: green}
}

func newAdminRevokeCommand(c *cli) *cobra.Command {
	req := &iapmeshv1.RevokeAdminRequest{}
	wait := waitNot
	cmd := &cobra.Command{
		Use: "revoke NAME|ID", Short: "Refuse an administrator from now on, for good",
		Long: `Refuse an administrator from now on, for good: open connections end, too. The name may be given to another. Nobody revokes
himself: if your own profile is lost or stolen, another administrator does it; if there is none, issue one first.`,
		Example: "  iapmesh admin revoke bob --reason \"left the company\" --wait",
		Args:    exactArgs("NAME|ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Admin = args[0]
			return c.revokeAdmin(cmd.Context(), req, wait)
		},
	}
	cmd.Flags().StringVar(&req.Reason, "reason", "", "`TEXT` for the record")
	wait.flag(cmd, "wait until every live node refuses the administrator")
	return cmd
}

func (c *cli) revokeAdmin(ctx context.Context, req *iapmeshv1.RevokeAdminRequest, wait waitFor) error {
	resp, err := unary(ctx, c, iapmeshv1.NewAdminServiceClient, iapmeshv1.AdminServiceClient.RevokeAdmin, req)
	if fault.Is(err, fault.NotFound) {
		return hint(err, "iapmesh admin list shows who there is.")
	}
	if err != nil {
		return err
	}
	if resp.Receipt, err = c.awaitReceipt(ctx, resp.Receipt, wait); err != nil {
		return err
	}
	return c.print(resp, func(t *table) {
		t.line("revoked administrator %s (%s)", resp.Admin.GetName(), resp.Admin.GetId())
		receiptLines(t, resp.Receipt)
	})
}
