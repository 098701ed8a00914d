package peer_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// service is a grpc.Server on a port's protocols, which notes who called and what the connection's exporter yields.
type service struct {
	*port
	caller atomic.Pointer[peer.Info]
	ekm    atomic.Pointer[[]byte]
}

const exporterLabel = "EXPORTER-iapmesh-join-v1"

func (m *mesh) service(id string, protos map[string]peer.Policy) *service {
	m.t.Helper()
	s := &service{port: m.port(m.node(id, keyring.RoleControl), nil, nil)}
	note := func(ctx context.Context) error {
		info, err := peer.FromContext(ctx)
		if err != nil {
			return fault.ToStatus(err)
		}
		s.caller.Store(&info)
		ekm, err := info.TLS.ExportKeyingMaterial(exporterLabel, nil, 32)
		if err != nil {
			return err
		}
		s.ekm.Store(&ekm)
		return nil
	}
	server := grpc.NewServer(grpc.Creds(peer.ServerCredentials()),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := note(ctx); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := note(ss.Context()); err != nil {
				return err
			}
			return next(srv, ss)
		}))
	healthv1.RegisterHealthServer(server, health.NewServer())
	for name, policy := range protos {
		l, err := s.Listen(name, policy)
		if err != nil {
			m.t.Fatal(err)
		}
		go func() { _ = server.Serve(l) }()
	}
	m.t.Cleanup(server.Stop)
	return s
}

func client(t *testing.T, addr string, options []grpc.DialOption) healthv1.HealthClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return healthv1.NewHealthClient(conn)
}

func call(t *testing.T, c healthv1.HealthClient, options ...grpc.CallOption) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := c.Check(ctx, &healthv1.HealthCheckRequest{}, options...)
	return err
}

func TestRPCAmongNodes(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	s := m.service("c1", map[string]peer.Policy{peer.ProtoMesh: peer.AnyNode})
	d := m.dialer(m.node("n1", keyring.RoleProxy))
	c := client(t, s.addr, d.DialOptions(peer.ProtoMesh, "c1"))
	var answered grpcpeer.Peer
	if err := call(t, c, grpc.Peer(&answered)); err != nil {
		t.Fatal(err)
	}
	if got := s.caller.Load().Name(); got != "node/n1" {
		t.Errorf("the server saw %s", got)
	}
	server, err := answered.AuthInfo.(peer.AuthInfo).Conn.Peer()
	if err != nil || server.Name() != "node/c1" {
		t.Errorf("the client saw %s, %v", server.Name(), err)
	}
	stream, err := c.Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}

	// Quarantined: the next call is refused by the view alone, and Recheck ends the stream that is open.
	m.setState("n1", keyring.NodeQuarantined)
	if err := call(t, c); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a call by a quarantined node: %v", err)
	}
	s.Recheck()
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the open stream of a quarantined node: %v", err)
	}
	m.setState("n1", keyring.NodeActive)
	until(t, "the node to call again", func() bool { return call(t, c) == nil })
}

func TestRPCByAnAdministratorWithPlainTLS(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	s := m.service("c1", map[string]peer.Policy{peer.ProtoAdmin: peer.Admin})
	cert := m.admin("a1", "ana", soon())
	bundle := peer.Bundle{Roots: m.roots(), TrustDomain: trustDomain}

	d, err := peer.NewDialer(peer.DialConfig{Timeout: patience, Identity: identity(t, cert), Bundle: func() *peer.Bundle { return &bundle }})
	if err != nil {
		t.Fatal(err)
	}
	if err := call(t, client(t, s.addr, d.DialOptions(peer.ProtoAdmin, ""))); err != nil {
		t.Fatalf("our client: %v", err)
	}
	if got := s.caller.Load().Name(); got != "admin/a1" {
		t.Errorf("the server saw %s", got)
	}
	plain := credentials.NewTLS(bundle.ClientTLS(cert)) // what grpcurl does
	if err := call(t, client(t, s.addr, []grpc.DialOption{grpc.WithTransportCredentials(plain)})); err != nil {
		t.Fatalf("a plain gRPC client: %v", err)
	}
	node := client(t, s.addr, m.dialer(m.node("n1", keyring.RoleProxy)).DialOptions(peer.ProtoAdmin, "c1"))
	if err := call(t, node); status.Code(err) != codes.Unavailable {
		t.Errorf("a node on the administrators' protocol: %v", err)
	}
}

