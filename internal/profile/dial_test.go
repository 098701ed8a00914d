package profile_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/profile"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

const trustDomain = "mesh.test"

// mesh is a CA, and control nodes that answer as the test says.
type mesh struct {
	t         *testing.T
	authority keyring.Authority
	key       ed25519.PrivateKey
}

func newMesh(t *testing.T) *mesh {
	t.Helper()
	authority, key, err := keyring.NewAuthority(nil, time.Now(), trustDomain)
	if err != nil {
		t.Fatal(err)
	}
	return &mesh{t, authority, key}
}

func (m *mesh) request() (*x509.CertificateRequest, ed25519.PrivateKey) {
	m.t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		m.t.Fatal(err)
	}
	der, err := keyring.NewCSR(key)
	if err != nil {
		m.t.Fatal(err)
	}
	csr, err := keyring.ParseCSR(der)
	if err != nil {
		m.t.Fatal(err)
	}
	return csr, key
}

// profile is an administrator's, issued at that time, who knows those nodes.
func (m *mesh) profile(at time.Time, nodes ...string) *profile.Profile {
	m.t.Helper()
	csr, key := m.request()
	cert, err := keyring.IssueAdmin(m.authority, m.key, csr, keyring.AdminTemplate{TrustDomain: trustDomain, Name: "ana", Now: at})
	if err != nil {
		m.t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		m.t.Fatal(err)
	}
	return &profile.Profile{
		TrustDomain: trustDomain, Name: "ana", ControlNodes: nodes, Roots: profile.CertificatePEM(m.authority.Certificate.Raw),
		Certificate: profile.CertificatePEM(cert.Raw), Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	}
}

// node is a control node of the mesh.
type node struct {
	iapmeshv1.UnimplementedClusterServiceServer
	address string
	asked   atomic.Int32
	answer  func(asked int32) (leader string, err error)
}

// serve starts a node that answers GetStatus, and each WatchStatus twice, as answer says: with whom it names, and its error.
func (m *mesh) serve(answer func(asked int32) (leader string, err error)) *node {
	m.t.Helper()
	csr, key := m.request()
	cert, err := keyring.IssueNode(m.authority, m.key, csr, keyring.NodeTemplate{
		TrustDomain: trustDomain, Region: "eu-west", NodeID: keyring.NodeID(key.Public().(ed25519.PublicKey)), Control: true, Now: time.Now(),
	})
	if err != nil {
		m.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		m.t.Fatal(err)
	}
	n := &node{address: l.Addr().String(), answer: answer}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAnyClientCert,
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}},
	})))
	iapmeshv1.RegisterClusterServiceServer(s, n)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	m.t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			m.t.Errorf("serve: %v", err)
		}
	})
	return n
}

func (n *node) reply(point func(metadata.MD)) error {
	leader, err := n.answer(n.asked.Add(1))
	if leader != "" {
		point(metadata.Pairs(profile.LeaderTrailer, "n-whoever "+leader))
	}
	return fault.ToStatus(err)
}

func (n *node) GetStatus(ctx context.Context, _ *iapmeshv1.GetStatusRequest) (*iapmeshv1.GetStatusResponse, error) {
	if err := n.reply(func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) }); err != nil { // within a call it cannot fail
		return nil, err
	}
	return &iapmeshv1.GetStatusResponse{Status: &iapmeshv1.Status{AnsweredBy: n.address}}, nil
}

func (n *node) WatchStatus(_ *iapmeshv1.WatchStatusRequest, s grpc.ServerStreamingServer[iapmeshv1.WatchStatusResponse]) error {
	for range 2 {
		if err := n.reply(s.SetTrailer); err != nil {
			return err
		}
		if err := s.Send(&iapmeshv1.WatchStatusResponse{Status: &iapmeshv1.Status{AnsweredBy: n.address}}); err != nil {
			return err
		}
	}
	return nil
}

func leads(int32) (string, error) { return "", nil }

func follows(leader func() string) func(int32) (string, error) {
	return func(int32) (string, error) { return leader(), fault.New(fault.Unavailable, "this node does not lead") }
}

// closed is an address where nobody listens, nor is given a port at random.
const closed = "127.0.0.1:1"

// dial makes a client that is patient: a handshake that does not end within 3 s, on a machine that is busy, is tried again.
func dial(t *testing.T, p *profile.Profile) *profile.Client {
	t.Helper()
	c, err := p.Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.Patience = time.Minute
	return c
}

// connected is dial for a test in which nothing is tried again: the client has reached the nodes before.
func connected(t *testing.T, p *profile.Profile, nodes ...*node) *profile.Client {
	t.Helper()
	c := dial(t, p)
	for _, n := range nodes {
		err := c.CallNode(t.Context(), n.address, func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) error {
			_, err := iapmeshv1.NewClusterServiceClient(conn).GetStatus(ctx, &iapmeshv1.GetStatusRequest{}, append(opts, grpc.WaitForReady(true))...)
			return err
		})
		if n.asked.Load() == 0 {
			t.Fatalf("%s is not reached: %v", n.address, err)
		}
	}
	return c
}

