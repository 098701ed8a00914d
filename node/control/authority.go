package control

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
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

// RotateAuthority makes the next authority, cross-signed with all that the mesh knows. It lies in every bundle from the returned
// revision on, and the leader lets it issue once every live node has that.
func (c *Controller) RotateAuthority(ctx context.Context, by string) (serial string, at revision.Revision, err error) {
	return c.nextAuthority(ctx, by, func(*tx) bool { return true })
}

func (c *Controller) nextAuthority(ctx context.Context, by string, wanting func(*tx) bool) (serial string, at revision.Revision, err error) {
	at, err = c.update(ctx, "rotate the CA", func(t *tx) error {
		if serial = ""; !wanting(t) {
			return nil
		}
		if serial, err = c.prepareAuthority(t); err == nil {
			t.receipt("ca.prepare", serial, by)
		}
		return err
	})
	if err != nil || serial == "" {
		return "", at, err
	}
	c.turned(ctx, by, "ca.prepare", map[string]string{"serial": serial, "revision": at.String()})
	return serial, at, nil
}

func (c *Controller) prepareAuthority(t *tx) (serial string, err error) {
	known, err := t.authorities()
	if err != nil {
		return "", err
	}
	if err := keyring.CanPrepare(known); err != nil {
		return "", withHolds(err, known, t.View, t.Now)
	}
	next, key, err := keyring.NewAuthority(c.Random, t.Now, t.View.Keyring.Mesh.TrustDomain)
	if err != nil {
		return "", err
	}
	keys := keyring.AuthorityKeys{next.Serial: key}
	for serial := range known {
		if keys[serial], err = c.authorityKey(t.View, serial); err != nil {
			return "", err
		}
	}
	changed, err := keyring.PrepareAuthority(known, keys, next, t.Now)
	if err != nil {
		return "", err
	}
	a, err := t.audience(keyring.AudienceControl)
	if err != nil {
		return "", err
	}
	audience, err := c.Secrets.Audience(a)
	if err != nil {
		return "", err
	}
	if _, err := t.get(state.AuthorityPath(next.Serial)); err != nil { // guards that it is not there yet
		return "", err
	}
	for i := range changed {
		t.put(state.PutAuthority(&changed[i]))
	}
	return next.Serial, putSecret(t, audience, caSecret(next.Serial), key.Seed())
}

// withHolds adds to a refusal what keeps each retired authority, so that whoever is refused knows what to wait for.
func withHolds(err error, known map[string]*keyring.Authority, v *state.View, now time.Time) error {
	if !fault.Is(err, fault.Exhausted) {
		return err
	}
	var kept []string
	for _, a := range known {
		holds := keyring.Holds(*a, v.Keyring.Contents, now)
		if len(holds) == 0 {
			continue
		}
		last := holds[0]
		for _, h := range holds {
			if h.Until.After(last.Until) {
				last = h
			}
		}
		kept = append(kept, fmt.Sprintf("%.8s by %d, the last %s %s until %s", a.Serial, len(holds), last.Kind, last.Name, last.Until.UTC().Format(time.RFC3339)))
	}
	slices.Sort(kept)
	return fmt.Errorf("%w (kept: %s)", err, strings.Join(kept, "; "))
}

