package admin

import (
	"context"

	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

type controlNodes struct {
	iapmeshv1.UnimplementedControlServiceServer
	Services
}

// TransferLead implements ControlService.
func (s *controlNodes) TransferLead(ctx context.Context, req *iapmeshv1.TransferLeadRequest) (*iapmeshv1.TransferLeadResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	return c.TransferLead(ctx, by, req)
}