func status(ctx context.Context, c *profile.Client) (by string, err error) {
	err = c.Call(ctx, func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) error {
		resp, err := iapmeshv1.NewClusterServiceClient(conn).GetStatus(ctx, &iapmeshv1.GetStatusRequest{}, opts...)
		by = resp.GetStatus().GetAnsweredBy()
		return err
	})
	return by, err
}

func TestCallFollowsTheLeaderThatTheProfileDoesNotName(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	leader := m.serve(leads)
	follower := m.serve(follows(func() string { return leader.address }))
	c := connected(t, m.profile(time.Now(), closed, follower.address), leader, follower)
	before := follower.asked.Load()
	for range 3 {
		by, err := status(t.Context(), c)
		if err != nil || by != leader.address {
			t.Fatalf("answered by %q, %v; want the leader %s", by, err, leader.address)
		}
	}
	if n := follower.asked.Load() - before; n != 1 {
		t.Errorf("the follower was asked %d times: the client forgets who leads", n)
	}
}

func TestCallWaitsForAnElection(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	n := m.serve(func(asked int32) (string, error) {
		if asked < 3 {
			return "", fault.New(fault.Unavailable, "an election is under way")
		}
		return "", nil
	})
	c := dial(t, m.profile(time.Now(), n.address))
	var said atomic.Value
	c.Waiting = func(err error) { said.Store(err.Error()) }
	if by, err := status(t.Context(), c); err != nil || by != n.address {
		t.Fatalf("answered by %q, %v", by, err)
	}
	if text, _ := said.Load().(string); !strings.Contains(text, "an election is under way") {
		t.Errorf("while it waited it was told %q", text)
	}
}

func TestCallEndsThoughNodesNameEachOther(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	var a, b *node
	a = m.serve(follows(func() string { return b.address }))
	b = m.serve(follows(func() string { return a.address }))
	c := connected(t, m.profile(time.Now(), a.address), a, b)
	c.Patience = time.Millisecond
	if _, err := status(t.Context(), c); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "does not lead") {
		t.Errorf("got %v", err)
	}
}

func TestARefusalIsFinal(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	n := m.serve(func(int32) (string, error) { return "", fault.New(fault.Denied, "not you") })
	c := dial(t, m.profile(time.Now(), n.address))
	if _, err := status(t.Context(), c); !fault.Is(err, fault.Denied) || err.Error() != "not you" {
		t.Errorf("got %v", err)
	}
	if asked := n.asked.Load(); asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}

func TestANodeOfAnotherMeshIsNotBelieved(t *testing.T) {
	t.Parallel()
	m, other := newMesh(t), newMesh(t)
	n := other.serve(leads)
	c := dial(t, m.profile(time.Now(), n.address)) // that does not pass with time, so none is spent
	if _, err := status(t.Context(), c); !fault.Is(err, fault.Unauthenticated) || !strings.Contains(err.Error(), "is not of this profile's mesh") {
		t.Errorf("got %v", err)
	}
	if n.asked.Load() != 0 {
		t.Error("it was asked all the same")
	}
}

func TestTheContextEndsACall(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	c := dial(t, m.profile(time.Now(), closed))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.Patience = time.Hour
	c.Waiting = func(error) { cancel() } // once it has been told why
	if _, err := status(ctx, c); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), closed) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got %v, want whom was asked and what became of it", err)
	}
}

func TestAStreamGoesOnWithTheNextLeader(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	next := m.serve(leads)
	first := m.serve(func(asked int32) (string, error) {
		if asked == 1 {
			return "", nil
		}
		return next.address, fault.New(fault.Unavailable, "the lead was lost")
	})
	c := dial(t, m.profile(time.Now(), first.address))
	var by []string
	err := c.Call(t.Context(), func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) error {
		s, err := iapmeshv1.NewClusterServiceClient(conn).WatchStatus(ctx, &iapmeshv1.WatchStatusRequest{}, opts...)
		for err == nil {
			var r *iapmeshv1.WatchStatusResponse
			if r, err = s.Recv(); err == nil {
				by = append(by, r.Status.AnsweredBy)
			}
			if len(by) == 3 {
				return nil
			}
		}
		return err
	})
	if err != nil || strings.Join(by, " ") != strings.Join([]string{first.address, next.address, next.address}, " ") {
		t.Errorf("heard %v, %v", by, err)
	}
}

func TestDialRefuses(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	long := time.Now().Add(-keyring.AdminLife - 24*time.Hour)
	for name, tc := range map[string]struct {
		profile *profile.Profile
		kind    fault.Kind
		text    string
	}{
		"expired":  {m.profile(long, "127.0.0.1:1"), fault.Unauthenticated, "expired at"},
		"nowhere":  {m.profile(time.Now()), fault.Invalid, "control_nodes"},
		"rootless": {func() *profile.Profile { p := m.profile(time.Now(), "127.0.0.1:1"); p.Roots = ""; return p }(), fault.Invalid, "roots"},
		"keyless":  {func() *profile.Profile { p := m.profile(time.Now(), "127.0.0.1:1"); p.Key = ""; return p }(), fault.Invalid, "certificate and key"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := tc.profile.Dial(); !fault.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v, want %v naming %q", err, tc.kind, tc.text)
			}
		})
	}
}