// turnAuthorities lets a prepared authority issue once every live node knows it, forgets a retired one once nothing hangs on it, and
// prepares the next by schedule.
func (c *Controller) turnAuthorities(ctx context.Context, v *state.View) error {
	var errs []error
	for serial, a := range v.Keyring.Authorities {
		switch a.State {
		case keyring.AuthorityPrepared:
			if keyring.ReadyToActivate(*a, c.facts(v)).Ready {
				errs = append(errs, c.changeAuthorities(ctx, "ca.activate", serial, func(t *tx, known map[string]*keyring.Authority) ([]keyring.Authority, error) {
					return keyring.ActivateAuthority(known, serial, t.Now)
				}))
			}
		case keyring.AuthorityRetired:
			if len(keyring.Holds(*a, v.Keyring.Contents, c.now())) == 0 {
				errs = append(errs, c.changeAuthorities(ctx, "ca.prune", serial, func(t *tx, known map[string]*keyring.Authority) ([]keyring.Authority, error) {
					return c.forgetAuthority(t, known, serial)
				}))
			}
		}
	}
	if due := NextAuthority(v); !due.IsZero() && !c.now().Before(due) && keyring.CanPrepare(v.Keyring.Authorities) == nil {
		_, _, err := c.nextAuthority(ctx, "leader", func(t *tx) bool {
			due := NextAuthority(t.View) // the schedule may have been taken away meanwhile
			return !due.IsZero() && !t.Now.Before(due)
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// forgetAuthority forgets one authority, by the view of the commit: a key may have been issued meanwhile that pins it.
func (c *Controller) forgetAuthority(t *tx, known map[string]*keyring.Authority, serial string) ([]keyring.Authority, error) {
	if a := known[serial]; a != nil && len(keyring.Holds(*a, t.View.Keyring.Contents, t.Now)) > 0 {
		return nil, nil
	}
	changed, err := keyring.PruneAuthority(known, serial)
	if err != nil {
		return nil, err
	}
	secret := state.SecretPath(keyring.AudienceControl, caSecret(serial))
	if _, err := t.get(secret); err != nil {
		return nil, err
	}
	t.del(secret)
	t.del(state.AuthorityPath(serial))
	return changed, nil
}

func (c *Controller) changeAuthorities(ctx context.Context, action, serial string, change func(*tx, map[string]*keyring.Authority) ([]keyring.Authority, error)) error {
	done := false
	at, err := c.update(ctx, action+" "+serial, func(t *tx) error {
		known, err := t.authorities()
		if err != nil {
			return err
		}
		changed, err := change(t, known)
		if err != nil {
			return err
		}
		for i := range changed {
			t.put(state.PutAuthority(&changed[i]))
		}
		done = len(t.puts)+len(t.deletes) > 0
		return nil
	})
	if err == nil && done {
		c.turned(ctx, "leader", action, map[string]string{"serial": serial, "revision": at.String()})
	}
	return err
}

// NextAuthority is when the next authority is made by schedule; zero if there is no schedule, or one is prepared already.
func NextAuthority(v *state.View) time.Time {
	period, _, _ := v.Config.Settings.Custody()
	active := v.Keyring.ActiveAuthority()
	if period == 0 || active == nil {
		return time.Time{}
	}
	for _, a := range v.Keyring.Authorities {
		if a.State == keyring.AuthorityPrepared {
			return time.Time{}
		}
	}
	return active.ActiveSince().Add(period)
}

// authorities reads and guards every authority.
func (t *tx) authorities() (map[string]*keyring.Authority, error) {
	known := make(map[string]*keyring.Authority, len(t.View.Keyring.Authorities))
	for serial := range t.View.Keyring.Authorities {
		path := state.AuthorityPath(serial)
		a, err := read(t, path, "authority "+serial, func(p *iapmeshv1.Authority) (*keyring.Authority, error) { return state.AuthorityOf(p, t.guards[path]) })
		if err != nil {
			return nil, err
		}
		known[serial] = a
	}
	return known, nil
}

// authority returns the active authority and its private key, opened from audience control.
func (c *Controller) authority(v *state.View) (*keyring.Authority, ed25519.PrivateKey, error) {
	a := v.Keyring.ActiveAuthority()
	if a == nil {
		return nil, nil, fault.New(fault.Internal, "the mesh has no active authority")
	}
	key, err := c.authorityKey(v, a.Serial)
	return a, key, err
}

func (c *Controller) authorityKey(v *state.View, serial string) (ed25519.PrivateKey, error) {
	seed, err := c.Secrets.Open(v.Keyring, keyring.AudienceControl, caSecret(serial))
	if err != nil {
		return nil, fmt.Errorf("authority %s: private key: %w", serial, err)
	}
	if len(seed) != ed25519.SeedSize {
		return nil, fault.New(fault.Internal, "authority %s: private key of %d bytes", serial, len(seed))
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

func caSecret(serial string) string { return "ca-" + serial }

// turned says that a step of a rotation was taken.
func (c *Controller) turned(ctx context.Context, by, action string, detail map[string]string) {
	detail["action"] = action
	c.Logger.Info("rotation", "by", by, "detail", detail)
	c.record(ctx, audit.KindRotation, by, detail)
}
