package control

import (
	"context"
	"encoding/hex"
	"errors"
	"net/netip"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// QuarantineNode cuts a node off until it is released. What it has signed counts no more: it signs by a new key once it is back.
func (c *Controller) QuarantineNode(ctx context.Context, by, ref, reason string) (*keyring.Node, revision.Revision, error) {
	return c.changeNode(ctx, nodeAct{"quarantine node", "node.quarantine", audit.KindRevocation, by, reason}, ref, func(t *tx, n *keyring.Node) (keyring.Node, error) {
		after, err := keyring.QuarantineNode(*n, reason, t.Now)
		if err == nil && after.State == n.State {
			return t.View.Keyring.Unconfirmed().Keep(after, reason, t.Now)
		}
		if err == nil {
			err = errors.Join(c.mayLose(t, n.ID), c.revokeSigningKeysOf(t, n.ID, "node quarantined"))
		}
		return after, err
	})
}

// ReleaseNode lets a quarantined node come back.
func (c *Controller) ReleaseNode(ctx context.Context, by, ref, reason string) (*keyring.Node, revision.Revision, error) {
	return c.changeNode(ctx, nodeAct{"release node", "node.release", audit.KindAdmin, by, reason}, ref, func(t *tx, n *keyring.Node) (keyring.Node, error) {
		after, err := keyring.ReleaseNode(*n, t.Now)
		switch {
		case err != nil:
		case t.View.Keyring.Unconfirmed() == nil && verifying(t.View, n.ID):
			err = fault.New(fault.Unavailable, "release node %s: what it signed before is being revoked, key by key: try again", n.ID)
		default:
			err = uniqueName(t.View, &after) // somebody may have taken it meanwhile
		}
		return after, err
	})
}

// RemoveNode makes a node depart on an operator's word.
func (c *Controller) RemoveNode(ctx context.Context, by, ref, reason string) (*keyring.Node, revision.Revision, error) {
	return c.changeNode(ctx, nodeAct{"remove node", "node.remove", audit.KindAdmin, by, reason}, ref, func(t *tx, n *keyring.Node) (keyring.Node, error) {
		stated := reason
		if stated == "" {
			stated = "removed by an operator"
		}
		after, err := keyring.DepartNode(*n, stated, t.Now)
		if err == nil && after.State != n.State {
			err = errors.Join(c.mayLose(t, n.ID), c.stopSigning(t, n.ID))
		}
		return after, err
	})
}

// AllowRebind takes an operator's word that a node may bind to a key, by id or name.
func (c *Controller) AllowRebind(ctx context.Context, by string, req *iapmeshv1.AllowRebindRequest) (*keyring.Node, revision.Revision, error) {
	return c.changeNode(ctx, nodeAct{"allow a re-binding of node", "node.allow-rebind", audit.KindAdmin, by, req.Reason}, req.Node, func(t *tx, n *keyring.Node) (keyring.Node, error) {
		key, err := t.findKey(req.Key)
		if err != nil {
			return *n, err
		}
		return keyring.AllowRebind(*n, *key, keyring.RebindFacts{ActiveNodes: t.View.Keyring.CountActive(key.ID, n.ID)})
	})
}

// nodeAct is what an operator does to a node, for the record.
type nodeAct struct {
	what, action string
	kind         audit.Kind
	by, reason   string
}

// changeNode commits what a rule makes of a node, and leaves a record. What changes nothing leaves none.
func (c *Controller) changeNode(ctx context.Context, act nodeAct, ref string, rule func(*tx, *keyring.Node) (keyring.Node, error)) (*keyring.Node, revision.Revision, error) {
	var after keyring.Node
	changed := false
	at, err := c.update(ctx, act.what+" "+ref, func(t *tx) error {
		id, err := FindNode(t.View, ref)
		if err != nil {
			return err
		}
		n, err := t.node(id)
		if err != nil {
			return err
		}
		if after, err = rule(t, n); err != nil {
			return err
		}
		if changed = after.State != n.State || after.RebindTo != n.RebindTo || after.Reason != n.Reason; changed {
			t.put(state.PutNode(&after))
			t.receipt(act.action, id, act.by).Reason = act.reason
		}
		return nil
	})
	if err != nil {
		return nil, at, err
	}
	if changed {
		detail := map[string]string{"action": act.action, "node": after.ID, "name": after.Name, "state": string(after.State), "reason": act.reason, "revision": at.String(), "receipt": c.ReceiptID(at)}
		if after.RebindTo != "" {
			detail["rebind_to"] = after.RebindTo
		}
		c.record(ctx, act.kind, act.by, detail)
	}
	return &after, at, nil
}

// mayLose refuses to take a node away that leads, or whose vote the mesh needs.
func (c *Controller) mayLose(t *tx, id string) error {
	if id == c.NodeID {
		return c.errLeads(t, id)
	}
	return c.keepsQuorum(t, id)
}

// Rebind binds a node to the successor of its key, or to the key that an operator named for it, on proof that the node holds its own.
// The proof stays in the record. The same again changes nothing.
func (c *Controller) Rebind(ctx context.Context, nodeID string, source netip.Addr, req *iapmeshv1.RebindRequest) (revision.Revision, error) {
	if len(req.FromKey) > maxKeyID || len(req.ToKey) > maxKeyID {
		return revision.Revision{}, fault.New(fault.Invalid, "re-bind: a key's id has at most %d characters", maxKeyID)
	}
	var after, before keyring.Node
	at, err := c.update(ctx, "re-bind node "+nodeID, func(t *tx) error {
		n, err := t.node(nodeID)
		if err != nil {
			return err
		}
		if err := keyring.VerifyRebind(t.View.Keyring.Mesh.ID, n, req.FromKey, req.ToKey, req.Signature); err != nil {
			return err
		}
		from, err := t.key(req.FromKey)
		if err != nil {
			return err
		}
		to, err := t.key(req.ToKey)
		if err != nil {
			return err
		}
		before = *n
		after, err = keyring.RebindNode(*n, *from, *to, keyring.RebindFacts{ActiveNodes: t.View.Keyring.CountActive(to.ID, n.ID), Source: source})
		if err != nil {
			return err
		}
		if after.BoundKey != n.BoundKey || after.RebindTo != n.RebindTo {
			t.put(state.PutNode(&after))
		}
		return nil
	})
	if err != nil {
		c.Logger.Warn("re-binding refused", "node", nodeID, "from", req.FromKey, "to", req.ToKey, "error", err)
		return at, err
	}
	if after.BoundKey != before.BoundKey {
		c.Logger.Info("node re-bound", "node", nodeID, "from", before.BoundKey, "to", after.BoundKey)
		c.record(ctx, audit.KindRotation, "node/"+nodeID, map[string]string{
			"action": "node.rebind", "node": nodeID, "from": before.BoundKey, "to": after.BoundKey, "parent": after.ProvisioningKey,
			"by_word": boolWord(before.RebindTo == after.BoundKey), "signature": hex.EncodeToString(req.Signature), "revision": at.String(),
		})
	}
	return at, nil
}

// maxKeyID bounds what a node may name as a key.
const maxKeyID = 64

// clearWords takes back what operators have allowed, where the key that they named was revoked since: it binds nobody as it is.
func (c *Controller) clearWords(ctx context.Context, v *state.View) error {
	var errs []error
	for id, n := range v.Keyring.Nodes {
		if !v.Keyring.SpentWord(n) {
			continue
		}
		_, err := c.update(ctx, "clear the word for node "+id, func(t *tx) error {
			n, err := t.node(id)
			if err != nil {
				return err
			}
			if t.View.Keyring.SpentWord(n) {
				cleared := *n
				cleared.RebindTo = ""
				t.put(state.PutNode(&cleared))
			}
			return nil
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// NodeStatuses lists all nodes, with what the leader has heard of each.
func (c *Controller) NodeStatuses(ctx context.Context) ([]*iapmeshv1.NodeStatus, error) {
	status, err := c.Status(ctx)
	return status.GetNodes(), err
}

// NodeStatus is one node, by id or name, with its parent and the key that it is bound to.
func (c *Controller) NodeStatus(ctx context.Context, ref string) (*iapmeshv1.GetNodeResponse, error) {
	v, err := c.view()
	if err != nil {
		return nil, err
	}
	id, err := FindNode(v, ref)
	if err != nil {
		return nil, err
	}
	all, err := c.NodeStatuses(ctx)
	if err != nil {
		return nil, err
	}
	out := &iapmeshv1.GetNodeResponse{}
	for _, s := range all {
		if s.Node.Id == id {
			out.Node = s
		}
	}
	if out.Node == nil {
		return nil, fault.New(fault.Unavailable, "node %s: the view changed meanwhile: try again", id)
	}
	for _, key := range []struct {
		id   string
		into **iapmeshv1.ProvisioningKey
	}{{out.Node.Node.ProvisioningKey, &out.Parent}, {out.Node.Node.BoundKey, &out.Bound}} {
		if k := v.Keyring.Keys[key.id]; k != nil {
			*key.into = state.KeyProto(k)
		}
	}
	return out, nil
}
