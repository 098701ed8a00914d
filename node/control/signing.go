package control

import (
	"context"
	"crypto/ed25519"
	"slices"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// AnnounceSigningKey publishes a node's next session key, on proof that the node holds it.
func (c *Controller) AnnounceSigningKey(ctx context.Context, nodeID string, req *iapmeshv1.AnnounceSigningKeyRequest) (revision.Revision, error) {
	if len(req.PublicKey) != ed25519.PublicKeySize || !ed25519.Verify(req.PublicKey, keyring.AnnouncementMessage(nodeID), req.Proof) {
		return revision.Revision{}, fault.New(fault.Denied, "announce a session key: the proof that node %s holds it does not verify", nodeID)
	}
	return c.update(ctx, "announce a session key of "+nodeID, func(t *tx) error {
		n, err := t.node(nodeID)
		if err != nil {
			return err
		}
		k, err := keyring.AnnounceSessionKey(*n, req.PublicKey, t.View.Keyring.SigningKeys, t.Now)
		if err != nil {
			return err
		}
		if _, err := t.get(state.SigningKeyPath(k.KID)); err != nil {
			return err
		}
		t.put(state.PutSigningKey(&k))
		return nil
	})
}

// RotateSigningKeys asks the holders of active signing keys for successors: of a kind, of a node, of a region, or of all.
func (c *Controller) RotateSigningKeys(ctx context.Context, by string, req *iapmeshv1.RotateSigningKeysRequest) ([]string, revision.Revision, error) {
	var rotating []string
	at, err := c.update(ctx, "rotate signing keys", func(t *tx) error {
		rotating = nil
		node := ""
		if req.Node != "" {
			var err error
			if node, err = FindNode(t.View, req.Node); err != nil {
				return err
			}
		}
		kind := state.SigningKindOf(req.Kind)
		for _, k := range t.View.Keyring.SigningKeys {
			if k.State != keyring.SigningActive || (kind != "" && k.Kind != kind) || (node != "" && k.Node != node) || (req.Region != "" && k.Region != req.Region) {
				continue
			}
			fresh, err := t.signingKey(k.KID)
			if err != nil {
				return err
			}
			asked, err := keyring.RequestRotation(*fresh)
			if err != nil {
				return err
			}
			t.put(state.PutSigningKey(&asked))
			rotating = append(rotating, k.KID)
		}
		if len(rotating) == 0 {
			return fault.New(fault.NotFound, "no active signing key matches")
		}
		slices.Sort(rotating)
		return nil
	})
	if err == nil {
		c.record(ctx, audit.KindRotation, by, map[string]string{"action": "signing-key.rotate", "kids": joined(rotating)})
	}
	return rotating, at, err
}
