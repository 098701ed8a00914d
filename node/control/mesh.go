package control

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// LeaderTrailer names the metadata by which a node that does not lead says who does: "<node id> <mesh address>".
const LeaderTrailer = "iapmesh-leader"

// DecidedTrailer names the metadata by which the leader says that an Unavailable is its own decision: whoever asked it need look for no
// other leader.
const DecidedTrailer = "iapmesh-decided"

// NotLeadingError says who leads, as far as this node knows. It is Unavailable, and nothing was written.
type NotLeadingError struct{ ID, Address string }

func (e *NotLeadingError) Error() string {
	if e.ID == "" {
		return "this node does not lead, and knows of no leader: no quorum, or an election is under way"
	}
	return "this node does not lead: " + e.ID + " at " + e.Address + " does"
}

// Unwrap gives the kind.
func (e *NotLeadingError) Unwrap() error { return fault.New(fault.Unavailable, "not leading") }

// mustLead returns the term in which this node leads, or who leads instead.
func (c *Controller) mustLead() (uint64, error) {
	if term, _ := c.Leading(); term != 0 {
		return uint64(term), nil
	}
	e := &NotLeadingError{}
	if c.Leader != nil {
		e.ID, e.Address = c.Leader()
		if e.ID == c.NodeID {
			e.ID, e.Address = "", "" // elected, but not yet ready
		}
	}
	return 0, e
}

// PointToLeader is the interceptor that tells a caller in a trailer who leads, where an answer is that this node does not.
func PointToLeader(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	resp, err := handler(ctx, req)
	if md := leaderOf(err); md != nil {
		_ = grpc.SetTrailer(ctx, md) // the error says it, too
	}
	return resp, err
}

// PointStreamToLeader is the same for streams.
func PointStreamToLeader(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	err := handler(srv, ss)
	if md := leaderOf(err); md != nil {
		ss.SetTrailer(md)
	}
	return err
}

func leaderOf(err error) metadata.MD {
	var e *NotLeadingError
	if !errors.As(err, &e) || e.ID == "" {
		return nil
	}
	return metadata.Pairs(LeaderTrailer, e.ID+" "+e.Address)
}

// MeshServer serves MeshService to enrolled nodes.
type MeshServer struct {
	iapmeshv1.UnimplementedMeshServiceServer
	Controller *Controller
	// Caller says which node calls: its certificate's, by record.
	Caller func(context.Context) (string, error)
	// Source says from where: what a key's scope is held against.
	Source func(context.Context) (netip.Addr, error)
	// Follower serves one follower.
	Follower func(node string, stream grpc.BidiStreamingServer[iapmeshv1.FollowRequest, iapmeshv1.FollowResponse]) error
	// QuorumRound returns after a round to a quorum that began after the call: what the leader's age stands on.
	QuorumRound func(context.Context) error
}

// Confirm implements MeshService.
func (m *MeshServer) Confirm(ctx context.Context, _ *iapmeshv1.ConfirmRequest) (*iapmeshv1.ConfirmResponse, error) {
	node, err := m.Caller(ctx)
	if err != nil {
		return nil, err
	}
	at, err := m.Controller.Confirm(ctx, node)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.ConfirmResponse{Revision: state.RevisionProto(at)}, nil
}

// RelayJoin implements MeshService. Only control nodes terminate joins, so only they may relay one.
func (m *MeshServer) RelayJoin(ctx context.Context, req *iapmeshv1.RelayJoinRequest) (*iapmeshv1.JoinResponse, error) {
	node, err := m.Caller(ctx)
	if err != nil {
		return nil, err
	}
	v, err := m.Controller.view()
	if err != nil {
		return nil, err
	}
	if !isControl(v, node) {
		return nil, fault.New(fault.Denied, "node %s is no control node: it relays no joins", node)
	}
	resp, err := m.Controller.Admit(ctx, req)
	if errors.Is(err, keyring.ErrNotYetActive) || errors.Is(err, keyring.ErrAwaitsOperator) || errors.Is(err, keyring.ErrRestoring) {
		_ = grpc.SetTrailer(ctx, metadata.Pairs(DecidedTrailer, "1")) // the joiner is to come again, not the node that relays it
	}
	return resp, err
}

// present is Caller for what a lapsed node may not do: before the state, its secrets and its own entries, it has to recover by Renew,
// where the quota holds.
func (m *MeshServer) present(ctx context.Context) (string, error) {
	node, err := m.Caller(ctx)
	if err != nil {
		return "", err
	}
	if _, err := m.Controller.view(); err != nil {
		return "", err
	}
	if m.lapsed(node) {
		return "", fault.New(fault.Denied, "node %s has lapsed: it renews its certificate first", node)
	}
	return node, nil
}

func (m *MeshServer) lapsed(node string) bool {
	v := m.Controller.Source.Load()
	if v == nil {
		return false
	}
	n := v.Keyring.Nodes[node]
	return n != nil && n.State == keyring.NodeLapsed
}

// Follow implements MeshService.
func (m *MeshServer) Follow(stream grpc.BidiStreamingServer[iapmeshv1.FollowRequest, iapmeshv1.FollowResponse]) error {
	node, err := m.present(stream.Context())
	if err != nil {
		return err
	}
	return m.Follower(node, stream)
}

