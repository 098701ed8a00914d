package control

import (
	"context"
	"net/netip"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// errHolder is the whole answer until the key's signature has verified, as with joins.
var errHolder = fault.New(fault.Unauthenticated, "revoke: unauthenticated: the key is unknown here, or the signature is not for this connection "+
	"(a load balancer that terminates TLS between you and the mesh breaks it)")

// RelayRevokeByHolder implements MeshService. Only control nodes terminate such requests, so only they may relay one.
func (m *MeshServer) RelayRevokeByHolder(ctx context.Context, req *iapmeshv1.RelayRevokeByHolderRequest) (*iapmeshv1.RevokeByHolderResponse, error) {
	node, err := m.Caller(ctx)
	if err != nil {
		return nil, err
	}
	v, err := m.Controller.view()
	if err != nil {
		return nil, err
	}
	if !isControl(v, node) {
		return nil, fault.New(fault.Denied, "node %s is no control node: it relays no revocations", node)
	}
	return m.Controller.RevokeByHolder(ctx, req)
}

// RevokeByHolder revokes the key that signed the request, with cascade keep: whoever finds a key may make it worthless, and do no more.
// A key that is revoked already stays as it is.
func (c *Controller) RevokeByHolder(ctx context.Context, req *iapmeshv1.RelayRevokeByHolderRequest) (*iapmeshv1.RevokeByHolderResponse, error) {
	source, err := netip.ParseAddr(req.SourceAddress)
	if err != nil || len(req.ExportedKeyingMaterial) != 32 {
		return nil, fault.New(fault.Invalid, "revoke: want a source address and 32 bytes of keying material")
	}
	term, err := c.mustLead()
	if err != nil {
		return nil, err
	}
	if err := c.catchUp(ctx, store.Term(term)); err != nil { // else a key that was issued just now could be unknown here
		return nil, err
	}
	asked, err := c.holder(req)
	if err != nil {
		c.Logger.Warn("revocation by a holder refused", "source", source.String(), "error", err)
		return nil, err
	}
	by := "key/" + asked.Key
	var revoked keyring.Key
	already := false
	at, err := c.update(ctx, "revoke key", func(t *tx) error {
		k, err := t.key(asked.Key)
		if err != nil {
			return err
		}
		already, t.certain = k.State == keyring.KeyRevoked, true
		revoked, _, err = keyring.RevokeKey(*k, nil, keyring.RevokeRequest{
			Cascade: keyring.CascadeKeep, Reason: asked.Reason, ByHolder: true, By: by, Now: t.Now,
		})
		if err == nil && !already {
			t.put(state.PutKey(&revoked))
			t.receipt("key.revoke", revoked.ID, by).Reason = asked.Reason
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if !already {
		c.record(ctx, audit.KindRevocation, by, map[string]string{
			"action": "key.revoke", "key": revoked.ID, "name": revoked.Name, "cascade": string(keyring.CascadeKeep), "reason": asked.Reason, "source": source.String(), "receipt": c.ReceiptID(at),
		})
		c.Logger.Warn("key revoked by whoever holds it", "key", revoked.ID, "name", revoked.Name, "source", source.String())
	}
	return &iapmeshv1.RevokeByHolderResponse{KeyId: revoked.ID, RevokedAt: state.Stamp(revoked.RevokedAt), Already: already, Revision: state.RevisionProto(at)}, nil
}

// holder verifies that the request is signed by the key that it names.
func (c *Controller) holder(req *iapmeshv1.RelayRevokeByHolderRequest) (keyring.HolderRevocation, error) {
	body := req.Revocation.GetBody()
	asked, err := keyring.ParseHolderRevocation(body)
	if err != nil {
		return asked, errHolder
	}
	v, err := c.view()
	if err != nil {
		return asked, err
	}
	key := v.Keyring.Keys[asked.Key]
	if key == nil {
		return asked, errHolder
	}
	if err := keyring.VerifyRevocation(key.PublicKey, [32]byte(req.ExportedKeyingMaterial), body, req.Revocation.GetSignature()); err != nil {
		return asked, errHolder
	}
	return asked, nil
}
