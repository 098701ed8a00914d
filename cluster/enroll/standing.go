package enroll

import (
	"context"
	"crypto/ed25519"

	"google.golang.org/grpc"

	meshpeer "github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// A node that was revoked is answered by nobody over the mesh's own protocols, and one that was away then cannot learn why. Here it
// can: whoever proves to hold a node's key is told what became of that node, and nothing else.

// maxNodeID bounds what a stranger may name as a node; an id has 18 bytes.
const maxNodeID = 64

var errStanding = fault.New(fault.Unauthenticated, "standing: the node is unknown here, or the signature is not for this connection")

// AnswerStanding lets the server tell nodes their standing; find returns a node's record, whatever its state, or nil. Call it before Run.
func (s *Server) AnswerStanding(find func(node string) *iapmeshv1.Node) { s.find = find }

// Standing implements EnrollService.
func (s *Server) Standing(ctx context.Context, req *iapmeshv1.StandingRequest) (*iapmeshv1.StandingResponse, error) {
	if s.find == nil {
		return nil, fault.New(fault.Denied, "standing: this node is no control node: ask one")
	}
	source, ekm, err := connection(ctx)
	if err != nil {
		return nil, err
	}
	if !s.sources.allow(sourceName(source)) {
		return nil, fault.New(fault.Unavailable, "standing: too many attempts: wait a few seconds")
	}
	if len(req.NodeId) == 0 || len(req.NodeId) > maxNodeID || len(req.Signature) != ed25519.SignatureSize {
		return nil, errStanding
	}
	n := s.find(req.NodeId)
	if n == nil || len(n.PublicKey) != ed25519.PublicKeySize || !ed25519.Verify(n.PublicKey, keyring.StandingMessage(ekm, req.NodeId), req.Signature) {
		return nil, errStanding
	}
	return &iapmeshv1.StandingResponse{State: n.State, Reason: n.Reason, Since: n.StateSince}, nil
}

// Standing asks a control node, over a connection by ProtoJoin whose server has been verified, what became of the node that holds key.
func Standing(ctx context.Context, conn *meshpeer.Conn, node string, key ed25519.PrivateKey) (*iapmeshv1.StandingResponse, error) {
	ekm, err := exportKeyingMaterial(conn.ConnectionState())
	if err != nil {
		return nil, err
	}
	client, err := grpc.NewClient("passthrough:///"+conn.RemoteAddr().String(), conn.DialOptions()...)
	if err != nil {
		return nil, fault.New(fault.Internal, "standing: %w", err)
	}
	defer client.Close()
	resp, err := iapmeshv1.NewEnrollServiceClient(client).Standing(ctx, &iapmeshv1.StandingRequest{
		NodeId: node, Signature: ed25519.Sign(key, keyring.StandingMessage(ekm, node)),
	})
	return resp, fault.FromStatus(err)
}
