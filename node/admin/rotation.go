package admin

import (
	"context"

	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

type rotation struct {
	iapmeshv1.UnimplementedRotationServiceServer
	Services
}

// ScheduleKey implements RotationService.
func (s *rotation) ScheduleKey(ctx context.Context, req *iapmeshv1.ScheduleKeyRequest) (*iapmeshv1.ScheduleKeyResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	key, at, err := c.ScheduleKey(ctx, by, req)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.ScheduleKeyResponse{Key: state.KeyProto(key), Receipt: s.receipt(c, at)}, nil
}

// RequestKeyRotation implements RotationService.
func (s *rotation) RequestKeyRotation(ctx context.Context, req *iapmeshv1.RequestKeyRotationRequest) (*iapmeshv1.RequestKeyRotationResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	key, at, err := c.RequestKeyRotation(ctx, by, req)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.RequestKeyRotationResponse{Key: state.KeyProto(key), Receipt: s.receipt(c, at)}, nil
}
