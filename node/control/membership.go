package control

import (
	"context"
	"crypto/x509"
	"errors"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Confirm turns enrolled into active, once the node has come with its new certificate.
func (c *Controller) Confirm(ctx context.Context, nodeID string) (revision.Revision, error) {
	return c.updateAmongOthers(ctx, "confirm", func(t *tx) error {
		n, err := t.node(nodeID)
		if err != nil {
			return err
		}
		if n.State == keyring.NodeActive {
			return nil
		}
		confirmed, err := keyring.ConfirmNode(*n, t.Now)
		if err != nil {
			return err
		}
		t.put(state.PutNode(&confirmed))
		return nil
	})
}

// Renew issues the next certificate for an enrolled node's own key, and brings a lapsed node back.
func (c *Controller) Renew(ctx context.Context, nodeID string, csr []byte) (*iapmeshv1.RenewResponse, error) {
	request, err := keyring.ParseCSR(csr)
	if err != nil {
		return nil, err
	}
	var node keyring.Node
	recovered := false
	_, err = c.updateAmongOthers(ctx, "renew", func(t *tx) error {
		n, err := t.node(nodeID)
		if err != nil {
			return err
		}
		if !n.PublicKey.Equal(request.PublicKey) {
			return fault.New(fault.Denied, "node %s: the request is for another key than its own", nodeID)
		}
		node = *n
		if !n.Trusted() {
			return fault.New(fault.Denied, "node %s is %s: it gets no certificate", nodeID, n.State)
		}
		if recovered = recovers(n, t.Now); recovered {
			if err := c.returned.admit(n, t.Now); err != nil {
				return err
			}
		}
		if n.State == keyring.NodeLapsed {
			if node, err = keyring.RecoverNode(*n, t.Now); err != nil {
				return err
			}
		}
		node.CertExpiresAt = t.Now.Add(keyring.NodeCertLife)
		t.put(state.PutNode(&node))
		return nil
	})
	if err != nil {
		var full *PutOffError
		if recovered && !errors.As(err, &full) {
			c.returned.release(&node)
		}
		return nil, err
	}
	if recovered {
		c.recovered(ctx, &node)
	}
	cert, err := c.certify(&node, request)
	if err != nil {
		return nil, err
	}
	v, err := c.view()
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.RenewResponse{Certificate: cert.Raw, Bundle: v.Keyring.Chain(cert)}, nil
}

// recovered leaves a record of a node that came back.
func (c *Controller) recovered(ctx context.Context, n *keyring.Node) {
	c.returned.counted.WithLabelValues("admitted").Inc()
	c.Logger.Info("node recovered", "node", n.ID, "name", n.Name, "key", n.BoundKey)
	c.record(ctx, audit.KindAdmin, "node/"+n.ID, map[string]string{"action": "node.recover", "node": n.ID, "name": n.Name, "key": n.BoundKey})
}

// Leave makes a node depart at its own wish. A control node hands its vote over first.
func (c *Controller) Leave(ctx context.Context, nodeID string) (revision.Revision, error) {
	var left *keyring.Node // nil: it had left before
	at, err := c.update(ctx, "leave", func(t *tx) error {
		n, err := t.node(nodeID)
		if err != nil {
			return err
		}
		if err := c.keepsQuorum(t, nodeID); err != nil {
			return err
		}
		gone, err := keyring.DepartNode(*n, "left", t.Now)
		if err != nil {
			return err
		}
		if left = nil; gone.State != n.State {
			left = &gone
		}
		t.put(state.PutNode(&gone))
		return c.stopSigning(t, nodeID)
	})
	if err == nil && left != nil {
		c.record(ctx, audit.KindAdmin, "node/"+nodeID, map[string]string{"action": "node.leave", "node": nodeID, "name": left.Name, "revision": at.String()})
	}
	return at, err
}

func (c *Controller) stopSigning(t *tx, nodeID string) error {
	for _, k := range t.View.Keyring.SigningKeys {
		if k.Node != nodeID || (k.State != keyring.SigningActive && k.State != keyring.SigningAnnounced) {
			continue
		}
		fresh, err := t.signingKey(k.KID)
		if err != nil {
			return err
		}
		stopped, err := keyring.StopSigning(*fresh, t.Now)
		if err != nil {
			return err
		}
		t.put(state.PutSigningKey(&stopped))
	}
	return nil
}

// certify issues a node's certificate under the active authority.
func (c *Controller) certify(n *keyring.Node, csr *x509.CertificateRequest) (*x509.Certificate, error) {
	v, err := c.view()
	if err != nil {
		return nil, err
	}
	authority, key, err := c.authority(v)
	if err != nil {
		return nil, err
	}
	return keyring.IssueNode(*authority, key, csr, keyring.NodeTemplate{
		TrustDomain: v.Keyring.Mesh.TrustDomain, Region: n.Region, NodeID: n.ID, Control: n.HasRole(keyring.RoleControl), Now: c.now(),
	})
}
