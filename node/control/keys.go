package control

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// IssueKey registers the public half of a new provisioning key.
func (c *Controller) IssueKey(ctx context.Context, by string, req *iapmeshv1.IssueKeyRequest) (*keyring.Key, revision.Revision, error) {
	cidrs, err := prefixes(req.SourceCidrs)
	if err != nil {
		return nil, revision.Revision{}, err
	}
	var issued keyring.Key
	at, err := c.update(ctx, "issue key "+req.Name, func(t *tx) error {
		approval, err := t.needsApproval(state.RolesOf(req.Grants))
		if err != nil {
			return err
		}
		issued, err = keyring.IssueKey(keyring.KeyRequest{
			PublicKey: req.PublicKey, Name: req.Name, Grants: state.RolesOf(req.Grants), Regions: req.Regions, RouteSelector: req.RouteSelector,
			SourceCIDRs: cidrs, NotBefore: state.Time(req.NotBefore), TTL: req.Ttl.AsDuration(), MaxUses: req.MaxUses, MaxActive: req.MaxActive,
			NeedsApproval: approval || req.NeedsApproval, By: by, Now: t.Now,
		})
		if err == nil && (req.RotateEvery != nil || req.Rotator != "") {
			issued, err = t.schedule(issued, by, scheduleOf(req.RotateEvery, req.RotateGrace, req.Rotator))
		}
		if err != nil {
			return err
		}
		if err := t.unusedKey(&issued); err != nil {
			return err
		}
		if has := t.View.Keyring.NameTaken(issued.Name, t.Now); has != nil {
			return fault.New(fault.Conflict, "key %s has the name %q, and is %s: rotate or revoke that one, or choose another name", has.ID, has.Name, has.State)
		}
		t.put(state.PutKey(&issued))
		t.receipt("key.issue", issued.ID, by)
		return nil
	})
	if err != nil {
		return nil, at, err
	}
	c.record(ctx, audit.KindAdmin, by, map[string]string{
		"action": "key.issue", "key": issued.ID, "name": issued.Name, "grants": joined(issued.Grants), "state": string(issued.State), "receipt": c.ReceiptID(at),
	})
	return &issued, at, nil
}

// RotateKey gives a key a successor; one that needs an approval takes over with that.
func (c *Controller) RotateKey(ctx context.Context, by string, req *iapmeshv1.RotateKeyRequest) (before, after *keyring.Key, at revision.Revision, err error) {
	at, err = c.update(ctx, "rotate key", func(t *tx) error {
		k, err := t.findKey(req.Key)
		if err != nil {
			return err
		}
		if waits := t.View.Keyring.SuccessorAwaiting(k.ID); waits != nil {
			return fault.New(fault.Conflict, "key %s: rotate: its successor %s awaits approval: approve or revoke that one first", k.ID, waits.ID)
		}
		approval, err := t.needsApproval(k.Grants)
		if err != nil {
			return err
		}
		predecessor, successor, err := keyring.RotateKey(*k, keyring.RotateRequest{
			SuccessorPublicKey: req.SuccessorPublicKey, Grace: req.Grace.AsDuration(), TTL: req.Ttl.AsDuration(), NeedsApproval: approval || k.NeedsApproval, By: by, Now: t.Now,
		})
		if err != nil {
			return err
		}
		if err := t.unusedKey(&successor); err != nil {
			return err
		}
		t.put(state.PutKey(&predecessor))
		t.put(state.PutKey(&successor))
		t.receipt("key.rotate", predecessor.ID, by)
		before, after = &predecessor, &successor
		return nil
	})
	if err != nil {
		return nil, nil, at, err
	}
	c.record(ctx, audit.KindRotation, by, map[string]string{
		"action": "key.rotate", "key": before.ID, "successor": after.ID, "state": string(after.State), "receipt": c.ReceiptID(at),
	})
	return before, after, at, nil
}

// cascadeBatch bounds how many nodes, each with its signing keys, go with one commit.
const cascadeBatch = 20

