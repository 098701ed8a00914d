package node

import (
	"context"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/admin"
	"github.com/iapmesh/iapmesh/node/control"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// The bounds of what one call may carry.
const (
	maxNodeMessage  = 4 << 20
	maxAdminMessage = 16 << 20 // a whole mesh.yaml
)

// serveMesh puts the services on the mesh port: nodes' and administrators' apart, each told by its protocol.
func (a *assembly) serveMesh(context.Context) error {
	nodes, err := a.port.Listen(peer.ProtoMesh, peer.AnyNode)
	if err != nil {
		return err
	}
	admins, err := a.port.Listen(peer.ProtoAdmin, peer.Admin)
	if err != nil {
		return err
	}
	nodeServer, adminServer := newGRPC(maxNodeMessage), newGRPC(maxAdminMessage)
	services := admin.Services{Source: a.source, Control: a.control, Leader: a.engine.Leader, Members: a.members, Caller: callerAdmin, Logger: a.logger}
	services.Register(adminServer)
	if a.control != nil {
		followers, err := a.newFollowServer()
		if err != nil {
			return err
		}
		iapmeshv1.RegisterMeshServiceServer(nodeServer, &control.MeshServer{
			Controller: a.control, Caller: callerNode, Source: callerSource, Follower: followers.Follow, QuorumRound: a.store.QuorumRound,
		})
	}
	if err := a.serveJoins(); err != nil {
		return err
	}
	if err := a.collect(adminServer); err != nil {
		return err
	}
	states := health.NewServer()
	healthv1.RegisterHealthServer(adminServer, states)
	reflection.Register(adminServer)
	a.front = append(a.front,
		part{"node services", serveGRPC(nodeServer, nodes)},
		part{"administrators' services", serveGRPC(adminServer, admins)},
	)
	return nil
}

func newGRPC(maxMessage int) *grpc.Server {
	return grpc.NewServer(
		grpc.Creds(peer.ServerCredentials()),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 15 * time.Second, Timeout: 5 * time.Second}),
		grpc.ChainUnaryInterceptor(fault.UnaryServer, control.PointToLeader, control.SayWhen),
		grpc.ChainStreamInterceptor(fault.StreamServer, control.PointStreamToLeader),
	)
}

func serveGRPC(s *grpc.Server, l net.Listener) func(context.Context) error {
	return func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, s.Stop)
		defer stop()
		if err := s.Serve(l); err != nil && ctx.Err() == nil {
			return err
		}
		return nil
	}
}