// reportTimeout ends a report stream that has fallen silent.
const reportTimeout = 15 * time.Second

// Report implements MeshService: each report is answered by a pong, whose age counts from a quorum round that began after the
// report arrived.
func (m *MeshServer) Report(stream grpc.BidiStreamingServer[iapmeshv1.ReportRequest, iapmeshv1.ReportResponse]) error {
	ctx := stream.Context()
	node, err := m.Caller(ctx)
	if err != nil {
		return err
	}
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if req.Report == nil {
			return fault.New(fault.Invalid, "report: it is empty")
		}
		if _, err := m.Caller(ctx); err != nil { // by the view of now: a node that was revoked meanwhile is heard no more
			return err
		}
		if _, err := m.Controller.mustLead(); err != nil {
			return err
		}
		m.Controller.Reports.Set(node, req.Report)
		round, cancel := context.WithTimeout(ctx, reportTimeout)
		err = m.QuorumRound(round)
		cancel()
		pong := &iapmeshv1.Pong{
			Nonce: req.Nonce, Revision: state.RevisionProto(m.Controller.Source.Revision()), LeaderId: m.Controller.NodeID, Stale: err != nil,
		}
		if err := stream.Send(&iapmeshv1.ReportResponse{Pong: pong, Lapsed: m.lapsed(node)}); err != nil {
			return err
		}
	}
}

// Renew implements MeshService.
func (m *MeshServer) Renew(ctx context.Context, req *iapmeshv1.RenewRequest) (*iapmeshv1.RenewResponse, error) {
	node, err := m.Caller(ctx)
	if err != nil {
		return nil, err
	}
	return m.Controller.Renew(ctx, node, req.Csr)
}

// AnnounceSigningKey implements MeshService.
func (m *MeshServer) AnnounceSigningKey(ctx context.Context, req *iapmeshv1.AnnounceSigningKeyRequest) (*iapmeshv1.AnnounceSigningKeyResponse, error) {
	node, err := m.present(ctx)
	if err != nil {
		return nil, err
	}
	at, err := m.Controller.AnnounceSigningKey(ctx, node, req)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.AnnounceSigningKeyResponse{Revision: state.RevisionProto(at)}, nil
}

// EndSession implements MeshService.
func (m *MeshServer) EndSession(ctx context.Context, req *iapmeshv1.EndSessionRequest) (*iapmeshv1.EndSessionResponse, error) {
	node, err := m.present(ctx)
	if err != nil {
		return nil, err
	}
	at, err := m.Controller.EndSession(ctx, node, req.SessionId, req.Subject)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.EndSessionResponse{Revision: state.RevisionProto(at)}, nil
}

// Rebind implements MeshService.
func (m *MeshServer) Rebind(ctx context.Context, req *iapmeshv1.RebindRequest) (*iapmeshv1.RebindResponse, error) {
	node, err := m.present(ctx) // the quota of recoveries counts by the key that a node is bound to
	if err != nil {
		return nil, err
	}
	source, err := m.Source(ctx)
	if err != nil {
		return nil, err
	}
	at, err := m.Controller.Rebind(ctx, node, source, req)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.RebindResponse{Revision: state.RevisionProto(at)}, nil
}

// Leave implements MeshService.
func (m *MeshServer) Leave(ctx context.Context, _ *iapmeshv1.LeaveRequest) (*iapmeshv1.LeaveResponse, error) {
	node, err := m.Caller(ctx)
	if err != nil {
		return nil, err
	}
	at, err := m.Controller.Leave(ctx, node)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.LeaveResponse{Revision: state.RevisionProto(at)}, nil
}

// ProposeSuccessor implements MeshService.
func (m *MeshServer) ProposeSuccessor(ctx context.Context, req *iapmeshv1.ProposeSuccessorRequest) (*iapmeshv1.ProposeSuccessorResponse, error) {
	node, err := m.present(ctx)
	if err != nil {
		return nil, err
	}
	at, err := m.Controller.ProposeSuccessor(ctx, node, req)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.ProposeSuccessorResponse{Revision: state.RevisionProto(at)}, nil
}

// CompleteRotation implements MeshService.
func (m *MeshServer) CompleteRotation(ctx context.Context, req *iapmeshv1.CompleteRotationRequest) (*iapmeshv1.CompleteRotationResponse, error) {
	node, err := m.present(ctx)
	if err != nil {
		return nil, err
	}
	at, err := m.Controller.CompleteRotation(ctx, node, req)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.CompleteRotationResponse{Revision: state.RevisionProto(at)}, nil
}

// Admit decides on a join that a control node terminated.
func (c *Controller) Admit(ctx context.Context, req *iapmeshv1.RelayJoinRequest) (*iapmeshv1.JoinResponse, error) {
	source, err := netip.ParseAddr(req.SourceAddress)
	if err != nil || len(req.ExportedKeyingMaterial) != 32 {
		return nil, fault.New(fault.Invalid, "join: want a source address and 32 bytes of keying material")
	}
	return c.Join(ctx, JoinAttempt{Request: req.Join, EKM: [32]byte(req.ExportedKeyingMaterial), Source: source})
}
