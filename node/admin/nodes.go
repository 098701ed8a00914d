package admin

import (
	"context"

	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

type nodes struct {
	iapmeshv1.UnimplementedNodeServiceServer
	Services
}

// ListNodes implements NodeService.
func (s *nodes) ListNodes(ctx context.Context, _ *iapmeshv1.ListNodesRequest) (*iapmeshv1.ListNodesResponse, error) {
	_, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	all, err := c.NodeStatuses(ctx)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.ListNodesResponse{Nodes: all}, nil
}

// GetNode implements NodeService.
func (s *nodes) GetNode(ctx context.Context, req *iapmeshv1.GetNodeRequest) (*iapmeshv1.GetNodeResponse, error) {
	_, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	return c.NodeStatus(ctx, req.Node)
}

// QuarantineNode implements NodeService.
func (s *nodes) QuarantineNode(ctx context.Context, req *iapmeshv1.QuarantineNodeRequest) (*iapmeshv1.QuarantineNodeResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	n, at, err := c.QuarantineNode(ctx, by, req.Node, req.Reason)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.QuarantineNodeResponse{Node: state.NodeProto(n), Receipt: s.receipt(c, at)}, nil
}

// ReleaseNode implements NodeService.
func (s *nodes) ReleaseNode(ctx context.Context, req *iapmeshv1.ReleaseNodeRequest) (*iapmeshv1.ReleaseNodeResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	n, at, err := c.ReleaseNode(ctx, by, req.Node, req.Reason)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.ReleaseNodeResponse{Node: state.NodeProto(n), Receipt: s.receipt(c, at)}, nil
}

// RemoveNode implements NodeService.
func (s *nodes) RemoveNode(ctx context.Context, req *iapmeshv1.RemoveNodeRequest) (*iapmeshv1.RemoveNodeResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	n, at, err := c.RemoveNode(ctx, by, req.Node, req.Reason)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.RemoveNodeResponse{Node: state.NodeProto(n), Receipt: s.receipt(c, at)}, nil
}

// AllowRebind implements NodeService.
func (s *nodes) AllowRebind(ctx context.Context, req *iapmeshv1.AllowRebindRequest) (*iapmeshv1.AllowRebindResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	n, at, err := c.AllowRebind(ctx, by, req)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.AllowRebindResponse{Node: state.NodeProto(n), Receipt: s.receipt(c, at)}, nil
}
