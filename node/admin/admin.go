// Package admin serves the administrators' API over gRPC: it says who calls, turns messages into the leader's calls, and nothing
// more. What is asked of a node that does not lead is answered Unavailable, with the leader's address in the trailer.
package admin

import (
	"context"
	"log/slog"
	"net/netip"

	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Services are what an administrator can ask of a node.
type Services struct {
	Source  *state.Source
	Control *control.Controller         // nil on a node that cannot lead
	Leader  func() (id, address string) // as far as this node knows
	Members func() []*iapmeshv1.Member  // as gossip sees them
	Caller  func(context.Context) (name string, source netip.Addr, err error)
	Logger  *slog.Logger
}

// Register puts the services on a server.
func (s Services) Register(g *grpc.Server) {
	iapmeshv1.RegisterClusterServiceServer(g, &cluster{Services: s})
	iapmeshv1.RegisterControlServiceServer(g, &controlNodes{Services: s})
	iapmeshv1.RegisterKeyServiceServer(g, &keys{Services: s})
	iapmeshv1.RegisterRotationServiceServer(g, &rotation{Services: s})
	iapmeshv1.RegisterConfigServiceServer(g, &configuration{Services: s})
	iapmeshv1.RegisterRevocationServiceServer(g, &revocations{Services: s})
	iapmeshv1.RegisterAdminServiceServer(g, &admins{Services: s})
	iapmeshv1.RegisterNodeServiceServer(g, &nodes{Services: s})
	iapmeshv1.RegisterCustodyServiceServer(g, &custody{Services: s})
	iapmeshv1.RegisterLineageServiceServer(g, &lineage{Services: s})
	iapmeshv1.RegisterSnapshotServiceServer(g, &snapshots{Services: s})
}

// leader returns who calls and the controller, or why this node cannot answer.
func (s *Services) leader(ctx context.Context) (string, *control.Controller, error) {
	by, _, err := s.Caller(ctx)
	if err != nil {
		return "", nil, err
	}
	if s.Control == nil {
		e := &control.NotLeadingError{}
		e.ID, e.Address = s.Leader()
		return "", nil, e
	}
	if term, _ := s.Control.Leading(); term == 0 {
		return "", nil, s.Control.NotLeading()
	}
	return by, s.Control, nil
}

// view is this node's own, for what every node can answer.
func (s *Services) view(ctx context.Context) (*state.View, error) {
	if _, _, err := s.Caller(ctx); err != nil {
		return nil, err
	}
	v := s.Source.Load()
	if v == nil {
		return nil, fault.New(fault.Unavailable, "this node has no view of the mesh yet")
	}
	return v, nil
}

// receipt says who has a revision now.
func (s *Services) receipt(c *control.Controller, at revision.Revision) *iapmeshv1.Receipt {
	return c.Receipt(at, s.Source.Load())
}
