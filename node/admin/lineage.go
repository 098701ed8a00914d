package admin

import (
	"context"

	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

type lineage struct {
	iapmeshv1.UnimplementedLineageServiceServer
	Services
}

// GetLineage implements LineageService.
func (s *lineage) GetLineage(ctx context.Context, req *iapmeshv1.GetLineageRequest) (*iapmeshv1.GetLineageResponse, error) {
	_, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	tree, err := c.Lineage(req.Key)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.GetLineageResponse{Lineage: tree}, nil
}

// PreviewNodeRevocation implements LineageService.
func (s *lineage) PreviewNodeRevocation(ctx context.Context, req *iapmeshv1.PreviewNodeRevocationRequest) (*iapmeshv1.PreviewNodeRevocationResponse, error) {
	_, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	blast, err := c.PreviewNodeRevocation(ctx, req.Node)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.PreviewNodeRevocationResponse{Blast: blast}, nil
}

// dryRun answers RevokeKey where nothing is to be changed.
func (s *keys) dryRun(ctx context.Context, c *control.Controller, by string, req *iapmeshv1.RevokeKeyRequest) (*iapmeshv1.RevokeKeyResponse, error) {
	tree, err := c.Lineage(req.Key)
	if err != nil {
		return nil, err
	}
	key, blast, err := c.PreviewKeyRevocation(ctx, by, req)
	if err != nil {
		return nil, err
	}
	out := &iapmeshv1.RevokeKeyResponse{Key: state.KeyProto(key), Blast: blast, Lineage: tree}
	for _, n := range blast.Nodes {
		out.Affected = append(out.Affected, n.Node)
	}
	return out, nil
}
