package control

import (
	"context"
	"maps"
	"slices"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Save returns the whole state at one revision, no older than the call, with the audiences' keys wrapped to a key of the caller's: the
// snapshot can then be restored where no node is left that could open them.
func (c *Controller) Save(ctx context.Context, by string, opening []byte) (*iapmeshv1.SnapshotHeader, []store.Entry, error) {
	if _, err := c.mustLead(); err != nil {
		return nil, nil, err
	}
	at, err := c.Store.Sync(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := c.Store.Wait(ctx, at); err != nil {
		return nil, nil, err
	}
	entries, at, err := c.Store.List(ctx, "")
	if err != nil {
		return nil, nil, err
	}
	v, err := state.Build(entries, at)
	if err != nil {
		c.Logger.Warn("snapshot of a state that is not understood as a whole", "error", err)
	}
	header := &iapmeshv1.SnapshotHeader{
		MeshId: v.Keyring.Mesh.ID, TrustDomain: v.Keyring.Mesh.TrustDomain, Revision: state.RevisionProto(at), Time: state.Stamp(c.now()), By: by,
	}
	if header.MeshId == "" {
		return nil, nil, fault.New(fault.Internal, "save: the state names no mesh")
	}
	for _, name := range slices.Sorted(maps.Keys(v.Keyring.Audiences)) {
		a := v.Keyring.Audiences[name]
		key, err := c.Secrets.Audience(a)
		if err != nil {
			return nil, nil, fault.New(fault.Unavailable, "save: audience %s is just being aligned: try again: %w", name, err)
		}
		wrapped, err := seal.WrapForSnapshot(key, opening)
		if err != nil {
			return nil, nil, err
		}
		header.Audiences = append(header.Audiences, &iapmeshv1.AudienceWrap{Name: name, Version: a.Version, Wrapped: wrapped})
	}
	c.record(ctx, audit.KindAdmin, by, map[string]string{"action": "snapshot.save", "revision": at.String()})
	return header, entries, nil
}
