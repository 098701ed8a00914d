package peer_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/keyring"
)

// authority is the mesh's real CA.
func (m *mesh) authority() (keyring.Authority, ed25519.PrivateKey) {
	m.t.Helper()
	a, key, err := keyring.NewAuthority(rand.Reader, time.Now(), trustDomain)
	if err != nil {
		m.t.Fatal(err)
	}
	a.State = keyring.AuthorityActive
	return a, key
}

func request(t *testing.T, key ed25519.PrivateKey) *x509.CertificateRequest {
	t.Helper()
	der, err := keyring.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := keyring.ParseCSR(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// What the mesh's own CA issues must work everywhere: for a joiner that pinned the root before it was rotated, among nodes, and
// for grpcurl -cacert root.pem -cert ana.pem -key ana.key -authority <node id>.
func TestWithCertificatesOfTheMeshAuthority(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	first, firstKey := m.authority()
	second, secondKey := m.authority()
	crossed, err := keyring.CrossSign(first, firstKey, second, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	issue := func(key ed25519.PrivateKey, id string) *tls.Certificate {
		leaf, err := keyring.IssueNode(second, secondKey, request(t, key), keyring.NodeTemplate{
			TrustDomain: trustDomain, Region: "r1", NodeID: id, Control: id == "c1", Now: time.Now(),
		})
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Certificate{Certificate: [][]byte{leaf.Raw, crossed.Raw, second.Certificate.Raw, first.Certificate.Raw}, PrivateKey: key}
	}
	s := m.service("c1", map[string]peer.Policy{peer.ProtoAdmin: peer.Admin, peer.ProtoJoin: peer.Nobody, peer.ProtoMesh: peer.AnyNode})
	key := func(id string) ed25519.PrivateKey {
		return m.node(id, keyring.RoleProxy).PrivateKey.(ed25519.PrivateKey)
	}
	serverKey := newKey()
	m.mu.Lock()
	m.nodes["c1"].PublicKey = serverKey.Public().(ed25519.PublicKey)
	m.mu.Unlock()
	m.publish()
	if err := s.identity.Set(issue(serverKey, "c1")); err != nil {
		t.Fatal(err)
	}

	for name, root := range map[string]keyring.Authority{"retired root": first, "new root": second} {
		conn, err := peer.Pinned{Pin: keyring.Pin(root.Certificate)}.Dial(t.Context(), s.addr)
		if err != nil {
			t.Errorf("join pinned to the %s: %v", name, err)
			continue
		}
		conn.Close()
	}

	d := m.dialer(issue(key("n1"), "n1"))
	if err := call(t, client(t, s.addr, d.DialOptions(peer.ProtoMesh, "c1"))); err != nil {
		t.Errorf("among nodes: %v", err)
	}

	adminKey := newKey()
	leaf, err := keyring.IssueAdmin(second, secondKey, request(t, adminKey), keyring.AdminTemplate{TrustDomain: trustDomain, Name: "ana", Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	m.admins["a1"] = &keyring.Admin{ID: "a1", Name: "ana", PublicKey: adminKey.Public().(ed25519.PublicKey), ExpiresAt: leaf.NotAfter}
	m.mu.Unlock()
	m.publish()
	for name, root := range map[string]keyring.Authority{"retired root": first, "new root": second} {
		roots := x509.NewCertPool()
		roots.AddCert(root.Certificate)
		plain := credentials.NewTLS(&tls.Config{
			RootCAs: roots, ServerName: "c1",
			Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: adminKey}},
		})
		if err := call(t, client(t, s.addr, []grpc.DialOption{grpc.WithTransportCredentials(plain)})); err != nil {
			t.Errorf("plain gRPC with the %s: %v", name, err)
		}
		bundle := peer.Bundle{Roots: roots, TrustDomain: trustDomain}
		ours := credentials.NewTLS(bundle.ClientTLS(&tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: adminKey}))
		if err := call(t, client(t, s.addr, []grpc.DialOption{grpc.WithTransportCredentials(ours)})); err != nil {
			t.Errorf("our command line with the %s: %v", name, err)
		}
	}
}
