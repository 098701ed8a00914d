package enroll_test

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	grpcpeer "google.golang.org/grpc/peer"

	"github.com/iapmesh/iapmesh/cluster/enroll"
	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// standings is a control node that knows one node.
type standings struct {
	*world
	addr string
	key  ed25519.PrivateKey
	id   string
	told atomic.Int64 // calls that told what it remembers
}

func newStandings(t testing.TB, control bool) *standings {
	t.Helper()
	s := &standings{world: newWorld(t), key: newKey(t)}
	pub := s.key.Public().(ed25519.PublicKey)
	s.id = keyring.NodeID(pub)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	id, err := peer.NewIdentity(s.certificate(true))
	must(t, err)
	port, err := peer.NewPort(peer.Config{Listener: l, Identity: id, Trust: s, HandshakeTimeout: patience, AnonymousLifetime: time.Hour})
	must(t, err)
	joins, err := port.Listen(peer.ProtoJoin, peer.Nobody)
	must(t, err)
	server := enroll.NewServer(s.admit, nil, slog.New(slog.DiscardHandler), nil)
	if control {
		server.AnswerStanding(s.find)
		server.ServeRestorations(enroll.Restorations{
			Introduce: func() (*iapmeshv1.IntroduceResponse, error) { return &iapmeshv1.IntroduceResponse{}, nil }, Remember: s.remember,
		})
	}
	s.run(port.Run)
	s.run(func(ctx context.Context) error { return server.Run(ctx, joins) })
	s.addr = l.Addr().String()
	return s
}

func (s *standings) find(node string) *iapmeshv1.Node {
	if node != s.id {
		return nil
	}
	return &iapmeshv1.Node{Id: s.id, PublicKey: s.key.Public().(ed25519.PublicKey), State: iapmeshv1.NodeState_NODE_STATE_REVOKED, Reason: "stolen"}
}

func (s *standings) ask(t *testing.T, node string, key ed25519.PrivateKey) (*iapmeshv1.StandingResponse, error) {
	t.Helper()
	conn, err := (peer.Pinned{Pin: s.secret.Pin()}).Dial(soon(t), s.addr)
	must(t, err)
	defer conn.Close()
	return enroll.Standing(soon(t), conn, node, key)
}

func TestWhoHoldsANodesKeyIsToldItsStanding(t *testing.T) {
	t.Parallel()
	s := newStandings(t, true)
	resp, err := s.ask(t, s.id, s.key)
	if err != nil || resp.State != iapmeshv1.NodeState_NODE_STATE_REVOKED || resp.Reason != "stolen" {
		t.Errorf("%v, %v", resp, err)
	}
	for name, tc := range map[string]struct {
		node string
		key  ed25519.PrivateKey
	}{
		"with another key": {s.id, newKey(t)}, "of another node": {"n-abcdefghijklmnop", s.key}, "of nobody": {"", s.key},
	} {
		if _, err := s.ask(t, tc.node, tc.key); !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("%s: %v", name, err)
		}
	}
	plain := newStandings(t, false)
	if _, err := plain.ask(t, plain.id, plain.key); !fault.Is(err, fault.Denied) {
		t.Errorf("by a node that is no control node: %v", err)
	}
}

// What was signed for one connection says nothing on another.
func TestAStandingsSignatureIsForItsConnection(t *testing.T) {
	t.Parallel()
	s := newStandings(t, true)
	conn, err := (peer.Pinned{Pin: s.secret.Pin()}).Dial(soon(t), s.addr)
	must(t, err)
	defer conn.Close()
	other, err := (peer.Pinned{Pin: s.secret.Pin()}).Dial(soon(t), s.addr)
	must(t, err)
	defer other.Close()
	state := other.ConnectionState()
	ekm, err := state.ExportKeyingMaterial(enroll.ExporterLabel, nil, 32)
	must(t, err)
	server := enroll.NewServer(s.admit, nil, slog.New(slog.DiscardHandler), nil)
	server.AnswerStanding(s.find)
	ctx := grpcpeer.NewContext(t.Context(), &grpcpeer.Peer{Addr: conn.RemoteAddr(), AuthInfo: peer.AuthInfo{Conn: conn}})
	req := &iapmeshv1.StandingRequest{NodeId: s.id, Signature: ed25519.Sign(s.key, keyring.StandingMessage([32]byte(ekm), s.id))}
	if _, err := server.Standing(ctx, req); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("replayed on another connection: %v", err)
	}
	state = conn.ConnectionState()
	ekm, err = state.ExportKeyingMaterial(enroll.ExporterLabel, nil, 32)
	must(t, err)
	req.Signature = ed25519.Sign(s.key, keyring.StandingMessage([32]byte(ekm), s.id))
	if _, err := server.Standing(ctx, req); err != nil {
		t.Errorf("on its own connection: %v", err)
	}
}

func FuzzStanding(f *testing.F) {
	s := newStandings(f, true)
	conn, err := (peer.Pinned{Pin: s.secret.Pin()}).Dial(context.Background(), s.addr)
	must(f, err)
	f.Cleanup(func() { conn.Close() })
	ctx := grpcpeer.NewContext(context.Background(), &grpcpeer.Peer{Addr: conn.RemoteAddr(), AuthInfo: peer.AuthInfo{Conn: conn}})
	f.Add(s.id, make([]byte, ed25519.SignatureSize))
	f.Add("", []byte{})
	f.Add("n-\xff", []byte("signature"))
	f.Fuzz(func(t *testing.T, node string, signature []byte) {
		server := enroll.NewServer(s.admit, nil, slog.New(slog.DiscardHandler), nil)
		server.AnswerStanding(s.find)
		if resp, err := server.Standing(ctx, &iapmeshv1.StandingRequest{NodeId: node, Signature: signature}); !fault.Is(err, fault.Unauthenticated) {
			t.Fatalf("answered: %v, %v", resp, err)
		}
	})
}
