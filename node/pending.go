package node

// Temporary while the packages land: replaced within the hour by the lead.

import (
	"context"

	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/session"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

type users struct{ live *session.Live }

func (a *assembly) serveUsers(context.Context) error { return nil }

func (a *assembly) openReplica(context.Context) error {
	return fault.New(fault.Internal, "no replica yet")
}

func (a *assembly) serveFollower() func(string, grpc.BidiStreamingServer[iapmeshv1.FollowRequest, iapmeshv1.FollowResponse]) error {
	return nil
}

func (a *assembly) collect(_, _ *grpc.Server) error { return nil }

func (u *users) describe(*iapmeshv1.NodeReport) {}