func TestJoinBindsToTheConnection(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	s := m.service("c1", map[string]peer.Policy{peer.ProtoJoin: peer.Nobody})
	conn, err := peer.Pinned{Pin: m.pin()}.Dial(t.Context(), s.addr)
	if err != nil {
		t.Fatal(err)
	}
	state := conn.ConnectionState()
	mine, err := state.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		t.Fatal(err)
	}
	c := client(t, s.addr, conn.DialOptions())
	if err := call(t, c); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(mine, *s.ekm.Load()) {
		t.Error("the two ends export different keying material")
	}
	if got := s.caller.Load(); got.Name() != "anonymous" || got.RemoteAddr == nil {
		t.Errorf("the server saw %+v", got)
	}
	conn.Close()
	if err := call(t, c); status.Code(err) != codes.Unavailable {
		t.Errorf("a call after the connection is over: %v", err)
	}
}

func TestAJoinerTrustsThePinnedRootAlone(t *testing.T) {
	t.Parallel()
	m, other := newMesh(t), newMesh(t)
	key := m.node("c1", keyring.RoleControl).PrivateKey.(ed25519.PrivateKey)
	join := map[string]peer.Policy{peer.ProtoJoin: peer.Nobody}
	forged := other.issue(newKey(), "/control/r1/c1", soon())
	forged.Certificate = append(forged.Certificate, m.ca.Raw) // the pinned root is there, but did not sign
	bare := m.issue(key, "/control/r1/c1", soon())
	bare.Certificate = bare.Certificate[:1]
	long := m.issue(key, "/control/r1/c1", soon())
	for range 8 {
		long.Certificate = append(long.Certificate, m.ca.Raw)
	}
	for name, tc := range map[string]struct {
		server *port
		want   fault.Kind
	}{
		"plain node":               {m.port(m.issue(key, "/node/r1/c1", soon()), nil, join), fault.Unauthenticated},
		"administrator":            {m.port(m.issue(key, "/admin/c1", soon()), nil, join), fault.Unauthenticated},
		"expired":                  {m.port(m.issue(key, "/control/r1/c1", time.Now().Add(-72*time.Hour)), nil, join), fault.Unauthenticated},
		"another mesh":             {m.port(other.issue(newKey(), "/control/r1/c1", soon()), nil, join), fault.Unauthenticated},
		"root that signed nothing": {m.port(forged, nil, join), fault.Unauthenticated},
		"root not sent":            {m.port(bare, nil, join), fault.Unauthenticated},
		"no SPIFFE ID":             {m.port(m.issue(key, "", soon()), nil, join), fault.Unauthenticated},
		"too long a chain":         {m.port(long, nil, join), fault.Unauthenticated},
		"no join there":            {m.port(m.issue(key, "/control/r1/c1", soon()), nil, nil), fault.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := peer.Pinned{Pin: m.pin()}.Dial(t.Context(), tc.server.addr)
			if err == nil {
				c.Close()
			}
			if !fault.Is(err, tc.want) {
				t.Fatalf("%v, want %v", err, tc.want)
			}
		})
	}
}

