package admin

import (
	"context"
	"strings"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

type admins struct {
	iapmeshv1.UnimplementedAdminServiceServer
	Services
}

// WhoAmI implements AdminService.
func (s *admins) WhoAmI(ctx context.Context, _ *iapmeshv1.WhoAmIRequest) (*iapmeshv1.WhoAmIResponse, error) {
	by, _, err := s.Caller(ctx)
	if err != nil {
		return nil, err
	}
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	for _, a := range v.Keyring.Admins {
		if "admin/"+a.Name == by && a.RevokedAt.IsZero() {
			return &iapmeshv1.WhoAmIResponse{Admin: state.AdminProto(a), Revision: state.RevisionProto(v.Revision)}, nil
		}
	}
	return nil, fault.New(fault.NotFound, "no administrator %s", strings.TrimPrefix(by, "admin/"))
}

// RenewAdmin implements AdminService: the same key, 90 more days.
func (s *admins) RenewAdmin(ctx context.Context, req *iapmeshv1.RenewAdminRequest) (*iapmeshv1.RenewAdminResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	return c.RenewAdmin(ctx, by, req.Csr)
}
