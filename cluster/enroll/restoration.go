package enroll

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	meshpeer "github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Restorations is what a control node answers to nodes that a restoration holds back: under the joins' protocol, since they may speak
// no other.
type Restorations struct {
	Introduce func() (*iapmeshv1.IntroduceResponse, error)
	// Remember verifies the signature itself; ekm is the connection's.
	Remember func(ctx context.Context, req *iapmeshv1.RememberRequest, ekm [32]byte) (*iapmeshv1.RememberResponse, error)
}

// ServeRestorations lets Run serve them, too.
func (s *Server) ServeRestorations(r Restorations) { s.restorations = &r }

type restorationServer struct {
	iapmeshv1.UnimplementedRestorationServiceServer
	*Server
}

// Introduce implements RestorationService.
func (s restorationServer) Introduce(ctx context.Context, _ *iapmeshv1.IntroduceRequest) (*iapmeshv1.IntroduceResponse, error) {
	if _, _, err := s.caller(ctx, "introduce"); err != nil {
		return nil, err
	}
	return s.restorations.Introduce()
}

// Remember implements RestorationService.
func (s restorationServer) Remember(ctx context.Context, req *iapmeshv1.RememberRequest) (*iapmeshv1.RememberResponse, error) {
	ekm, err := s.teller(ctx, req)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	leave, err := s.place(ctx, "remember")
	if err != nil {
		return nil, err
	}
	defer leave()
	return s.restorations.Remember(ctx, req, ekm)
}

// teller says what the connection exports, unless its source, or the node whose key the caller proves to hold, asks too often. What a node
// proves is read here for the rate alone.
func (s *Server) teller(ctx context.Context, req *iapmeshv1.RememberRequest) (ekm [32]byte, err error) {
	_, ekm, err = connection(ctx)
	if err != nil {
		return ekm, err
	}
	var body iapmeshv1.RememberBody
	if n := len(req.Body); n == 0 || n > keyring.MaxRemembered || proto.Unmarshal(req.Body, &body) != nil || s.find == nil {
		_, ekm, err = s.caller(ctx, "remember")
		return ekm, err
	}
	node := s.find(body.NodeId)
	if node == nil || keyring.VerifyRemember(node.PublicKey, ekm, req.Body, req.Signature) != nil {
		_, ekm, err = s.caller(ctx, "remember")
		return ekm, err
	}
	if !s.tellers.allow(node.Id) {
		return ekm, fault.New(fault.Unavailable, "remember: too many calls: wait a few seconds")
	}
	return ekm, nil
}

// Restored is a control node that says that its mesh was restored, and has proved, under the pinned root, to be the node that it says.
type Restored struct {
	Node   string // of its certificate
	Answer *iapmeshv1.IntroduceResponse
	Client iapmeshv1.RestorationServiceClient
	EKM    [32]byte
}

// AskRestored asks the control node at an address for the restoration of its mesh, and hands it to f while the connection stands.
func AskRestored(ctx context.Context, pinned meshpeer.Pinned, addr string, f func(context.Context, Restored) error) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	conn, err := pinned.Dial(ctx, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	cs := conn.ConnectionState()
	id, err := keyring.ParseID(cs.PeerCertificates[0])
	if err != nil {
		return err
	}
	r := Restored{Node: id.Node}
	if r.EKM, err = exportKeyingMaterial(cs); err != nil {
		return err
	}
	client, err := grpc.NewClient("passthrough:///"+addr, conn.DialOptions()...)
	if err != nil {
		return fault.New(fault.Internal, "ask for a restoration: %w", err)
	}
	defer client.Close()
	r.Client = iapmeshv1.NewRestorationServiceClient(client)
	if r.Answer, err = r.Client.Introduce(ctx, &iapmeshv1.IntroduceRequest{}); err != nil {
		return fault.FromStatus(err)
	}
	return f(ctx, r)
}
