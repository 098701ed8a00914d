package control

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// newRing makes the first ring of gossip keys, beside its audience.
func (c *Controller) newRing(t *tx, audience seal.AudienceKey) error {
	if err := c.makeSecret(t, audience, keyring.SecretGossipRing, 32); err != nil {
		return err
	}
	return t.putRing(keyring.NewRing(t.Now))
}

// beginRing begins to replace the gossip key. The ring is read under one audience key and written under another, the same unless a
// member goes.
func (c *Controller) beginRing(t *tx, from, to seal.AudienceKey) error {
	fresh := make([]byte, 32)
	if _, err := io.ReadFull(c.Random, fresh); err != nil {
		return fmt.Errorf("make a gossip key: %w", err)
	}
	return t.changeRing(from, to, func(r keyring.GossipRing, keys [][]byte) (keyring.GossipRing, [][]byte, error) {
		return keyring.BeginRing(r, keys, fresh, t.Now)
	})
}

func (t *tx) changeRing(from, to seal.AudienceKey, change func(keyring.GossipRing, [][]byte) (keyring.GossipRing, [][]byte, error)) error {
	ring, err := t.gossipRing()
	if err != nil {
		return err
	}
	secret, err := t.secret(keyring.AudienceGossip, keyring.SecretGossipRing)
	if err != nil {
		return err
	}
	plain, err := seal.OpenSecret(from, *secret)
	if err != nil {
		return err
	}
	keys, err := keyring.ParseRing(plain)
	if err != nil {
		return err
	}
	ring, keys, err = change(ring, keys)
	if err != nil {
		return err
	}
	if err := putSecret(t, to, keyring.SecretGossipRing, slices.Concat(keys...)); err != nil {
		return err
	}
	return t.putRing(ring)
}

func (t *tx) putRing(r keyring.GossipRing) error {
	if _, err := t.get(state.PathGossipRing); err != nil { // guards it
		return err
	}
	t.put(state.PutGossipRing(r))
	return nil
}

// gossipRing reads and guards how far the ring is. A mesh that was founded before there was a record has one key.
func (t *tx) gossipRing() (keyring.GossipRing, error) {
	r, err := read(t, state.PathGossipRing, "gossip ring", func(p *iapmeshv1.GossipRing) (keyring.GossipRing, error) {
		return state.GossipRingOf(p, t.guards[state.PathGossipRing]), nil
	})
	if fault.Is(err, fault.NotFound) {
		return keyring.GossipRing{Phase: keyring.RingSteady}, nil
	}
	return r, err
}

// RotateGossipKey begins to replace the gossip key; the leader takes the further steps as nodes acknowledge each.
func (c *Controller) RotateGossipKey(ctx context.Context, by string) (revision.Revision, error) {
	return c.nextGossipKey(ctx, by, func(*tx) bool { return true })
}

func (c *Controller) nextGossipKey(ctx context.Context, by string, wanting func(*tx) bool) (revision.Revision, error) {
	begun := false
	at, err := c.update(ctx, "rotate the gossip key", func(t *tx) error {
		if begun = wanting(t); !begun {
			return nil
		}
		ring, err := t.gossipRing()
		if err != nil {
			return err
		}
		if ring.Phase != keyring.RingSteady {
			return fault.New(fault.Conflict, "the gossip key is being replaced since %s: phase %s", ring.BegunAt.UTC().Format(time.RFC3339), ring.Phase)
		}
		key, err := c.gossipAudience(t)
		if err != nil {
			return err
		}
		t.receipt("gossip.install", keyring.SecretGossipRing, by)
		return c.beginRing(t, key, key)
	})
	if err == nil && begun {
		c.turned(ctx, by, "gossip.install", map[string]string{"revision": at.String()})
	}
	return at, err
}

func (c *Controller) gossipAudience(t *tx) (seal.AudienceKey, error) {
	a, err := t.audience(keyring.AudienceGossip)
	if err != nil {
		return seal.AudienceKey{}, err
	}
	return c.Secrets.Audience(a)
}

// turnGossipRing takes the next step of a change of the gossip key once every live node has the one before, and begins one by schedule.
func (c *Controller) turnGossipRing(ctx context.Context, v *state.View) error {
	if due := NextGossipKey(v); !due.IsZero() && !c.now().Before(due) {
		_, err := c.nextGossipKey(ctx, "leader", func(t *tx) bool {
			due := NextGossipKey(t.View) // the schedule may have been taken away meanwhile
			return !due.IsZero() && !t.Now.Before(due)
		})
		return err
	}
	ring := v.Keyring.GossipRing
	if ring.Phase != keyring.RingInstall && ring.Phase != keyring.RingUse || !keyring.ReadyToAdvance(ring, c.facts(v)).Ready {
		return nil
	}
	moved := false
	at, err := c.update(ctx, "turn the gossip ring", func(t *tx) error {
		now, err := t.gossipRing()
		if err != nil {
			return err
		}
		if moved = now.Revision == ring.Revision; !moved {
			return nil // another change began meanwhile, which nobody has acknowledged
		}
		key, err := c.gossipAudience(t)
		if err != nil {
			return err
		}
		return t.changeRing(key, key, func(r keyring.GossipRing, keys [][]byte) (keyring.GossipRing, [][]byte, error) {
			return keyring.AdvanceRing(r, keys, t.Now)
		})
	})
	if err == nil && moved {
		action := "gossip.use"
		if ring.Phase == keyring.RingUse {
			action = "gossip.remove"
		}
		c.turned(ctx, "leader", action, map[string]string{"revision": at.String()})
	}
	return err
}

// NextGossipKey is when the gossip key is replaced by schedule; zero if there is no schedule, or a change is under way.
func NextGossipKey(v *state.View) time.Time {
	_, _, period := v.Config.Settings.Custody()
	ring, secret := v.Keyring.GossipRing, v.Keyring.Secrets[keyring.AudienceGossip+"/"+keyring.SecretGossipRing]
	switch {
	case period == 0 || ring.Phase == keyring.RingInstall || ring.Phase == keyring.RingUse:
		return time.Time{}
	case !ring.BegunAt.IsZero():
		return ring.BegunAt.Add(period)
	case secret != nil:
		return secret.At.Add(period)
	}
	return time.Time{}
}
