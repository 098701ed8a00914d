package node

import (
	"context"
	"crypto/ed25519"
	"path/filepath"

	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/collect"
	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// collect ships this node's trail and, on an aggregator, takes in everybody's. An aggregator ships its own like any other node:
// through its own mesh port.
func (a *assembly) collect(admins *grpc.Server) error {
	a.shipper = collect.NewShipper(collect.ShipperConfig{Spool: a.spool, Connect: a.connectAggregator, Logger: a.logger, Now: a.env.Now})
	a.shipping = append(a.shipping, part{"audit shipper", a.shipper.Run})
	if !a.config.HasRole(keyring.RoleAggregator) {
		return nil
	}
	aggregator, err := collect.Open(collect.Config{
		Dir: filepath.Join(a.config.DataDir, collectDir), Mesh: a.id.public.MeshID, Node: a.id.public.NodeID, Signer: audit.SignWith(a.id.nodeKey()),
		Peer: callerNode, NodeKey: a.nodeKeyOf, Trusted: a.trusts, Logger: a.logger, Registerer: a.registry, Now: a.env.Now,
	})
	if err != nil {
		return err
	}
	a.closers = append(a.closers, func() { _ = aggregator.Close() })
	trails, err := a.port.Listen(peer.ProtoTrail, peer.KnownNode)
	if err != nil {
		return err
	}
	trailServer := newGRPC(maxNodeMessage)
	iapmeshv1.RegisterAuditIngestServiceServer(trailServer, aggregator)
	iapmeshv1.RegisterAuditServiceServer(admins, aggregator)
	a.front = append(a.front, part{"trails", serveGRPC(trailServer, trails)})
	return nil
}

// handIn gives an aggregator what this node has recorded so far, while it waits.
func (a *assembly) handIn(ctx context.Context) error {
	if v := a.source.Load(); v == nil || a.nearestAggregator(v) == nil {
		return nil
	}
	return a.shipper.Drain(ctx)
}

func (a *assembly) trusts(node string) bool {
	v := a.source.Load()
	if v == nil {
		return false
	}
	n := v.Keyring.Nodes[node]
	return n != nil && n.Trusted()
}

// nodeKeyOf returns the key of a node in any state: what it wrote while it was trusted still has to verify.
func (a *assembly) nodeKeyOf(id string) (ed25519.PublicKey, error) {
	v := a.source.Load()
	if v == nil {
		return nil, fault.New(fault.Unavailable, "this node has no view of the mesh yet")
	}
	n := v.Keyring.Nodes[id]
	if n == nil {
		return nil, fault.New(fault.NotFound, "no node %s", id)
	}
	return n.PublicKey, nil
}

// connectAggregator connects to an aggregator, one of this region if there is one. While the mesh has none it waits: records stay in
// the spool.
func (a *assembly) connectAggregator(ctx context.Context) (iapmeshv1.AuditIngestServiceClient, func(), error) {
	if v := a.source.Load(); v != nil && a.nearestAggregator(v) == nil {
		a.logger.Info("the mesh has no aggregator: audit records stay in the spool")
	}
	v, err := a.source.Wait(ctx, func(v *state.View) bool { return a.nearestAggregator(v) != nil })
	if err != nil {
		return nil, nil, err
	}
	n := a.nearestAggregator(v)
	conn, err := grpc.NewClient("passthrough:///"+n.Addresses.Mesh, a.dialer.DialOptions(peer.ProtoTrail, n.ID)...)
	if err != nil {
		return nil, nil, fault.New(fault.Internal, "connect to aggregator %s: %w", n.ID, err)
	}
	return iapmeshv1.NewAuditIngestServiceClient(conn), func() { _ = conn.Close() }, nil // it reports only that it was closed before
}

func (a *assembly) nearestAggregator(v *state.View) *keyring.Node {
	var nearest *keyring.Node
	for _, n := range v.Keyring.TrustedNodes() {
		if n.HasRole(keyring.RoleAggregator) && n.Addresses.Mesh != "" && (nearest == nil || a.far(n) < a.far(nearest)) {
			nearest = n
		}
	}
	return nearest
}

func (a *assembly) far(n *keyring.Node) int {
	if n.Region == a.config.Region {
		return 0
	}
	return 1
}
