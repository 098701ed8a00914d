package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// attempts bounds how often a conflicting commit is decided anew.
const attempts = 16

// tx gathers one commit: whatever it reads, present or absent, becomes a guard, so that the commit stands only if all that was
// decided upon still holds.
type tx struct {
	ctx     context.Context
	store   store.Reader
	Now     time.Time
	View    *state.View // at least as new as every record that is read
	listed  bool        // it writes what an operator's list of a restoration says, and may let in what the restoration holds back
	certain bool        // also what writes nothing is confirmed by a commit: this node still leads, and what it read still holds
	guards  map[string]store.Revision
	puts    map[string]store.Entry
	deletes map[string]bool

	act       *keyring.Act // of which the commit leaves a receipt
	receiptID string       // of that receipt, once it is among the puts
}

func newTx(ctx context.Context, s store.Reader, v *state.View, now time.Time) *tx {
	return &tx{ctx: ctx, store: s, Now: now, View: v, guards: map[string]store.Revision{}, puts: map[string]store.Entry{}, deletes: map[string]bool{}}
}

// update runs decide on fresh reads until its commit stands or is refused. One runs at a time: a rule over many records (names are
// unique, a slot has one announced key, an audience's secrets have its version) holds because nobody writes in between.
func (c *Controller) update(ctx context.Context, what string, decide func(*tx) error) (store.Revision, error) {
	select {
	case c.writing <- struct{}{}:
		defer func() { <-c.writing }()
	case <-ctx.Done():
		return store.Revision{}, fmt.Errorf("%s: %w", what, fault.Wrap(fault.Unavailable, context.Cause(ctx)))
	}
	return c.updateAmongOthers(ctx, what, decide)
}

// updateAmongOthers is update for what concerns the records that it guards alone, and need not wait for others.
func (c *Controller) updateAmongOthers(ctx context.Context, what string, decide func(*tx) error) (store.Revision, error) {
	for range attempts {
		term, err := c.mustLead()
		if err != nil {
			return store.Revision{}, err
		}
		if err := c.catchUp(ctx, store.Term(term)); err != nil {
			return store.Revision{}, fmt.Errorf("%s: %w", what, err)
		}
		view, err := c.view()
		if err != nil {
			return store.Revision{}, err
		}
		t := newTx(ctx, c.Store, view, c.now())
		if err = decide(t); err == nil {
			err = t.keepsHeld()
		}
		if newest := t.newest(); view.Revision.Before(newest) {
			// The view is older than a record that was read: what was decided on both is worth nothing.
			if _, err := c.Source.WaitRevision(ctx, newest); err != nil {
				return store.Revision{}, fmt.Errorf("%s: %w", what, err)
			}
			continue
		}
		if err == nil {
			err = c.putReceipt(t)
		}
		if err != nil {
			return store.Revision{}, fmt.Errorf("%s: %w", what, err)
		}
		if len(t.puts)+len(t.deletes) == 0 && !t.certain {
			return view.Revision, nil
		}
		at, err := c.Store.Commit(ctx, t.txn(store.Term(term)))
		switch {
		case err == nil && len(t.puts)+len(t.deletes) == 0:
			return view.Revision, nil
		case err == nil:
			c.show(ctx, what, at)
			c.rememberReceipt(at, t.receiptID)
			return at, nil
		case fault.Is(err, fault.Conflict):
			continue
		case errors.Is(err, store.ErrInDoubt):
			c.doubt()
		}
		if _, notLeading := c.mustLead(); notLeading != nil && !errors.Is(err, store.ErrInDoubt) {
			return store.Revision{}, notLeading
		}
		return store.Revision{}, fmt.Errorf("%s: %w", what, err)
	}
	if _, err := c.mustLead(); err != nil {
		return store.Revision{}, err
	}
	return store.Revision{}, fault.New(fault.Unavailable, "%s: others changed the same records %d times: try again", what, attempts)
}

// showTimeout bounds how long an answer waits until this node's own view holds what was committed.
const showTimeout = 10 * time.Second

// show waits until what was committed holds on this node, so that whoever asks it next sees what was done. It is done in any case:
// a caller that goes away changes nothing.
func (c *Controller) show(ctx context.Context, what string, at store.Revision) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), showTimeout)
	defer cancel()
	if _, err := c.Source.WaitRevision(ctx, at); err != nil {
		c.Logger.Error("committed, but this node's view lags", "act", what, "revision", at.String(), "error", err)
	}
}

// catchUp makes reads and view as new as everything that was committed, where that is not known: in a new term, and after a
// commit whose fate is not known.
func (c *Controller) catchUp(ctx context.Context, term store.Term) error {
	c.mu.Lock()
	caughtUp := c.caughtUp == term
	c.mu.Unlock()
	if caughtUp {
		return nil
	}
	at, err := c.Store.Sync(ctx)
	if err != nil {
		return err
	}
	v, err := c.Source.WaitRevision(ctx, at)
	if err != nil {
		return err
	}
	latest := latestTime(v)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.caughtUp = term
	if c.clock.Before(latest) {
		c.clock = latest
	}
	return nil
}

