package nodetest

import (
	"context"

	"google.golang.org/grpc"

	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// TryTransferLead hands the lead to a node, by id or name; to any that votes if that is empty.
func (m *Mesh) TryTransferLead(to string) (resp *iapmeshv1.TransferLeadResponse, err error) {
	err = m.Try(func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		resp, err = iapmeshv1.NewControlServiceClient(conn).TransferLead(ctx, &iapmeshv1.TransferLeadRequest{To: to}, o...)
		return err
	})
	return resp, err
}
