package admin

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

type cluster struct {
	iapmeshv1.UnimplementedClusterServiceServer
	Services
}

// GetStatus implements ClusterService.
func (s *cluster) GetStatus(ctx context.Context, _ *iapmeshv1.GetStatusRequest) (*iapmeshv1.GetStatusResponse, error) {
	_, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	status, err := c.Status(ctx)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.GetStatusResponse{Status: status}, nil
}

// minInterval bounds how often a watcher is told.
const minInterval = 200 * time.Millisecond

// WatchStatus implements ClusterService.
func (s *cluster) WatchStatus(req *iapmeshv1.WatchStatusRequest, stream grpc.ServerStreamingServer[iapmeshv1.WatchStatusResponse]) error {
	ctx := stream.Context()
	interval := time.Second
	if req.Interval != nil {
		interval = max(req.Interval.AsDuration(), minInterval)
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		_, c, err := s.leader(ctx)
		if err != nil {
			return err
		}
		status, err := c.Status(ctx)
		if err != nil {
			return err
		}
		if err := stream.Send(&iapmeshv1.WatchStatusResponse{Status: status}); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// ListMembers implements ClusterService: gossip is hearsay, and every node answers with its own.
func (s *cluster) ListMembers(ctx context.Context, _ *iapmeshv1.ListMembersRequest) (*iapmeshv1.ListMembersResponse, error) {
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	members := s.Members()
	for _, m := range members {
		if n := v.Keyring.Nodes[m.NodeId]; n != nil {
			m.Name = n.Name
		}
	}
	return &iapmeshv1.ListMembersResponse{Members: members}, nil
}

// WatchReceipt implements ClusterService.
func (s *cluster) WatchReceipt(req *iapmeshv1.WatchReceiptRequest, stream grpc.ServerStreamingServer[iapmeshv1.WatchReceiptResponse]) error {
	_, c, err := s.leader(stream.Context())
	if err != nil {
		return err
	}
	watch := control.ReceiptWatch{Revision: state.RevisionOf(req.Revision), ID: req.Id, Everywhere: req.Everywhere}
	return c.FollowReceipt(stream.Context(), watch, func(r *iapmeshv1.Receipt) error {
		return stream.Send(&iapmeshv1.WatchReceiptResponse{Receipt: r})
	})
}