// latestTime is the latest time that a leader before this one has written.
func latestTime(v *state.View) time.Time {
	latest := v.Keyring.Mesh.FoundedAt
	see := func(t time.Time) {
		if t.After(latest) {
			latest = t
		}
	}
	for _, n := range v.Keyring.Nodes {
		see(n.StateSince)
	}
	for _, k := range v.Keyring.Keys {
		see(k.CreatedAt)
		see(k.ApprovedAt)
		see(k.RevokedAt)
		if k.ProposedBy != "" {
			see(k.NotBefore) // when its rotation was completed
		}
	}
	for _, k := range v.Keyring.SigningKeys {
		see(k.StateSince)
	}
	for _, a := range v.Keyring.Audiences {
		see(a.RotatedAt)
	}
	for _, a := range v.Keyring.Authorities {
		see(a.CreatedAt)
		see(a.ActiveAt)
		see(a.RetiredAt)
	}
	see(v.Keyring.GossipRing.Since)
	for _, a := range v.Keyring.Admins {
		see(a.CreatedAt)
		see(a.RevokedAt)
	}
	for _, r := range v.Keyring.Receipts {
		see(r.At)
		see(r.LiveAt)
	}
	for _, kind := range v.Keyring.Revocations {
		for _, r := range kind {
			see(r.At)
		}
	}
	return latest
}

func (c *Controller) doubt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.caughtUp = 0
}

// newest is the latest revision of what was read.
func (t *tx) newest() store.Revision {
	var newest store.Revision
	for _, at := range t.guards {
		if newest.Before(at) {
			newest = at
		}
	}
	return newest
}

func (t *tx) txn(term store.Term) store.Txn {
	txn := store.Txn{Term: term}
	for key, at := range t.guards {
		txn.Guards = append(txn.Guards, store.Guard{Key: key, Revision: at})
	}
	for _, e := range t.puts {
		txn.Puts = append(txn.Puts, e)
	}
	for key := range t.deletes {
		txn.Deletes = append(txn.Deletes, key)
	}
	return txn
}

// get reads and guards one record; absent is nil without an error.
func (t *tx) get(key string) (*store.Entry, error) {
	if e, ok := t.puts[key]; ok {
		return &e, nil
	}
	if t.deletes[key] {
		return nil, nil
	}
	e, err := t.store.Get(t.ctx, key)
	if fault.Is(err, fault.NotFound) {
		t.guards[key] = store.Revision{}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t.guards[key] = e.Revision
	return &e, nil
}

// size is how many bytes the commit has by now.
func (t *tx) size() int {
	n := 0
	for key, e := range t.puts {
		n += len(key) + len(e.Value)
	}
	for key := range t.deletes {
		n += len(key)
	}
	return n
}

func (t *tx) put(e store.Entry) {
	delete(t.deletes, e.Key)
	t.puts[e.Key] = e
}

func (t *tx) del(key string) {
	delete(t.puts, key)
	t.deletes[key] = true
}

func read[T any, P interface {
	*T
	proto.Message
}, D any](t *tx, key, what string, convert func(P) (D, error)) (D, error) {
	var none D
	e, err := t.get(key)
	if err != nil {
		return none, err
	}
	if e == nil {
		return none, fault.New(fault.NotFound, "no %s", what)
	}
	p := P(new(T))
	if err := proto.Unmarshal(e.Value, p); err != nil {
		return none, fault.New(fault.Internal, "decode %s: %w", key, err)
	}
	return convert(p)
}

func (t *tx) key(id string) (*keyring.Key, error) {
	return read(t, state.KeyPath(id), "provisioning key "+id, state.KeyOf)
}

func (t *tx) node(id string) (*keyring.Node, error) {
	return read(t, state.NodePath(id), "node "+id, state.NodeOf)
}

func (t *tx) signingKey(kid string) (*keyring.SigningKey, error) {
	return read(t, state.SigningKeyPath(kid), "signing key "+kid, func(p *iapmeshv1.SigningKey) (*keyring.SigningKey, error) {
		return state.SigningKeyOf(p, t.guards[state.SigningKeyPath(kid)]), nil
	})
}

func (t *tx) audience(name string) (*keyring.Audience, error) {
	return read(t, state.AudiencePath(name), "audience "+name, func(p *iapmeshv1.Audience) (*keyring.Audience, error) { return state.AudienceOf(p), nil })
}

func (t *tx) admin(id string) (*keyring.Admin, error) {
	return read(t, state.AdminPath(id), "administrator "+id, func(p *iapmeshv1.Admin) (*keyring.Admin, error) { return state.AdminOf(p), nil })
}

func (t *tx) manifest() (*iapmeshv1.Manifest, error) {
	m, err := read(t, state.PathManifest, "manifest", func(p *iapmeshv1.Manifest) (*iapmeshv1.Manifest, error) { return p, nil })
	if fault.Is(err, fault.NotFound) {
		return &iapmeshv1.Manifest{}, nil
	}
	return m, err
}
