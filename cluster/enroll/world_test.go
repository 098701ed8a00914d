package enroll_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/cluster/enroll"
	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// patience bounds every wait; a test that works never reaches it.
const patience = 2 * time.Minute

// world is a mesh's root, and a leader that verifies what it is handed as the real one does, then issues a certificate.
type world struct {
	t         testing.TB
	authority keyring.Authority
	caKey     ed25519.PrivateKey
	secret    keyring.ProvisioningSecret

	attempts atomic.Int64
	mu       sync.Mutex
	last     *iapmeshv1.RelayJoinRequest // guarded by mu
	nodes    map[string]string           // join id → node id; guarded by mu
	answer   func(*iapmeshv1.JoinResponse, error) (*iapmeshv1.JoinResponse, error)

	revocations []*iapmeshv1.RelayRevokeByHolderRequest // guarded by mu
	revoked     func(*iapmeshv1.RelayRevokeByHolderRequest) (*iapmeshv1.RevokeByHolderResponse, error)
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, nodes: map[string]string{}}
	var err error
	w.authority, w.caKey, err = keyring.NewAuthority(nil, time.Now(), "mesh.test")
	must(t, err)
	w.secret, err = keyring.GenerateKey(keyring.Pin(w.authority.Certificate), nil)
	must(t, err)
	return w
}

// Snapshot implements peer.Trust: joins are served to strangers, and ask for no view.
func (*world) Snapshot() *keyring.Snapshot { return nil }

func (w *world) issue(key ed25519.PrivateKey, control bool) *x509.Certificate {
	w.t.Helper()
	der, err := keyring.NewCSR(key)
	must(w.t, err)
	csr, err := keyring.ParseCSR(der)
	must(w.t, err)
	cert, err := keyring.IssueNode(w.authority, w.caKey, csr, keyring.NodeTemplate{
		TrustDomain: "mesh.test", Region: "eu-west", NodeID: keyring.NodeID(csr.PublicKey.(ed25519.PublicKey)), Control: control, Now: time.Now(),
	})
	must(w.t, err)
	return cert
}

// certificate is a server's, with the root behind it.
func (w *world) certificate(control bool) *tls.Certificate {
	key := newKey(w.t)
	return &tls.Certificate{Certificate: [][]byte{w.issue(key, control).Raw, w.authority.Certificate.Raw}, PrivateKey: key}
}

// admit is the leader.
func (w *world) admit(_ context.Context, a *iapmeshv1.RelayJoinRequest) (*iapmeshv1.JoinResponse, error) {
	w.attempts.Add(1)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = a
	answer, err := w.decide(a)
	if w.answer != nil {
		return w.answer(answer, err)
	}
	return answer, err
}

func (w *world) decide(a *iapmeshv1.RelayJoinRequest) (*iapmeshv1.JoinResponse, error) {
	var body iapmeshv1.JoinBody
	if err := proto.Unmarshal(a.Join.Body, &body); err != nil {
		return nil, err
	}
	ekm := [32]byte(a.ExportedKeyingMaterial)
	if body.KeyId != w.secret.ID() {
		return nil, fault.New(fault.Unauthenticated, "join: unauthenticated")
	}
	csr, err := keyring.ParseCSR(body.Csr)
	if err != nil {
		return nil, err
	}
	for signer, s := range map[keyring.JoinSigner]struct {
		key       ed25519.PublicKey
		signature []byte
	}{
		keyring.SignerProvisioning: {w.secret.PublicKey(), a.Join.ProvisioningSignature},
		keyring.SignerNode:         {csr.PublicKey.(ed25519.PublicKey), a.Join.NodeSignature},
		keyring.SignerSession:      {body.SessionPublicKey, a.Join.SessionSignature},
	} {
		if err := keyring.VerifyJoin(signer, s.key, ekm, a.Join.Body, s.signature); err != nil {
			return nil, err
		}
	}
	id := keyring.NodeID(csr.PublicKey.(ed25519.PublicKey))
	if have, ok := w.nodes[string(body.JoinId)]; ok && have != id {
		return nil, fault.New(fault.Conflict, "another's join id")
	}
	w.nodes[string(body.JoinId)] = id
	cert, err := keyring.IssueNode(w.authority, w.caKey, csr, keyring.NodeTemplate{TrustDomain: "mesh.test", Region: body.Region, NodeID: id, Now: time.Now()})
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.JoinResponse{
		NodeId: id, Certificate: cert.Raw, Bundle: [][]byte{w.authority.Certificate.Raw}, MeshId: "m-1", TrustDomain: "mesh.test",
		Revision: &iapmeshv1.Revision{Epoch: 1, Index: 7},
	}, nil
}

// serve runs a node's mesh port with the join protocol; admit is nil on one that is no control node.
func (w *world) serve(cert *tls.Certificate, admit enroll.Admit, locate ...*iapmeshv1.ControlNode) string {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(w.t, err)
	id, err := peer.NewIdentity(cert)
	must(w.t, err)
	port, err := peer.NewPort(peer.Config{Listener: l, Identity: id, Trust: w, HandshakeTimeout: patience, AnonymousLifetime: time.Hour})
	must(w.t, err)
	joins, err := port.Listen(peer.ProtoJoin, peer.Nobody)
	must(w.t, err)
	server := enroll.NewServer(admit, func() []*iapmeshv1.ControlNode { return locate }, slog.New(slog.DiscardHandler), nil)
	if admit != nil {
		server.Revoke = w.revoke
	}
	server.KeyOf = func(id string) ed25519.PublicKey {
		if id == w.secret.ID() {
			return w.secret.PublicKey()
		}
		return nil
	}
	w.run(port.Run) // ends last: it closes the server's listener
	w.run(func(ctx context.Context) error { return server.Run(ctx, joins) })
	return l.Addr().String()
}

func (w *world) run(f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("run: %v", err)
		}
	})
}

// request is a fresh node's.
func (w *world) request(addresses ...string) enroll.Request {
	w.t.Helper()
	return w.requestOf(w.t, addresses...)
}

// requestOf is request in a test within the world's: a fuzz target's functions are not to be called by what it fuzzes.
func (w *world) requestOf(t testing.TB, addresses ...string) enroll.Request {
	t.Helper()
	r := enroll.Request{
		Addresses: addresses, Secret: w.secret, NodeKey: newKey(t), SessionKey: newKey(t), SealingKey: make([]byte, 32), Name: "web-1", Region: "eu-west",
		Roles: []iapmeshv1.Role{iapmeshv1.Role_ROLE_PROXY}, Logger: slog.New(slog.DiscardHandler), RetryEvery: 10 * time.Millisecond,
	}
	rand.Read(r.JoinID[:])
	return r
}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, k, err := ed25519.GenerateKey(nil)
	must(t, err)
	return k
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func soon(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}
