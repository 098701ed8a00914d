package control

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/state"
)

// Founding is what init commits: the mesh, its authority, its first node, administrator and key.
type Founding struct {
	Mesh         keyring.Mesh
	Authority    *keyring.Authority
	AuthorityKey ed25519.PrivateKey
	Node         *keyring.Node
	SealingKey   seal.SealingKey // of the node
	Admin        *keyring.Admin
	Keys         []keyring.Key // the first is the bootstrap key, under whose id the first node counts
}

// Found commits the first state of a mesh into an empty store. A store that holds a mesh is refused.
func Found(ctx context.Context, s store.Store, f Founding) error {
	v := &state.View{Keyring: keyring.NewSnapshot(store.Revision{}, keyring.Contents{
		Mesh: f.Mesh, Nodes: map[string]*keyring.Node{f.Node.ID: f.Node}, SigningKeys: map[string]*keyring.SigningKey{},
	})}
	t := newTx(ctx, s, v, f.Mesh.FoundedAt)
	have, err := t.get(state.PathMesh)
	if err != nil {
		return err
	}
	if have != nil {
		return fault.New(fault.Conflict, "found a mesh: the store holds one already")
	}
	c := &Controller{Config: Config{NodeID: f.Node.ID, Random: rand.Reader}}
	t.put(state.PutMesh(f.Mesh))
	t.put(state.PutAuthority(f.Authority))
	t.put(state.PutAdmin(f.Admin))
	t.put(state.PutNode(f.Node))
	for i := range f.Keys {
		t.put(state.PutKey(&f.Keys[i]))
	}
	if err := c.firstSessionKey(t, f.Node); err != nil {
		return err
	}
	if err := c.enlist(t, f.Node); err != nil {
		return err
	}
	if err := c.storeAuthorityKey(t, f); err != nil {
		return err
	}
	if _, err := s.Commit(ctx, t.txn(0)); err != nil {
		return fmt.Errorf("found a mesh: %w", err)
	}
	return nil
}

// storeAuthorityKey puts the CA's private key under audience control, which enlist has just begun.
func (c *Controller) storeAuthorityKey(t *tx, f Founding) error {
	a, err := t.audience(keyring.AudienceControl)
	if err != nil {
		return err
	}
	key, err := seal.OpenAudience(*a, f.Node.ID, f.SealingKey)
	if err != nil {
		return err
	}
	return putSecret(t, key, caSecret(f.Authority.Serial), f.AuthorityKey.Seed())
}
