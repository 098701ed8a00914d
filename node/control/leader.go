package control

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
)

// loop is the leader's own work, at each tick, each new view and each report: what acknowledges lets keys sign, what time ends is
// ended, what members change is wrapped anew. Each duty commits by itself; one that is refused is logged and tried again.
func (c *Controller) loop(ctx context.Context) error {
	ticker := time.NewTicker(c.Tick)
	defer ticker.Stop()
	for {
		changed, reported := c.Source.Changed(), c.Reports.Changed()
		for _, duty := range []struct {
			name string
			do   func(context.Context, *state.View) error
		}{
			{"align audiences", c.alignAudiences},
			{"move signing keys", c.moveSigningKeys},
			{"rotate assertion keys", c.rotateAssertionKeys},
			{"sweep", c.sweep},
			{"clear words", c.clearWords},
			{"turn authorities", c.turnAuthorities},
			{"turn audience keys", c.turnAudienceKeys},
			{"turn the gossip ring", c.turnGossipRing},
			{"close proposals", c.closeProposals},
			{"promote control nodes", c.promoteVoters},
			{"complete receipts", c.completeReceipts},
		} {
			v := c.Source.Load()
			if v == nil || ctx.Err() != nil {
				break
			}
			if err := duty.do(ctx, v); err != nil && ctx.Err() == nil {
				c.Logger.Warn("leader's duty put off", "duty", duty.name, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-changed:
		case <-reported:
		}
	}
}

// alignAudiences brings every audience in step with the nodes.
func (c *Controller) alignAudiences(ctx context.Context, v *state.View) error {
	var errs []error
	for name, members := range wanted(v.Keyring.Nodes, v.Keyring.Audiences) {
		if a := v.Keyring.Audiences[name]; a != nil {
			if missing, extra := compareMembers(a, members); len(missing)+len(extra) == 0 {
				continue
			}
		}
		_, err := c.update(ctx, "align audience "+name, func(t *tx) error {
			if now := wanted(t.View.Keyring.Nodes, t.View.Keyring.Audiences)[name]; len(now) > 0 {
				return c.align(t, name, now)
			}
			return nil
		})
		if err != nil {
			errs = append(errs, err) // one that cannot be aligned keeps no other from it
			continue
		}
		c.Logger.Info("audience aligned", "audience", name, "members", len(members))
		c.recordExpulsion(ctx, v.Keyring.Audiences[name])
	}
	return errors.Join(errs...)
}

// moveSigningKeys lets announced keys sign once every live node can verify them, and ends those whose tokens are over.
func (c *Controller) moveSigningKeys(ctx context.Context, v *state.View) error {
	var errs []error
	for _, k := range v.Keyring.SigningKeys {
		var move func(t *tx, k *keyring.SigningKey) ([]keyring.SigningKey, error)
		switch k.State {
		case keyring.SigningAnnounced:
			if !c.Readiness(v, k).Ready {
				continue
			}
			move = func(t *tx, k *keyring.SigningKey) ([]keyring.SigningKey, error) {
				return keyring.Promote(*k, t.View.Keyring.SigningKeys, t.Now)
			}
		case keyring.SigningVerifyOnly:
			known := c.signerKnows(v, k)
			if _, over := keyring.SweepSigningKey(*k, known, c.now()); !over {
				continue
			}
			move = func(t *tx, k *keyring.SigningKey) ([]keyring.SigningKey, error) {
				swept, _ := keyring.SweepSigningKey(*k, known, t.Now)
				return []keyring.SigningKey{swept}, nil
			}
		case keyring.SigningRetired:
			move = c.destroy
		default:
			continue
		}
		if err := c.moveSigningKey(ctx, k.KID, move); err != nil && !fault.Is(err, fault.Conflict) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (c *Controller) moveSigningKey(ctx context.Context, kid string, move func(*tx, *keyring.SigningKey) ([]keyring.SigningKey, error)) error {
	var from keyring.SigningState
	var moved []keyring.SigningKey
	at, err := c.update(ctx, "move signing key "+kid, func(t *tx) error {
		k, err := t.signingKey(kid)
		if err != nil {
			return err
		}
		from = k.State
		if moved, err = move(t, k); err != nil {
			return err
		}
		for i := range moved {
			if _, err := t.signingKey(moved[i].KID); err != nil { // guards each key that changes with it
				return err
			}
			t.put(state.PutSigningKey(&moved[i]))
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, k := range moved {
		if k.KID == kid {
			c.Logger.Info("signing key moved", "kid", kid, "kind", string(k.Kind), "from", string(from), "to", string(k.State), "revision", at.String())
			c.record(ctx, audit.KindRotation, "leader", map[string]string{"action": "signing-key", "kid": kid, "from": string(from), "to": string(k.State), "revision": at.String()})
		}
	}
	return nil
}

// signerKnows says since when the holder of a session key was seen to know that it signs no more: by its first report from a view that
// holds the record. A leader that is new hears it anew. An assertion key has many holders, and tokens of minutes.
func (c *Controller) signerKnows(v *state.View, k *keyring.SigningKey) time.Time {
	holder := v.Keyring.Nodes[k.Node]
	if k.Kind != keyring.SigningSession || holder == nil || !holder.Trusted() {
		return k.StateSince
	}
	report, heard := c.Reports.Get(holder.ID)
	switch {
	case !heard || state.RevisionOf(report.GetRevision()).Before(k.Revision):
		delete(c.stopped, k.KID)
	case c.stopped[k.KID].IsZero():
		c.stopped[k.KID] = report.At
	}
	return c.stopped[k.KID]
}

// destroy drops the private half of a retired assertion key from the state; a session key's lies with its node, which deletes it
// when it sees the key retired.
func (c *Controller) destroy(t *tx, k *keyring.SigningKey) ([]keyring.SigningKey, error) {
	if k.Kind == keyring.SigningAssertion {
		path := state.SecretPath(keyring.AssertAudience(k.Region, k.RouteSelector), k.KID)
		if _, err := t.get(path); err != nil {
			return nil, err
		}
		t.del(path)
	}
	gone, err := keyring.DestroySigningKey(*k, t.Now)
	return []keyring.SigningKey{gone}, err
}

// Readiness says whether an announced key may sign, and which nodes it waits for.
func (c *Controller) Readiness(v *state.View, k *keyring.SigningKey) keyring.Readiness {
	return keyring.ReadyToPromote(*k, c.facts(v))
}

// facts are what the nodes have acknowledged.
func (c *Controller) facts(v *state.View) keyring.PromoteFacts {
	_, since := c.Leading()
	facts := keyring.PromoteFacts{Now: c.now(), ListeningSince: since, JWKSMaxAge: jwksMaxAge(v)}
	for _, n := range v.Keyring.Nodes {
		if !n.Trusted() {
			continue
		}
		report, _ := c.Reports.Get(n.ID)
		facts.Acks = append(facts.Acks, keyring.Ack{Node: n.ID, Revision: state.RevisionOf(report.GetRevision()), ReportedAt: report.At})
	}
	return facts
}

func jwksMaxAge(v *state.View) time.Duration {
	if v.Config.Settings == nil {
		return keyring.JWKSMaxAge
	}
	return time.Duration(v.Config.Settings.JWKSMaxAge)
}

// rotateAssertionKeys announces the next key of each slot whose active one is old, asked to go, or missing.
func (c *Controller) rotateAssertionKeys(ctx context.Context, v *state.View) error {
	for name := range slotsInUse(v) {
		region, selector := assertSlot(name)
		if v.Keyring.Audiences[name] == nil || !c.slotWantsKey(v, region, selector) {
			continue
		}
		_, err := c.update(ctx, "announce assertion key for "+region, func(t *tx) error {
			if !c.slotWantsKey(t.View, region, selector) {
				return nil
			}
			a, err := t.audience(name)
			if err != nil {
				return err
			}
			key, err := c.Secrets.Audience(a)
			if err != nil {
				return err
			}
			return c.announceAssertion(t, key, region, selector, t.View.Keyring.SigningKeys)
		})
		if err != nil {
			return err
		}
		c.Logger.Info("assertion key announced", "region", region, "selector", selector)
	}
	return nil
}

// slotsInUse are the audiences of the regions and selectors that have a proxy: the others need no new keys.
func slotsInUse(v *state.View) map[string]bool {
	slots := map[string]bool{}
	for _, n := range v.Keyring.Nodes {
		if n.Trusted() && n.HasRole(keyring.RoleProxy) {
			slots[keyring.AssertAudience(n.Region, n.RouteSelector)] = true
		}
	}
	return slots
}

func (c *Controller) slotWantsKey(v *state.View, region, selector string) bool {
	period := 24 * time.Hour
	if v.Config.Settings != nil {
		period = time.Duration(v.Config.Settings.AssertionKeyRotation)
	}
	wants := true
	for _, k := range v.Keyring.SigningKeys {
		if k.Kind != keyring.SigningAssertion || k.Region != region || k.RouteSelector != selector {
			continue
		}
		switch k.State {
		case keyring.SigningAnnounced:
			return false
		case keyring.SigningActive:
			wants = k.RotateRequested || c.Now().Sub(k.ActiveAt) >= period
		}
	}
	return wants
}

// pruneBatch bounds how many revocations go with one commit.
const pruneBatch = 50

// sweep does what time does to keys, nodes and revocations.
func (c *Controller) sweep(ctx context.Context, v *state.View) error {
	var errs []error
	now := c.now()
	_, leadingSince := c.Leading()
	for _, k := range v.Keyring.Keys {
		if _, changed := keyring.SweepKey(*k, now); changed {
			errs = append(errs, c.sweepKey(ctx, k.ID))
		}
	}
	for _, n := range v.Keyring.Nodes {
		if _, changed, _ := keyring.SweepNode(*n, c.silentSince(n, leadingSince), now); changed {
			errs = append(errs, c.sweepNode(ctx, n.ID, leadingSince))
		}
	}
	errs = append(errs, c.sweepSigningKeys(ctx, v))
	var over []*keyring.Revocation
	for _, kind := range v.Keyring.Revocations {
		for _, r := range kind {
			if r.Over(now) {
				over = append(over, r)
			}
		}
	}
	for batch := range slices.Chunk(over, pruneBatch) {
		errs = append(errs, c.prune(ctx, batch))
	}
	return errors.Join(errs...)
}

// silentSince is when a node was last heard: its report, or its last certificate, which it came for itself. No leader counts silence
// from before it began to listen.
func (c *Controller) silentSince(n *keyring.Node, leadingSince time.Time) time.Time {
	silent := leadingSince
	if report, ok := c.Reports.Get(n.ID); ok && report.At.After(silent) {
		silent = report.At
	}
	if certified := certifiedAt(n); certified.After(silent) {
		silent = certified
	}
	return silent
}

// certifiedAt is when a node came for its last certificate; zero: never.
func certifiedAt(n *keyring.Node) time.Time {
	if n.CertExpiresAt.IsZero() {
		return time.Time{}
	}
	return n.CertExpiresAt.Add(-keyring.NodeCertLife)
}

func (c *Controller) sweepKey(ctx context.Context, id string) error {
	_, err := c.update(ctx, "sweep key "+id, func(t *tx) error {
		k, err := t.key(id)
		if err != nil {
			return err
		}
		if swept, changed := keyring.SweepKey(*k, t.Now); changed {
			t.put(state.PutKey(&swept))
		}
		return nil
	})
	return err
}

func (c *Controller) sweepNode(ctx context.Context, id string, leadingSince time.Time) error {
	var swept keyring.Node
	changed := false
	at, err := c.update(ctx, "sweep node "+id, func(t *tx) error {
		n, err := t.node(id)
		if err != nil {
			return err
		}
		returnUse := false
		if swept, changed, returnUse = keyring.SweepNode(*n, c.silentSince(n, leadingSince), t.Now); !changed {
			return nil
		}
		t.put(state.PutNode(&swept))
		if swept.State == keyring.NodeDeparted {
			end := c.stopSigning
			if swept.Reason == keyring.ReasonUnconfirmed { // it never said that it is there: what it signed does not count
				end = func(t *tx, id string) error { return c.revokeSigningKeysOf(t, id, "its node never confirmed") }
			}
			if err := end(t, id); err != nil {
				return err
			}
		}
		if !returnUse {
			return nil
		}
		k, err := t.key(n.ProvisioningKey)
		if err != nil {
			return err
		}
		returned := keyring.ReturnUse(*k, id, t.Now)
		t.put(state.PutKey(&returned))
		return nil
	})
	if err == nil && changed && swept.State == keyring.NodeDeparted {
		c.record(ctx, audit.KindAdmin, "leader", map[string]string{"action": "node.depart", "node": id, "name": swept.Name, "reason": swept.Reason, "revision": at.String()})
	}
	return err
}

func (c *Controller) prune(ctx context.Context, over []*keyring.Revocation) error {
	_, err := c.update(ctx, "prune revocations", func(t *tx) error {
		for _, r := range over {
			now, err := t.revocation(r.Kind, r.Value)
			if err != nil {
				return err
			}
			if now != nil && now.Over(t.Now) { // somebody may have revoked it again meanwhile
				t.del(state.RevocationPath(r.Kind, r.Value))
			}
		}
		return nil
	})
	return err
}
