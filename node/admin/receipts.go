package admin

import (
	"context"

	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// GetReceipt implements ClusterService.
func (s *cluster) GetReceipt(ctx context.Context, req *iapmeshv1.GetReceiptRequest) (*iapmeshv1.GetReceiptResponse, error) {
	_, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	record, now, err := c.GetReceipt(ctx, req.Id)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.GetReceiptResponse{Record: state.ReceiptProto(record), Receipt: now}, nil
}

// ListReceipts implements ClusterService.
func (s *cluster) ListReceipts(ctx context.Context, req *iapmeshv1.ListReceiptsRequest) (*iapmeshv1.ListReceiptsResponse, error) {
	_, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	receipts, err := c.ListReceipts(ctx, control.ReceiptQuery{Target: req.Target, Since: state.Time(req.Since), Limit: int(req.Limit)})
	if err != nil {
		return nil, err
	}
	out := &iapmeshv1.ListReceiptsResponse{}
	for _, r := range receipts {
		out.Receipts = append(out.Receipts, state.ReceiptSummary(r))
	}
	return out, nil
}