// RevokeKey revokes a key and, by its cascade, the nodes under it and the session keys of those that have departed; a dry run only says which
// nodes. The key and the first nodes change in one commit, the rest of a large cascade in further ones: should one fail, the same call again
// goes on where it ended. Where nothing is left to be done it changes nothing, and leaves no further receipt.
func (c *Controller) RevokeKey(ctx context.Context, by string, req *iapmeshv1.RevokeKeyRequest) (*keyring.Key, []keyring.Node, revision.Revision, error) {
	cascade := state.CascadeOf(req.Cascade)
	if req.Cascade == iapmeshv1.Cascade_CASCADE_UNSPECIFIED {
		cascade = keyring.CascadeKeep
	}
	var revoked keyring.Key
	var affected []keyring.Node
	var silenced []string // session keys of nodes that have departed
	for {
		var batch []keyring.Node
		var kids []string
		var more bool
		var before revision.Revision // at which all was done already; zero: it was not
		var last *tx
		at, err := c.update(ctx, "revoke key", func(t *tx) error {
			last, kids, more, before = t, nil, false, revision.Revision{}
			k, err := t.findKey(req.Key)
			if err != nil {
				return err
			}
			revoked, batch, err = keyring.RevokeKey(*k, t.View.Keyring.NodesUnder(k.ID), keyring.RevokeRequest{Cascade: cascade, Reason: req.Reason, By: by, Now: t.Now, Unconfirmed: t.View.Keyring.Unconfirmed()})
			if err != nil {
				return err
			}
			if err := c.mayCascade(t, nodeIDs(batch)); err != nil {
				return err
			}
			if req.DryRun {
				return nil
			}
			behind := t.View.Keyring.LeftBehind(k.ID, revoked.Cascade)
			act := t.receipt("key.revoke", revoked.ID, by)
			act.Reason = req.Reason
			if k.State == keyring.KeyRevoked && k.Cascade == revoked.Cascade && len(batch)+len(behind) == 0 {
				before = t.guards[state.KeyPath(k.ID)]
				return nil // but for a receipt that was begun, and ends here
			}
			if more = len(batch) > cascadeBatch; more {
				batch = batch[:cascadeBatch]
			}
			t.put(state.PutKey(&revoked))
			for i := range batch {
				if len(t.puts) >= distrustRoom {
					batch, more = batch[:i], true
					break
				}
				was, err := t.node(batch[i].ID) // guards what the cascade was decided on
				if err != nil {
					return err
				}
				if batch[i].State == keyring.NodeRevoked {
					all, err := c.distrust(t, was)
					if err != nil {
						return err
					}
					if !all {
						batch, more = batch[:i], true
						break
					}
				}
				t.put(state.PutNode(&batch[i]))
				if err := c.revokeSigningKeysOf(t, batch[i].ID, "key "+k.ID+" revoked"); err != nil {
					return err
				}
			}
			if !more {
				if kids, more, err = t.silence(behind, "key "+k.ID+" revoked"); err != nil {
					return err
				}
			}
			act.More = more
			return nil
		})
		if err == nil {
			affected, silenced = append(affected, batch...), append(silenced, kids...)
		}
		if err == nil && !before.IsZero() && last.receiptID == "" {
			at = before
		}
		begun := len(affected)+len(silenced) > 0
		if !req.DryRun && (err == nil && !more && before.IsZero() || err != nil && begun) {
			detail := map[string]string{
				"action": "key.revoke", "key": revoked.ID, "cascade": string(cascade), "reason": req.Reason, "nodes": strings.Join(nodeIDs(affected), " "), "receipt": c.ReceiptID(at),
			}
			if len(silenced) > 0 {
				detail["session_keys"] = strings.Join(silenced, " ")
			}
			c.record(ctx, audit.KindRevocation, by, detail)
		}
		switch {
		case err != nil && begun:
			return nil, affected, at, fmt.Errorf("key %s is revoked, and %d nodes under it; the rest is not: do it again: %w", revoked.ID, len(affected), err)
		case err != nil:
			return nil, nil, at, err
		case !more:
			return &revoked, affected, at, nil
		}
	}
}

