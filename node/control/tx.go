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
	View    *state.View // for what need not be guarded: it may be older than the records that are read
	guards  map[string]store.Revision
	puts    map[string]store.Entry
	deletes map[string]bool
}

func newTx(ctx context.Context, s store.Reader, v *state.View, now time.Time) *tx {
	return &tx{ctx: ctx, store: s, Now: now, View: v, guards: map[string]store.Revision{}, puts: map[string]store.Entry{}, deletes: map[string]bool{}}
}

// update runs decide on fresh reads until its commit stands or is refused.
func (c *Controller) update(ctx context.Context, what string, decide func(*tx) error) (store.Revision, error) {
	for range attempts {
		term, err := c.mustLead()
		if err != nil {
			return store.Revision{}, err
		}
		view, err := c.view()
		if err != nil {
			return store.Revision{}, err
		}
		t := newTx(ctx, c.Store, view, c.now())
		if err := decide(t); err != nil {
			return store.Revision{}, fmt.Errorf("%s: %w", what, err)
		}
		if len(t.puts)+len(t.deletes) == 0 {
			return view.Revision, nil
		}
		at, err := c.Store.Commit(ctx, t.txn(store.Term(term)))
		switch {
		case err == nil:
			// The answer to a caller holds on this node at once: whoever asks it next sees what was done.
			if _, err := c.Source.WaitRevision(ctx, at); err != nil {
				return at, fmt.Errorf("%s: committed at %s: %w", what, at, err)
			}
			return at, nil
		case fault.Is(err, fault.Conflict):
			continue
		case errors.Is(err, store.ErrInDoubt):
			return store.Revision{}, fmt.Errorf("%s: %w", what, err)
		default:
			return store.Revision{}, fmt.Errorf("%s: %w", what, err)
		}
	}
	return store.Revision{}, fault.New(fault.Conflict, "%s: others changed the same records %d times: try again", what, attempts)
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

func (t *tx) manifest() (*iapmeshv1.Manifest, error) {
	m, err := read(t, state.PathManifest, "manifest", func(p *iapmeshv1.Manifest) (*iapmeshv1.Manifest, error) { return p, nil })
	if fault.Is(err, fault.NotFound) {
		return &iapmeshv1.Manifest{}, nil
	}
	return m, err
}
