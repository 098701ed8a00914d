package control

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"strings"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
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
		a, err := t.admin(keyring.AdminID(public))
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
	return &iapmeshv1.RenewAdminResponse{Certificate: cert.Raw, Bundle: v.Keyring.RootsDER()}, nil
}

// IssueAdmin makes another administrator, for the key of the request. A request whose answer was lost is answered again. The
// receipt is the caller's to add.
func (c *Controller) IssueAdmin(ctx context.Context, by string, req *iapmeshv1.IssueAdminRequest) (*iapmeshv1.IssueAdminResponse, revision.Revision, error) {
	csr, err := keyring.ParseCSR(req.Csr)
	if err != nil {
		return nil, revision.Revision{}, err
	}
	var (
		admin keyring.Admin
		cert  *x509.Certificate
		roots [][]byte
		fresh bool
	)
	at, err := c.update(ctx, "issue administrator", func(t *tx) error {
		if admin, fresh, err = newAdmin(t, req.Name, csr.PublicKey.(ed25519.PublicKey)); err != nil { // ParseCSR takes no other
			return err
		}
		// Before the commit: an administrator without a certificate would hold the name for nothing.
		authority, key, err := c.authority(t.View)
		if err != nil {
			return err
		}
		cert, err = keyring.IssueAdmin(*authority, key, csr, keyring.AdminTemplate{TrustDomain: t.View.Keyring.Mesh.TrustDomain, Name: admin.Name, Now: t.Now})
		if err != nil {
			return err
		}
		roots, t.certain = t.View.Keyring.RootsDER(), true
		if fresh {
			t.put(state.PutAdmin(&admin))
			t.receipt("admin.issue", admin.Name+" ("+admin.ID+")", by)
		}
		return nil
	})
	if err != nil {
		return nil, at, err
	}
	if fresh {
		c.record(ctx, audit.KindAdmin, by, map[string]string{"action": "admin.issue", "name": admin.Name, "id": admin.ID, "revision": at.String(), "receipt": c.ReceiptID(at)})
	}
	return &iapmeshv1.IssueAdminResponse{Admin: state.AdminProto(&admin), Certificate: cert.Raw, Bundle: roots}, at, nil
}

// newAdmin is the record of a new administrator, or the one that the key has already under this name.
func newAdmin(t *tx, name string, public ed25519.PublicKey) (admin keyring.Admin, fresh bool, err error) {
	have, err := t.admin(keyring.AdminID(public))
	switch {
	case err == nil && have.Name == name:
		return *have, false, have.Check(t.Now)
	case err == nil:
		return admin, false, fault.New(fault.Conflict, "the key is administrator %s's (%s)", have.Name, have.ID)
	case !fault.Is(err, fault.NotFound):
		return admin, false, err
	}
	for _, other := range t.View.Keyring.Admins {
		if other.Name == name && other.RevokedAt.IsZero() {
			return admin, false, fault.New(fault.Conflict, "name %q is administrator %s's: choose another, or revoke that one first", name, other.ID)
		}
	}
	admin, err = keyring.NewAdmin(name, public, t.Now)
	return admin, true, err
}

// RevokeAdmin refuses an administrator, by id or name, from the returned revision on. It is another one who does that, since the
// revoked one's connection ends before an answer; and one who counts is left.
func (c *Controller) RevokeAdmin(ctx context.Context, by, ref, reason string) (*keyring.Admin, revision.Revision, error) {
	var (
		admin keyring.Admin
		fresh bool
	)
	at, err := c.update(ctx, "revoke administrator", func(t *tx) error {
		id, err := findAdmin(t, ref)
		if err != nil {
			return err
		}
		have, err := t.admin(id)
		if err != nil {
			return err
		}
		if admin, fresh = *have, have.RevokedAt.IsZero(); !fresh {
			return nil
		}
		if err := leavesAnAdmin(t, have); err != nil {
			return err
		}
		if by == "admin/"+have.Name {
			return fault.New(fault.Denied, "administrator %s: nobody revokes himself: let another do it", have.Name)
		}
		if admin, err = keyring.RevokeAdmin(*have, reason, t.Now); err != nil {
			return err
		}
		t.put(state.PutAdmin(&admin))
		t.receipt("admin.revoke", admin.Name+" ("+admin.ID+")", by).Reason = reason
		return nil
	})
	if err != nil {
		return nil, at, err
	}
	if fresh {
		c.record(ctx, audit.KindAdmin, by, map[string]string{
			"action": "admin.revoke", "name": admin.Name, "id": admin.ID, "reason": reason, "revision": at.String(), "receipt": c.ReceiptID(at),
		})
	}
	return &admin, at, nil
}

// findAdmin resolves an id, or the name of one that is not revoked.
func findAdmin(t *tx, ref string) (id string, err error) {
	if t.View.Keyring.Admins[ref] != nil {
		return ref, nil
	}
	for _, a := range t.View.Keyring.Admins {
		if a.Name == ref && a.RevokedAt.IsZero() {
			return a.ID, nil
		}
	}
	return "", fault.New(fault.NotFound, "no administrator has the id %.64q, and none that is not revoked this name", ref)
}

// leavesAnAdmin refuses to take the last administrator that counts: there would be no way back in.
func leavesAnAdmin(t *tx, gone *keyring.Admin) error {
	if gone.Check(t.Now) != nil {
		return nil // it counts no more already
	}
	for id := range t.View.Keyring.Admins {
		if id == gone.ID {
			continue
		}
		other, err := t.admin(id)
		if err != nil {
			return err
		}
		if other.Check(t.Now) == nil {
			return nil
		}
	}
	return fault.New(fault.Denied, "administrator %s is the last that counts: issue another first", gone.Name)
}
