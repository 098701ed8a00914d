package control

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// wanted is the audiences that there should be, each with its members: the nodes that must open its secrets. Control nodes are
// members of all, whoever leads must be able to add a member, and of those that nobody else needs any more, too: else whoever left
// last could still open what is written there next.
func wanted(nodes map[string]*keyring.Node, have map[string]*keyring.Audience) map[string]map[string][]byte {
	out := map[string]map[string][]byte{keyring.AudienceControl: {}, keyring.AudienceGossip: {}, keyring.AudienceProxies: {}}
	for name := range have {
		out[name] = map[string][]byte{}
	}
	for _, n := range nodes {
		for _, name := range uses(n) {
			if out[name] == nil {
				out[name] = map[string][]byte{}
			}
			out[name][n.ID] = n.SealingPublicKey
		}
	}
	for _, n := range nodes {
		if n.Trusted() && n.HasRole(keyring.RoleControl) {
			for name := range out {
				out[name][n.ID] = n.SealingPublicKey
			}
		}
	}
	maps.DeleteFunc(out, func(_ string, members map[string][]byte) bool { return len(members) == 0 })
	return out
}

// uses lists the audiences whose secrets a node needs for its own work.
func uses(n *keyring.Node) []string {
	if !n.Trusted() {
		return nil
	}
	names := []string{keyring.AudienceGossip}
	if n.HasRole(keyring.RoleControl) {
		names = append(names, keyring.AudienceControl)
	}
	if n.HasRole(keyring.RoleProxy) {
		names = append(names, keyring.AudienceProxies, keyring.AssertAudience(n.Region, n.RouteSelector))
	}
	return names
}

// enlist makes a joining node a member of the audiences that it uses, in the commit that enrols it: it can open what it needs with
// its first view. An audience that is new with it begins with its first secret. The others, of which a control node is a member so
// that it can lead, come with alignAudiences, each in a commit of its own: all in one would be too large.
func (c *Controller) enlist(t *tx, n *keyring.Node) error {
	nodes := maps.Clone(t.View.Keyring.Nodes)
	nodes[n.ID] = n
	all := wanted(nodes, t.View.Keyring.Audiences)
	for _, name := range uses(n) {
		if err := c.align(t, name, all[name]); err != nil {
			return err
		}
	}
	return nil
}

// align brings one audience in step with its members: it begins it, adds who is missing, or, if somebody has to go, begins a new
// version under a new key with every secret encrypted again, so that the old key opens nothing that is written from here on.
func (c *Controller) align(t *tx, name string, members map[string][]byte) error {
	a, err := t.audience(name)
	if fault.Is(err, fault.NotFound) {
		return c.beginAudience(t, name, members)
	}
	if err != nil {
		return err
	}
	missing, extra := compareMembers(a, members)
	switch {
	case len(extra) > 0:
		return c.expel(t, a, members)
	case len(missing) > 0:
		key, err := c.Secrets.Audience(a)
		if err != nil {
			return err
		}
		next := *a
		for _, id := range missing {
			if next, err = seal.AddMember(next, key, id, members[id]); err != nil {
				return err
			}
		}
		t.put(state.PutAudience(&next))
	}
	return nil
}

func compareMembers(a *keyring.Audience, members map[string][]byte) (missing, extra []string) {
	have := map[string]bool{}
	for _, w := range a.Wraps {
		have[w.Node] = true
		if _, ok := members[w.Node]; !ok {
			extra = append(extra, w.Node)
		}
	}
	for id := range members {
		if !have[id] {
			missing = append(missing, id)
		}
	}
	slices.Sort(missing)
	return missing, extra
}

func (c *Controller) beginAudience(t *tx, name string, members map[string][]byte) error {
	a, key, err := seal.NewAudience(name, members, t.Now)
	if err != nil {
		return err
	}
	t.put(state.PutAudience(&a))
	switch {
	case name == keyring.AudienceGossip:
		return c.newRing(t, key)
	case name == keyring.AudienceProxies:
		return c.makeSecret(t, key, keyring.SecretHandoff, 32)
	case strings.HasPrefix(name, "assert/"):
		region, selector := assertSlot(name)
		return c.announceAssertion(t, key, region, selector, t.View.Keyring.SigningKeys)
	}
	return nil
}

func assertSlot(audience string) (region, selector string) {
	region, selector, _ = strings.Cut(strings.TrimPrefix(audience, "assert/"), "/")
	if selector == "_" {
		selector = ""
	}
	return region, selector
}

func (c *Controller) makeSecret(t *tx, key seal.AudienceKey, name string, size int) error {
	value := make([]byte, size)
	if _, err := io.ReadFull(c.Random, value); err != nil {
		return fmt.Errorf("make secret %s: %w", name, err)
	}
	return putSecret(t, key, name, value)
}

func putSecret(t *tx, key seal.AudienceKey, name string, value []byte) error {
	s, err := seal.NewSecret(key, name, value, t.Now)
	if err != nil {
		return err
	}
	if _, err := t.get(state.SecretPath(s.Audience, s.Name)); err != nil {
		return err
	}
	t.put(state.PutSecret(&s))
	return nil
}

func (t *tx) secret(audience, name string) (*keyring.Secret, error) {
	return read(t, state.SecretPath(audience, name), "secret "+audience+"/"+name, func(p *iapmeshv1.Secret) (*keyring.Secret, error) { return state.SecretOf(p), nil })
}

// The bounds of the secrets of the proxies, in all: when a proxy is revoked they are encrypted anew in one commit, beside the
// wraps for everybody else.
const (
	maxSecrets     = 64
	maxSecretBytes = 512 << 10
)

func roomFor(v *state.View, name string, size int) error {
	count, total := 1, size
	for _, s := range v.Keyring.Secrets {
		if s.Audience == keyring.AudienceProxies && s.Name != name {
			count, total = count+1, total+len(s.Ciphertext)
		}
	}
	if count > maxSecrets || total > maxSecretBytes {
		return fault.New(fault.Exhausted, "secret %s: with it there would be %d secrets of %d bytes, at most %d of %d", name, count, total, maxSecrets, maxSecretBytes)
	}
	return nil
}

// SetSecret stores a value for the proxies, such as an identity provider's client secret. It is never read back by the API.
func (c *Controller) SetSecret(ctx context.Context, by, name string, value []byte) (revision.Revision, error) {
	if err := keyring.ValidName("secret", name); err != nil {
		return revision.Revision{}, err
	}
	if len(value) == 0 || len(value) > 64<<10 {
		return revision.Revision{}, fault.New(fault.Invalid, "secret %s: %d bytes, want 1 to %d", name, len(value), 64<<10)
	}
	at, err := c.update(ctx, "set secret "+name, func(t *tx) error {
		a, err := t.audience(keyring.AudienceProxies)
		if err != nil {
			return err
		}
		key, err := c.Secrets.Audience(a)
		if err != nil {
			return err
		}
		if err := roomFor(t.View, keyring.UserSecret(name), len(value)); err != nil {
			return err
		}
		return putSecret(t, key, keyring.UserSecret(name), value)
	})
	if err == nil {
		c.record(ctx, audit.KindAdmin, by, map[string]string{"action": "secret.set", "name": name})
	}
	return at, err
}