// silence revokes session keys of nodes that have departed, as many as the commit has room for, and says whether some are left.
func (t *tx) silence(keys []*keyring.SigningKey, reason string) (kids []string, more bool, err error) {
	for _, k := range keys {
		if len(t.puts) >= distrustRoom {
			return kids, true, nil
		}
		fresh, err := t.signingKey(k.KID)
		if err != nil {
			return nil, false, err
		}
		if !fresh.Verifies() { // it is over meanwhile
			continue
		}
		revoked, err := keyring.RevokeSigningKey(*fresh, reason, t.Now)
		if err != nil {
			return nil, false, err
		}
		t.put(state.PutSigningKey(&revoked))
		kids = append(kids, k.KID)
	}
	return kids, false, nil
}

// mayCascade refuses to take the nodes under a key away if one of them leads, or if the mesh needs their votes. More control nodes help only
// if they are not under it, too.
func (c *Controller) mayCascade(t *tx, ids []string) error {
	err := c.keepsQuorum(t, ids...)
	switch leads := slices.Contains(ids, c.NodeID); {
	case fault.Is(err, fault.Denied) && leads:
		return fmt.Errorf("node %s, which is under the key, leads; %w, by another key, or choose cascade keep", c.NodeID, err)
	case fault.Is(err, fault.Denied):
		return fmt.Errorf("%w, by another key, or choose cascade keep", err)
	case leads:
		return fault.New(fault.Denied, "node %s, which is under the key, leads: hand the lead to another first (iapmesh control transfer), or choose cascade keep", c.NodeID)
	}
	return err
}

// findKey reads and guards a key by id or name.
func (t *tx) findKey(ref string) (*keyring.Key, error) {
	found, err := t.View.Keyring.FindKey(ref)
	if err != nil {
		return nil, err
	}
	return t.key(found.ID)
}

// keepsQuorum refuses to take nodes away whose votes the mesh needs.
func (c *Controller) keepsQuorum(t *tx, removing ...string) error {
	_, since := c.Leading()
	facts := keyring.QuorumFacts{Nodes: t.View.Keyring.Nodes, Leader: c.NodeID, Heard: map[string]time.Time{}, ListeningSince: since, Now: c.Now()}
	if c.Voters != nil {
		servers, err := c.Voters.Servers(t.ctx)
		if err != nil {
			return err
		}
		for _, s := range servers {
			if s.Voter {
				facts.Voters = append(facts.Voters, s.ID)
			}
		}
	}
	for id, n := range facts.Nodes {
		if report, ok := c.Reports.Get(id); ok && n.HasRole(keyring.RoleControl) {
			facts.Heard[id] = report.At
		}
	}
	return keyring.QuorumAfter(facts, removing)
}

func prefixes(cidrs []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range cidrs {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fault.New(fault.Invalid, "source_cidrs: %.60q: want a CIDR such as 10.0.0.0/8", s)
		}
		out = append(out, p)
	}
	return out, nil
}

func nodeIDs(nodes []keyring.Node) []string {
	ids := make([]string, 0, len(nodes))
	for _, n := range nodes {
		ids = append(ids, n.ID)
	}
	return ids
}

func joined[S ~string](words []S) string {
	parts := make([]string, 0, len(words))
	for _, w := range words {
		parts = append(parts, string(w))
	}
	return strings.Join(parts, ",")
}

// Keys lists provisioning keys, newest first.
func Keys(v *state.View) []*keyring.Key {
	return slices.SortedFunc(maps.Values(v.Keyring.Keys), func(a, b *keyring.Key) int {
		if c := b.CreatedAt.Compare(a.CreatedAt); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
}

func isControl(v *state.View, id string) bool {
	n := v.Keyring.Nodes[id]
	return n != nil && n.Trusted() && n.HasRole(keyring.RoleControl)
}
