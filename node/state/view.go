// Package state turns the replicated state into the one immutable View that every request, stream and lifecycle reads: it holds
// the codecs between the store's entries and the domain, and the Source that follows a store and swaps views.
//
// Invariants. A View is one revision of everything: keys, nodes, revocations, routes, policies. It never changes once published,
// and published revisions only grow. A manifest that this node cannot compile leaves the configuration before it in force and is
// reported; keys and revocations go on all the same.
package state

import (
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/resource"
)

// View is the state of the mesh at one revision, compiled. A request loads it once.
type View struct {
	Revision revision.Revision
	Keyring  *keyring.Snapshot
	Config   *resource.Configuration // never nil; empty before the first apply
	// ManifestRevision is when the manifest was last written. A node that serves an earlier revision has other routes.
	ManifestRevision revision.Revision
}

// Selects reports whether a node may handle identity for a route: it is trusted, a proxy, and its selector covers the route.
func (v *View) Selects(n *keyring.Node, r *resource.Route) bool {
	return n != nil && n.HasRole(keyring.RoleProxy) && r.Selected(n.RouteSelector)
}
