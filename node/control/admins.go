package control

import (
	"context"
	"crypto/ed25519"
	"strings"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// NotLeading says who leads instead of this node.
func (c *Controller) NotLeading() error {
	_, err := c.mustLead()
	return err
}

// RenewAdmin prolongs the caller's own credential, for the key that it already has.
func (c *Controller) RenewAdmin(ctx context.Context, by string, csr []byte) (*iapmeshv1.RenewAdminResponse, error) {
	request, err := keyring.ParseCSR(csr)
	if err != nil {
		return nil, err
	}
	public := request.PublicKey.(ed25519.PublicKey) // ParseCSR takes no other
	var admin keyring.Admin
	_, err = c.update(ctx, "renew administrator", func(t *tx) error {
		a, err := read(t, state.AdminPath(keyring.AdminID(public)), "administrator with that key", func(p *iapmeshv1.Admin) (*keyring.Admin, error) { return state.AdminOf(p), nil })
		if err != nil {
			return err
		}
		if "admin/"+a.Name != by {
			return fault.New(fault.Denied, "the request is for another administrator's key")
		}
		if admin, err = keyring.RenewAdmin(*a, t.Now); err != nil {
			return err
		}
		t.put(state.PutAdmin(&admin))
		return nil
	})
	if err != nil {
		return nil, err
	}
	v, err := c.view()
	if err != nil {
		return nil, err
	}
	authority, key, err := c.authority(v)
	if err != nil {
		return nil, err
	}
	cert, err := keyring.IssueAdmin(*authority, key, request, keyring.AdminTemplate{TrustDomain: v.Keyring.Mesh.TrustDomain, Name: admin.Name, Now: c.now()})
	if err != nil {
		return nil, err
	}
	c.record(ctx, audit.KindAdmin, by, map[string]string{"action": "admin.renew", "name": strings.TrimPrefix(by, "admin/")})
	return &iapmeshv1.RenewAdminResponse{Certificate: cert.Raw, Bundle: bundle(v)}, nil
}
