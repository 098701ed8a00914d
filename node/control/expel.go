package control

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/state"
)

// expel begins an audience's next version for exactly these members. What the departed could open is renewed where the leader makes
// it: an assertion key gets a successor, the hand-off key a new value, and the gossip key begins to be replaced by one that the
// departed cannot open; the rest is encrypted again.
func (c *Controller) expel(t *tx, a *keyring.Audience, members map[string][]byte) error {
	old, err := c.Secrets.Audience(a)
	if err != nil {
		return err
	}
	next, key, err := seal.Rotate(*a, members, t.Now)
	if err != nil {
		return err
	}
	t.put(state.PutAudience(&next))
	expelled := slices.ContainsFunc(a.Wraps, func(w keyring.Wrap) bool {
		n := t.View.Keyring.Nodes[w.Node]
		return members[w.Node] == nil && (n == nil || n.State == keyring.NodeRevoked)
	})
	keys := maps.Clone(t.View.Keyring.SigningKeys)
	for _, s := range t.View.Keyring.Secrets {
		if s.Audience != a.Name {
			continue
		}
		fresh, err := t.secret(s.Audience, s.Name)
		if err != nil {
			return err
		}
		if a.Name == keyring.AudienceGossip && s.Name == keyring.SecretGossipRing {
			if err := c.beginRing(t, old, key); err != nil {
				return err
			}
			continue
		}
		if a.Name == keyring.AudienceProxies && s.Name == keyring.SecretHandoff {
			if err := c.makeSecret(t, key, s.Name, 32); err != nil {
				return err
			}
			continue
		}
		if k := t.View.Keyring.SigningKeys[s.Name]; k != nil && strings.HasPrefix(a.Name, "assert/") && (expelled || k.State == keyring.SigningAnnounced) {
			// Whoever leaves holds it. One that was announced has signed nothing yet: the slot gets another. One that is in use
			// gets a successor in the ordinary way, below, unless somebody was revoked: he is not trusted for a moment longer.
			dropped, err := t.dropAssertionKey(k, state.SecretPath(s.Audience, s.Name))
			if err != nil {
				return err
			}
			keys[k.KID] = dropped
			continue
		}
		resealed, err := seal.Reseal(old, key, *fresh, t.Now)
		if err != nil {
			return fmt.Errorf("audience %s: secret %s: %w", a.Name, s.Name, err)
		}
		t.put(state.PutSecret(&resealed))
		if err := renewAssertionKey(t, s.Name); err != nil {
			return err
		}
	}
	if expelled && strings.HasPrefix(a.Name, "assert/") {
		region, selector := assertSlot(a.Name)
		return c.announceAssertion(t, key, region, selector, keys) // nothing else of its slot is active: it signs at once
	}
	return nil
}

// dropAssertionKey revokes an assertion key, if it still verifies, and deletes its private half.
func (t *tx) dropAssertionKey(k *keyring.SigningKey, secret string) (*keyring.SigningKey, error) {
	t.del(secret)
	if !k.Verifies() {
		return k, nil
	}
	fresh, err := t.signingKey(k.KID)
	if err != nil {
		return nil, err
	}
	revoked, err := keyring.RevokeSigningKey(*fresh, "a node that could open it is gone", t.Now)
	if err != nil {
		return nil, err
	}
	t.put(state.PutSigningKey(&revoked))
	return &revoked, nil
}

// renewAssertionKey asks for a successor if the secret is an active assertion key's private half.
func renewAssertionKey(t *tx, kid string) error {
	if k := t.View.Keyring.SigningKeys[kid]; k == nil || k.State != keyring.SigningActive {
		return nil
	}
	fresh, err := t.signingKey(kid)
	if err != nil {
		return err
	}
	asked, err := keyring.RequestRotation(*fresh)
	if err != nil {
		return err
	}
	t.put(state.PutSigningKey(&asked))
	return nil
}

// announceAssertion makes an assertion key for a slot and stores its private half under the slot's audience.
func (c *Controller) announceAssertion(t *tx, key seal.AudienceKey, region, selector string, keys map[string]*keyring.SigningKey) error {
	private, err := ecdsa.GenerateKey(elliptic.P256(), c.Random)
	if err != nil {
		return err
	}
	spki, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return err
	}
	k, err := keyring.AnnounceAssertionKey(region, selector, spki, keys, t.Now)
	if err != nil {
		return err
	}
	if _, err := t.get(state.SigningKeyPath(k.KID)); err != nil {
		return err
	}
	t.put(state.PutSigningKey(&k))
	return putSecret(t, key, k.KID, der)
}

// knownAssertionKeys are the assertion keys that count still and that a node could open before it was cut off: a proxy those of its
// slot, a control node all. Where it was only quarantined, or has left, they get a successor in the ordinary way. It is a member of
// their audiences no more, so that nobody will be expelled should it be revoked then.
func knownAssertionKeys(v *state.View, was *keyring.Node) []*keyring.SigningKey {
	if was.State != keyring.NodeQuarantined && was.State != keyring.NodeDeparted {
		return nil
	}
	own := keyring.AssertAudience(was.Region, was.RouteSelector)
	var known, announced []*keyring.SigningKey
	signs := map[string]bool{} // by audience
	for _, k := range v.Keyring.VerifyingKeys(keyring.SigningAssertion) {
		slot := keyring.AssertAudience(k.Region, k.RouteSelector)
		switch {
		case !was.HasRole(keyring.RoleControl) && (!was.HasRole(keyring.RoleProxy) || slot != own):
		case !k.AnnouncedAt.After(was.StateSince):
			known, signs[slot] = append(known, k), signs[slot] || k.State == keyring.SigningActive
		case k.State == keyring.SigningAnnounced:
			announced = append(announced, k)
		}
	}
	for _, k := range announced { // else the slot would wait for it; once it is empty, the leader makes one that signs at once
		if signs[keyring.AssertAudience(k.Region, k.RouteSelector)] {
			known = append(known, k)
		}
	}
	return known
}

// distrustRoom is how many records a commit may write and still have room for one more node that is revoked, with its session keys.
const distrustRoom = store.MaxOps * 4 / 5

// distrust revokes what a node that is revoked could open before it was cut off: it is not trusted for a moment longer. Where the
// commit has no room for all of it, the node must wait for another.
func (c *Controller) distrust(t *tx, was *keyring.Node) (all bool, err error) {
	if len(t.puts) >= distrustRoom {
		return false, nil
	}
	for _, k := range knownAssertionKeys(t.View, was) {
		fresh, err := t.signingKey(k.KID)
		if err != nil {
			return false, err
		}
		revoked, err := keyring.RevokeSigningKey(*fresh, "a node that could open it was revoked", t.Now)
		if err != nil {
			return false, err
		}
		t.put(state.PutSigningKey(&revoked))
		if len(t.puts) >= distrustRoom {
			return false, nil
		}
	}
	return true, nil
}
