package control

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/state"
)

// RotateAudience gives an audience a new key for the members that it has, and encrypts its secrets again. What they hold stays.
func (c *Controller) RotateAudience(ctx context.Context, by, name string) (revision.Revision, error) {
	return c.rekey(ctx, by, name, func(*keyring.Audience, *tx) bool { return true })
}

// turnAudienceKeys gives each audience whose key is old a new one, by a commit of its own.
func (c *Controller) turnAudienceKeys(ctx context.Context, v *state.View) error {
	var errs []error
	for name, a := range v.Keyring.Audiences {
		if due := NextAudienceKey(v, a); due.IsZero() || c.now().Before(due) {
			continue
		}
		_, err := c.rekey(ctx, "leader", name, func(a *keyring.Audience, t *tx) bool {
			due := NextAudienceKey(t.View, a)
			return !due.IsZero() && !t.Now.Before(due)
		})
		errs = append(errs, err) // one that cannot be turned keeps no other from it
	}
	return errors.Join(errs...)
}

// NextAudienceKey is when an audience gets its next key by schedule; zero if there is no schedule.
func NextAudienceKey(v *state.View, a *keyring.Audience) time.Time {
	_, period, _ := v.Config.Settings.Custody()
	if period == 0 {
		return time.Time{}
	}
	return a.RotatedAt.Add(period)
}

func (c *Controller) rekey(ctx context.Context, by, name string, wanting func(*keyring.Audience, *tx) bool) (revision.Revision, error) {
	version := uint32(0)
	at, err := c.update(ctx, "rotate the key of audience "+name, func(t *tx) error {
		a, err := t.audience(name)
		if err != nil {
			return err
		}
		if version = 0; !wanting(a, t) {
			return nil
		}
		members := wanted(t.View.Keyring.Nodes, t.View.Keyring.Audiences)[name]
		version = a.Version + 1
		t.receipt("audience.rotate", name, by)
		if _, extra := compareMembers(a, members); len(extra) > 0 {
			return c.expel(t, a, members) // somebody has gone whom the leader has not come to yet: this is more
		}
		return c.reseal(t, a, members)
	})
	if err == nil && version > 0 {
		c.turned(ctx, by, "audience.rotate", map[string]string{"audience": name, "version": strconv.FormatUint(uint64(version), 10), "revision": at.String()})
	}
	return at, err
}

// reseal begins an audience's next version for members that may all stay: its secrets are encrypted again, the old wraps go.
func (c *Controller) reseal(t *tx, a *keyring.Audience, members map[string][]byte) error {
	old, err := c.Secrets.Audience(a)
	if err != nil {
		return err
	}
	next, key, err := seal.Rotate(*a, members, t.Now)
	if err != nil {
		return err
	}
	t.put(state.PutAudience(&next))
	for _, s := range t.View.Keyring.Secrets {
		if s.Audience != a.Name {
			continue
		}
		fresh, err := t.secret(s.Audience, s.Name)
		if err != nil {
			return err
		}
		resealed, err := seal.Reseal(old, key, *fresh, t.Now)
		if err != nil {
			return fmt.Errorf("audience %s: secret %s: %w", a.Name, s.Name, err)
		}
		t.put(state.PutSecret(&resealed))
	}
	return nil
}

// recordExpulsion records that an audience got another key since it was as given, because a member went.
func (c *Controller) recordExpulsion(ctx context.Context, before *keyring.Audience) {
	v := c.Source.Load()
	if before == nil || v == nil || v.Keyring.Audiences[before.Name] == nil {
		return
	}
	now := v.Keyring.Audiences[before.Name]
	if now.Version == before.Version {
		return
	}
	detail := map[string]string{"audience": now.Name, "version": strconv.FormatUint(uint64(now.Version), 10), "revision": v.Revision.String()}
	if _, gone := compareMembers(before, memberSet(now)); len(gone) > 0 {
		detail["gone"] = joined(gone)
	}
	c.turned(ctx, "leader", "audience.expel", detail)
}

func memberSet(a *keyring.Audience) map[string][]byte {
	set := make(map[string][]byte, len(a.Wraps))
	for _, w := range a.Wraps {
		set[w.Node] = nil
	}
	return set
}
