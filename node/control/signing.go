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

// rotateBatch bounds how many signing keys are asked to go in one commit.
const rotateBatch = 50

// RotateSigningKeys asks the holders of active signing keys for successors: of a kind, of a node, of a region, or of all. It can be
// repeated.
func (c *Controller) RotateSigningKeys(ctx context.Context, by string, req *iapmeshv1.RotateSigningKeysRequest) ([]string, revision.Revision, error) {
	var matching, rotating []string
	at, err := c.update(ctx, "rotate signing keys", func(t *tx) error {
		node := ""
		if req.Node != "" {
			var err error
			if node, err = FindNode(t.View, req.Node); err != nil {
				return err
			}
		}
		kind := state.SigningKindOf(req.Kind)
		matching = nil
		for _, k := range t.View.Keyring.SigningKeys {
			if k.State == keyring.SigningActive && (kind == "" || k.Kind == kind) && (node == "" || k.Node == node) && (req.Region == "" || k.Region == req.Region) {
				matching = append(matching, k.KID)
			}
		}
		if len(matching) == 0 {
			return fault.New(fault.NotFound, "no active signing key matches")
		}
		slices.Sort(matching)
		return nil
	})
	last := at
	for i, batch := range slices.Collect(slices.Chunk(matching, rotateBatch)) {
		if err != nil {
			break
		}
		var asked []string
		if at, err = c.update(ctx, "rotate signing keys", func(t *tx) (err error) {
			t.receipt("signing-key.rotate", rotationTarget(req), by).More = (i+1)*rotateBatch < len(matching)
			asked, err = t.askToRotate(batch)
			return err
		}); err == nil {
			rotating, last = append(rotating, asked...), at
		}
	}
	if len(rotating) > 0 {
		c.record(ctx, audit.KindRotation, by, map[string]string{"action": "signing-key.rotate", "kids": joined(rotating), "receipt": c.ReceiptID(last)})
	}
	return rotating, at, err
}

// rotationTarget says which keys were asked for.
func rotationTarget(req *iapmeshv1.RotateSigningKeysRequest) string {
	target := "all"
	if kind := state.SigningKindOf(req.Kind); kind != "" {
		target = string(kind)
	}
	if req.Node != "" {
		target += " of " + req.Node
	}
	if req.Region != "" {
		target += " in " + req.Region
	}
	return target
}

// askToRotate asks the keys that still sign for successors.
func (t *tx) askToRotate(kids []string) (asked []string, err error) {
	for _, kid := range kids {
		k, err := t.signingKey(kid)
		if err != nil {
			return nil, err
		}
		if k.State != keyring.SigningActive {
			continue
		}
		next, err := keyring.RequestRotation(*k)
		if err != nil {
			return nil, err
		}
		t.put(state.PutSigningKey(&next))
		asked = append(asked, kid)
	}
	return asked, nil
}
