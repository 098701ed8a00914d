package control

import (
	"context"
	"crypto/ed25519"
	"slices"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/state"
)

// SuspendKey lets nobody join by a key until it is resumed.
func (c *Controller) SuspendKey(ctx context.Context, by, ref, reason string) (*keyring.Key, revision.Revision, error) {
	return c.moveKey(ctx, by, keyMove{ref, "suspend", reason, func(k keyring.Key, _ *tx) (keyring.Key, error) { return keyring.SuspendKey(k, reason) }})
}

// ResumeKey takes a suspension back.
func (c *Controller) ResumeKey(ctx context.Context, by, ref string) (*keyring.Key, revision.Revision, error) {
	return c.moveKey(ctx, by, keyMove{ref, "resume", "", func(k keyring.Key, t *tx) (keyring.Key, error) {
		var predecessor *keyring.Key
		if k.Predecessor != "" {
			var err error
			if predecessor, err = t.key(k.Predecessor); err != nil && !fault.Is(err, fault.NotFound) {
				return k, err
			}
		}
		after, err := keyring.ResumeKey(k, predecessor, t.Now)
		if open := t.View.Keyring.OpenProposal(k.Predecessor); err == nil && after.Proposed() && open != nil {
			return k, fault.New(fault.Conflict, "key %s: resume: its rotator has proposed %s instead: revoke this one", k.ID, open.ID)
		}
		return after, err
	}})
}

// keyMove is a transition of one key that an administrator asks for.
type keyMove struct {
	key, verb, reason string
	to                func(keyring.Key, *tx) (keyring.Key, error)
}

func (c *Controller) moveKey(ctx context.Context, by string, m keyMove) (*keyring.Key, revision.Revision, error) {
	var after keyring.Key
	at, err := c.update(ctx, m.verb+" key", func(t *tx) error {
		k, err := t.findKey(m.key)
		if err != nil {
			return err
		}
		if after, err = m.to(*k, t); err != nil {
			return err
		}
		t.put(state.PutKey(&after))
		t.receipt("key."+m.verb, after.ID, by).Reason = m.reason
		return nil
	})
	if err != nil {
		return nil, at, err
	}
	c.record(ctx, audit.KindAdmin, by, map[string]string{"action": "key." + m.verb, "key": after.ID, "name": after.Name, "reason": m.reason, "state": string(after.State), "receipt": c.ReceiptID(at)})
	return &after, at, nil
}

// ApproveKey activates a key that awaits another administrator than the one who asked for it. A successor takes over with that, and
// its predecessor, which is returned too, begins its grace.
func (c *Controller) ApproveKey(ctx context.Context, by, ref string) (approved, predecessor *keyring.Key, at revision.Revision, err error) {
	at, err = c.update(ctx, "approve key", func(t *tx) error {
		found, err := t.View.Keyring.FindAwaiting(ref)
		if err != nil {
			return err
		}
		k, err := t.key(found.ID)
		if err != nil {
			return err
		}
		r := keyring.ApproveRequest{By: by, Now: t.Now}
		if k.Predecessor != "" {
			if r.Predecessor, err = t.key(k.Predecessor); err != nil {
				return err
			}
		}
		active, retired, err := keyring.ApproveKey(*k, r)
		if err != nil {
			return err
		}
		t.put(state.PutKey(&active))
		if retired != nil {
			t.put(state.PutKey(retired))
		}
		approved, predecessor = &active, retired
		t.receipt("key.approve", active.ID, by)
		return nil
	})
	if err != nil {
		return nil, nil, at, err
	}
	detail := map[string]string{"action": "key.approve", "key": approved.ID, "name": approved.Name, "grants": joined(approved.Grants), "issued_by": approved.CreatedBy, "receipt": c.ReceiptID(at)}
	if predecessor != nil {
		detail["predecessor"] = predecessor.ID
	}
	c.record(ctx, audit.KindAdmin, by, detail)
	return approved, predecessor, at, nil
}

// needsApproval reports whether a key with these grants takes a second administrator. The manifest guards the commit. A node that
// does not understand the configuration cannot say, and answers Unavailable.
func (t *tx) needsApproval(grants []keyring.Role) (bool, error) {
	if !slices.Contains(grants, keyring.RoleControl) {
		return false, nil
	}
	m, err := t.manifest()
	if err != nil {
		return false, err
	}
	hashes := map[resource.Ref][32]byte{}
	for _, e := range m.Entries {
		if len(e.Hash) != 32 {
			return false, fault.New(fault.Internal, "manifest: %s/%s: hash of %d bytes", e.Kind, e.Name, len(e.Hash))
		}
		hashes[resource.Ref{Kind: e.Kind, Name: e.Name}] = [32]byte(e.Hash)
	}
	if t.View.Config.Digest != resource.Digest(hashes) {
		return false, fault.New(fault.Unavailable, "whether a key that grants control needs an approval: the configuration is not in force on this node, see its log")
	}
	return t.View.Config.Settings != nil && t.View.Config.Settings.ControlKeyApproval, nil
}

// unusedKey refuses the public half of a new provisioning key that the mesh knows already, in whatever part: its holder would be
// two parties.
func (t *tx) unusedKey(k *keyring.Key) error {
	public := ed25519.PublicKey(k.PublicKey)
	for _, taken := range []struct{ path, what string }{
		{state.KeyPath(k.ID), "is there already"},
		{state.AdminPath(keyring.AdminID(public)), "its public key is an administrator's"},
		{state.NodePath(keyring.NodeID(public)), "its public key is a node's"},
		{state.SigningKeyPath(keyring.SigningKID(keyring.SigningSession, public)), "its public key is a session key"},
	} {
		have, err := t.get(taken.path)
		if err != nil {
			return err
		}
		if have != nil {
			return fault.New(fault.Conflict, "key %s %s", k.ID, taken.what)
		}
	}
	return nil
}
