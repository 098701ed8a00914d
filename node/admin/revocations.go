package admin

import (
	"cmp"
	"context"
	"slices"

	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

type revocations struct {
	iapmeshv1.UnimplementedRevocationServiceServer
	Services
}

// Revoke implements RevocationService.
func (s *revocations) Revoke(ctx context.Context, req *iapmeshv1.RevokeRequest) (*iapmeshv1.RevokeResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	resolved, at, err := c.Revoke(ctx, by, req)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.RevokeResponse{Resolved: resolved, Receipt: s.receipt(c, at)}, nil
}

// ListRevocations implements RevocationService.
func (s *revocations) ListRevocations(ctx context.Context, _ *iapmeshv1.ListRevocationsRequest) (*iapmeshv1.ListRevocationsResponse, error) {
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	out := &iapmeshv1.ListRevocationsResponse{}
	for _, kind := range v.Keyring.Revocations {
		for _, r := range kind {
			out.Revocations = append(out.Revocations, &iapmeshv1.RevocationStatus{Revocation: state.RevocationProto(r), Revision: state.RevisionProto(r.Revision)})
		}
	}
	slices.SortFunc(out.Revocations, func(a, b *iapmeshv1.RevocationStatus) int {
		return cmp.Or(state.RevisionOf(b.Revision).Compare(state.RevisionOf(a.Revision)), cmp.Compare(a.Revocation.Value, b.Revocation.Value))
	})
	return out, nil
}

// LiftRevocation implements RevocationService.
func (s *revocations) LiftRevocation(ctx context.Context, req *iapmeshv1.LiftRevocationRequest) (*iapmeshv1.LiftRevocationResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	at, err := c.Lift(ctx, by, state.RevocationKindOf(req.Kind), req.Value)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.LiftRevocationResponse{Receipt: s.receipt(c, at)}, nil
}
