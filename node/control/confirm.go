package control

import (
	"bytes"
	"cmp"
	"context"
	"crypto/subtle"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Restoration is the last restoration as an operator reads it, with what the leader alone knows.
func (c *Controller) Restoration(v *state.View) *iapmeshv1.RestorationStatus {
	out := RestorationStatus(v)
	if r := v.Keyring.Unconfirmed(); r != nil {
		out.Unheard = c.recalled.unheard(r, r.Pending(&v.Keyring.Contents).Nodes)
	}
	return out
}

// RestorationStatus is the last restoration as the state knows it.
func RestorationStatus(v *state.View) *iapmeshv1.RestorationStatus {
	return statusOf(&v.Keyring.Contents, v.Revision)
}

func statusOf(c *keyring.Contents, at revision.Revision) *iapmeshv1.RestorationStatus {
	out := &iapmeshv1.RestorationStatus{Revision: state.RevisionProto(at), MeshId: c.Mesh.ID}
	r := c.Restoration
	if r == nil {
		return out
	}
	out.Restoration, out.Refused = state.RestorationProto(r), state.DenialsProto(r.Refused)
	if r.Phase == keyring.RestorationConfirmed {
		return out
	}
	out.Revoked = revokedCount(c)
	pending := r.Pending(c)
	if r.Phase == keyring.RestorationAwaiting {
		out.ListDigest = r.Digest(pending)
	}
	for _, h := range pending.Keys {
		k := *c.Keys[h.ID]
		k.State, k.Reason = h.State, ""
		out.Keys = append(out.Keys, state.KeyProto(&k))
	}
	for _, h := range pending.Nodes {
		n := *c.Nodes[h.ID]
		n.State, n.Reason = h.State, ""
		out.Nodes = append(out.Nodes, state.NodeProto(&n))
	}
	for _, id := range pending.Admins {
		out.Admins = append(out.Admins, state.AdminProto(c.Admins[id]))
	}
	slices.SortFunc(out.Admins, func(a, b *iapmeshv1.Admin) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func revokedCount(c *keyring.Contents) *iapmeshv1.RevokedCount {
	out := &iapmeshv1.RevokedCount{}
	for _, k := range c.Keys {
		if k.State == keyring.KeyRevoked {
			out.Keys++
		}
	}
	for _, n := range c.Nodes {
		if n.State == keyring.NodeRevoked {
			out.Nodes++
		}
	}
	for _, a := range c.Admins {
		if !a.RevokedAt.IsZero() {
			out.Admins++
		}
	}
	for _, r := range c.Revocations[keyring.RevokeSubject] {
		if r.Block {
			out.Users++
		}
	}
	return out
}

// confirmBatch bounds how many keys and nodes one commit of a confirmation gives back.
const confirmBatch = 80

// ConfirmRestoration gives back what the list holds, but for the exceptions (ids or names), and opens the mesh. The digest is that of the
// list that the operator has read: if it is another now, nothing happens. A node that has not told what it remembers is not released unless
// unheard says so: it alone may know of a revocation. Asked again with the same digest it goes on where it ended.
func (c *Controller) ConfirmRestoration(ctx context.Context, by string, digest []byte, except []string, unheard bool) (revision.Revision, error) {
	var none revision.Revision
	fresh, err := c.acceptList(ctx, by, digest, except, unheard)
	if err != nil {
		return none, err
	}
	for more := true; more; {
		if more, err = c.release(ctx); err != nil {
			return none, err
		}
	}
	var record *keyring.Restoration
	at, err := c.update(ctx, "confirm the restoration", func(t *tx) error {
		if record, err = t.restoration(); err != nil {
			return err
		}
		if record.Phase == keyring.RestorationConfirmed {
			return nil
		}
		record.Phase = keyring.RestorationConfirmed
		t.put(state.PutRestoration(record))
		return nil
	})
	if err != nil {
		return none, err
	}
	if fresh {
		c.Logger.Info("restoration confirmed: the mesh is open", "by", by, "epoch", record.Statement.NewEpoch, "revision", at.String())
		c.record(ctx, audit.KindAdmin, by, map[string]string{
			"action": "snapshot.confirm", "list": hex.EncodeToString(digest), "except": strings.Join(record.Except, " "), "revision": at.String(),
		})
	}
	return at, nil
}

// acceptList writes down which list was confirmed, with which exceptions: from then on no other is.
func (c *Controller) acceptList(ctx context.Context, by string, digest []byte, except []string, unheard bool) (fresh bool, err error) {
	_, err = c.update(ctx, "confirm the restoration", func(t *tx) error {
		r, err := t.restoration()
		switch {
		case fault.Is(err, fault.NotFound):
			return fault.New(fault.Conflict, "this mesh was never restored: there is nothing to confirm")
		case err != nil:
			return err
		case len(r.Confirmed) > 0 && bytes.Equal(r.Confirmed, digest):
			fresh = r.Phase != keyring.RestorationConfirmed
			return nil // lost answers are asked for again
		case r.Phase == keyring.RestorationConfirmed:
			return fault.New(fault.Conflict, "the restoration is confirmed already, by %s", r.ConfirmedBy)
		case r.Phase != keyring.RestorationAwaiting:
			return fault.New(fault.Conflict, "the snapshot is not yet restored: repeat iapmesh snapshot restore with the same file")
		case len(r.Confirmed) > 0:
			return fault.New(fault.Conflict, "another list is being confirmed, by %s", r.ConfirmedBy)
		}
		pending := r.Pending(&t.View.Keyring.Contents)
		if subtle.ConstantTimeCompare(r.Digest(pending), digest) != 1 {
			return fault.New(fault.Conflict, "the list is not the one that you have read: read it again (iapmesh snapshot pending)")
		}
		if r.Except, err = exceptions(&t.View.Keyring.Contents, pending, except); err != nil {
			return err
		}
		if err := c.awaitWord(&t.View.Keyring.Contents, r, pending, unheard); err != nil {
			return err
		}
		r.Confirmed, r.ConfirmedBy, fresh = digest, by, true
		t.put(state.PutRestoration(r))
		return nil
	})
	return fresh, err
}

// awaitWord refuses to release nodes that have not told what they remember.
func (c *Controller) awaitWord(contents *keyring.Contents, r *keyring.Restoration, pending keyring.RestoreList, unheard bool) error {
	var silent []string
	for _, id := range c.recalled.unheard(r, pending.Nodes) {
		if !slices.Contains(r.Except, id) {
			silent = append(silent, contents.Nodes[id].Name)
		}
	}
	if len(silent) == 0 || unheard {
		return nil
	}
	slices.Sort(silent)
	names := strings.Join(silent[:min(len(silent), 5)], ", ")
	if len(silent) > 5 {
		names += ", …"
	}
	return fault.New(fault.Conflict, "%d nodes that would be released have not told yet what they remember as revoked: %s", len(silent), names)
}

// exceptions resolves ids and names of the list to ids.
func exceptions(c *keyring.Contents, pending keyring.RestoreList, except []string) ([]string, error) {
	var out []string
	for _, ref := range except {
		found := false
		for _, k := range pending.Keys {
			if k.ID == ref || c.Keys[k.ID].Name == ref {
				out, found = append(out, k.ID), true
			}
		}
		for _, n := range pending.Nodes {
			if n.ID == ref || c.Nodes[n.ID].Name == ref {
				out, found = append(out, n.ID), true
			}
		}
		if !found {
			return nil, fault.New(fault.Invalid, "except %.80q: the list holds no key and no node of that id or name", ref)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// release writes one commit of what the confirmed list gives back or holds back for good.
func (c *Controller) release(ctx context.Context) (more bool, err error) {
	_, err = c.update(ctx, "confirm the restoration", func(t *tx) error {
		r, err := t.restoration()
		if err != nil {
			return err
		}
		t.listed = true
		pending := r.Pending(&t.View.Keyring.Contents)
		more = len(pending.Keys)+len(pending.Nodes) > confirmBatch
		left := confirmBatch
		for _, h := range pending.Keys[:min(left, len(pending.Keys))] {
			left--
			k, err := t.key(h.ID)
			if err != nil {
				return err
			}
			after := *k
			if slices.Contains(r.Except, h.ID) {
				after.Reason = r.HeldBack()
			} else if after, err = keyring.ReleaseHeldKey(*k, h, r, t.Now); err != nil {
				return err
			}
			t.put(state.PutKey(&after))
		}
		for _, h := range pending.Nodes[:min(left, len(pending.Nodes))] {
			n, err := t.node(h.ID)
			if err != nil {
				return err
			}
			after := *n
			if slices.Contains(r.Except, h.ID) {
				after.Reason = r.HeldBack()
			} else if after, err = keyring.ReleaseHeldNode(*n, h, r, t.Now); err != nil {
				return err
			}
			t.put(state.PutNode(&after))
		}
		return nil
	})
	return more, err
}
