package admin

import (
	"cmp"
	"context"
	"slices"
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

// IssueAdmin implements AdminService.
func (s *admins) IssueAdmin(ctx context.Context, req *iapmeshv1.IssueAdminRequest) (*iapmeshv1.IssueAdminResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	resp, at, err := c.IssueAdmin(ctx, by, req)
	if err != nil {
		return nil, err
	}
	resp.Receipt = s.receipt(c, at)
	return resp, nil
}

// ListAdmins implements AdminService: every node can answer.
func (s *admins) ListAdmins(ctx context.Context, _ *iapmeshv1.ListAdminsRequest) (*iapmeshv1.ListAdminsResponse, error) {
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	out := &iapmeshv1.ListAdminsResponse{}
	for _, a := range v.Keyring.Admins {
		out.Admins = append(out.Admins, state.AdminProto(a))
	}
	rank := func(a *iapmeshv1.Admin) int {
		if a.RevokedAt != nil {
			return 1
		}
		return 0
	}
	slices.SortFunc(out.Admins, func(a, b *iapmeshv1.Admin) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Id, b.Id))
	})
	return out, nil
}

// RevokeAdmin implements AdminService.
func (s *admins) RevokeAdmin(ctx context.Context, req *iapmeshv1.RevokeAdminRequest) (*iapmeshv1.RevokeAdminResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	admin, at, err := c.RevokeAdmin(ctx, by, req.Admin, req.Reason)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.RevokeAdminResponse{Admin: state.AdminProto(admin), Receipt: s.receipt(c, at)}, nil
}