func TestABundleVerifiesByChainUntilThereIsAView(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	mesh := map[string]peer.Policy{peer.ProtoMesh: peer.AnyNode}
	control := m.node("c1", keyring.RoleControl)
	key := control.PrivateKey.(ed25519.PrivateKey)
	plain := m.node("n2", keyring.RoleProxy)
	client := m.node("n1", keyring.RoleProxy)
	for name, tc := range map[string]struct {
		server *port
		bundle peer.Bundle
		node   string
		want   fault.Kind
		ok     bool
	}{
		"control node":      {m.port(control, nil, mesh), peer.Bundle{Roots: m.roots(), TrustDomain: trustDomain}, "", 0, true},
		"the one meant":     {m.port(control, nil, mesh), peer.Bundle{Roots: m.roots(), TrustDomain: trustDomain}, "c1", 0, true},
		"any node allowed":  {m.port(plain, nil, mesh), peer.Bundle{Roots: m.roots(), TrustDomain: trustDomain, AnyNode: true}, "n2", 0, true},
		"plain node":        {m.port(plain, nil, mesh), peer.Bundle{Roots: m.roots(), TrustDomain: trustDomain}, "", fault.Denied, false},
		"not the one meant": {m.port(control, nil, mesh), peer.Bundle{Roots: m.roots(), TrustDomain: trustDomain}, "c2", fault.Unauthenticated, false},
		"trust domain":      {m.port(control, nil, mesh), peer.Bundle{Roots: m.roots(), TrustDomain: "other.test"}, "", fault.Unauthenticated, false},
		"other roots":       {m.port(control, nil, mesh), peer.Bundle{Roots: x509.NewCertPool(), TrustDomain: trustDomain}, "", fault.Unauthenticated, false},
		"no roots":          {m.port(control, nil, mesh), peer.Bundle{TrustDomain: trustDomain}, "", fault.Unauthenticated, false},
		"expired":           {m.port(m.issue(key, "/control/r1/c1", time.Now().Add(-72*time.Hour)), nil, mesh), peer.Bundle{Roots: m.roots(), TrustDomain: trustDomain}, "", fault.Unauthenticated, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := peer.NewDialer(peer.DialConfig{
				Timeout: patience, Identity: identity(t, client), Bundle: func() *peer.Bundle { return &tc.bundle },
			})
			if err != nil {
				t.Fatal(err)
			}
			err = try(t, d, peer.ProtoMesh, tc.node, tc.server.addr)
			if tc.ok && err != nil || !tc.ok && !fault.Is(err, tc.want) {
				t.Fatalf("%v, want %v", err, tc.want)
			}
		})
	}
}

func TestRaftStream(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	raft := func(id string) (*peer.Stream, string) {
		cert := m.node(id, keyring.RoleControl)
		p := m.port(cert, nil, nil)
		l, err := p.Listen(peer.ProtoRaft, peer.ControlNode)
		if err != nil {
			t.Fatal(err)
		}
		m.mu.Lock()
		m.nodes[id].Addresses.Mesh = p.addr
		m.mu.Unlock()
		m.publish()
		return peer.NewStream(l, m.dialer(cert), peer.ProtoRaft, ""), p.addr
	}
	var _ interface { // what raftstore asks for
		net.Listener
		Dial(addr string, timeout time.Duration) (net.Conn, error)
	} = (*peer.Stream)(nil)
	a, addr := raft("c1")
	b, other := raft("c2")
	if a.Addr().String() != addr {
		t.Errorf("address %s, want %s", a.Addr(), addr)
	}
	out, err := a.Dial(other, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := b.Accept()
	if err != nil {
		t.Fatal(err)
	}
	own, err := peer.Of(in)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := own.Peer(); err != nil || info.Name() != "node/c1" {
		t.Errorf("accepted %s, %v", info.Name(), err)
	}
	// The record says that c2 is elsewhere: who answers at the address must be whom the record names there.
	m.mu.Lock()
	m.nodes["c1"].Addresses.Mesh, m.nodes["c2"].Addresses.Mesh = other, addr
	m.mu.Unlock()
	m.publish()
	if _, err := a.Dial(other, patience); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("dial of an address that the record gives to another: %v", err)
	}
	if _, err := a.Dial(other, 0); !fault.Is(err, fault.Invalid) {
		t.Errorf("dial without time: %v", err)
	}
	if _, err := a.Dial("127.0.0.1:1", patience); !fault.Is(err, fault.Unavailable) {
		t.Errorf("dial of nobody: %v", err)
	}
}
