package admin

import (
	"context"

	"github.com/iapmesh/iapmesh/node/resource"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

type configuration struct {
	iapmeshv1.UnimplementedConfigServiceServer
	Services
}

// Apply implements ConfigService.
func (s *configuration) Apply(ctx context.Context, req *iapmeshv1.ApplyRequest) (*iapmeshv1.ApplyResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	applied, err := c.Apply(ctx, by, req)
	if err != nil {
		return nil, err
	}
	out := &iapmeshv1.ApplyResponse{Changes: applied.Changes, ManifestDigest: applied.Digest[:]}
	if !req.DryRun {
		out.Receipt = s.receipt(c, applied.Revision)
	}
	return out, nil
}

// GetResources implements ConfigService.
func (s *configuration) GetResources(ctx context.Context, req *iapmeshv1.GetResourcesRequest) (*iapmeshv1.GetResourcesResponse, error) {
	_, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	return c.Resources(ctx, req.Kind, req.Name)
}

// DeleteResource implements ConfigService.
func (s *configuration) DeleteResource(ctx context.Context, req *iapmeshv1.DeleteResourceRequest) (*iapmeshv1.DeleteResourceResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	applied, err := c.Delete(ctx, by, resource.Ref{Kind: req.Kind, Name: req.Name})
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.DeleteResourceResponse{Receipt: s.receipt(c, applied.Revision)}, nil
}

// SetSecret implements ConfigService.
func (s *configuration) SetSecret(ctx context.Context, req *iapmeshv1.SetSecretRequest) (*iapmeshv1.SetSecretResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	at, err := c.SetSecret(ctx, by, req.Name, req.Value)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.SetSecretResponse{Receipt: s.receipt(c, at)}, nil
}
