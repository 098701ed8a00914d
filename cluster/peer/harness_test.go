package peer_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
)

const (
	trustDomain = "mesh.test"
	patience    = 2 * time.Minute // bounds every wait; a test that works never reaches it
)

// mesh is a CA, the records, and the view that all parties of a test share.
type mesh struct {
	t      testing.TB
	caKey  ed25519.PrivateKey
	ca     *x509.Certificate
	view   atomic.Pointer[keyring.Snapshot]
	mu     sync.Mutex
	nodes  map[string]*keyring.Node
	admins map[string]*keyring.Admin
}

func newMesh(t testing.TB) *mesh {
	t.Helper()
	m := &mesh{t: t, nodes: map[string]*keyring.Node{}, admins: map[string]*keyring.Admin{}}
	_, m.caKey, _ = ed25519.GenerateKey(rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * 365 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
		URIs: []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, m.caKey.Public(), m.caKey)
	if err != nil {
		t.Fatal(err)
	}
	if m.ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	m.publish()
	return m
}

func (m *mesh) Snapshot() *keyring.Snapshot { return m.view.Load() }

// publish makes the records the current view.
func (m *mesh) publish() {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := keyring.Contents{
		Mesh:  keyring.Mesh{ID: "m1", TrustDomain: trustDomain},
		Nodes: map[string]*keyring.Node{}, Admins: map[string]*keyring.Admin{},
	}
	for id, n := range m.nodes {
		copied := *n
		c.Nodes[id] = &copied
	}
	for id, a := range m.admins {
		copied := *a
		c.Admins[id] = &copied
	}
	m.view.Store(keyring.NewSnapshot(revision.Revision{Epoch: 1, Index: 1}, c))
}

func (m *mesh) setState(id string, s keyring.NodeState) {
	m.mu.Lock()
	m.nodes[id].State = s
	m.mu.Unlock()
	m.publish()
}

func newKey() ed25519.PrivateKey {
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	return key
}

// issue signs a certificate for key with the SPIFFE path, valid until.
func (m *mesh) issue(key ed25519.PrivateKey, path string, until time.Time) *tls.Certificate {
	m.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		NotBefore:    until.Add(-24 * time.Hour), NotAfter: until,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if path != "" {
		template.URIs = []*url.URL{{Scheme: "spiffe", Host: trustDomain, Path: path}}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, m.ca, key.Public(), m.caKey)
	if err != nil {
		m.t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, m.ca.Raw}, PrivateKey: key}
}

func soon() time.Time { return time.Now().Add(time.Hour) }

// node enrols a node of region r1 and returns its certificate.
func (m *mesh) node(id string, roles ...keyring.Role) *tls.Certificate {
	m.t.Helper()
	key := newKey()
	kind := "node"
	n := &keyring.Node{ID: id, Region: "r1", Roles: roles, PublicKey: key.Public().(ed25519.PublicKey), State: keyring.NodeActive}
	if n.HasRole(keyring.RoleControl) {
		kind = "control"
	}
	m.mu.Lock()
	m.nodes[id] = n
	m.mu.Unlock()
	m.publish()
	return m.issue(key, "/"+kind+"/r1/"+id, soon())
}

func (m *mesh) admin(id, name string, expires time.Time) *tls.Certificate {
	m.t.Helper()
	key := newKey()
	m.mu.Lock()
	m.admins[id] = &keyring.Admin{ID: id, Name: name, PublicKey: key.Public().(ed25519.PublicKey), ExpiresAt: expires}
	m.mu.Unlock()
	m.publish()
	return m.issue(key, "/admin/"+name, soon())
}

func (m *mesh) pin() [32]byte { return keyring.Pin(m.ca) }

func (m *mesh) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(m.ca)
	return pool
}

func identity(t testing.TB, cert *tls.Certificate) *peer.Identity {
	t.Helper()
	if cert == nil {
		return nil
	}
	id, err := peer.NewIdentity(cert)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// port is a running mesh port whose protocols echo what they read.
type port struct {
	*peer.Port
	addr     string
	identity *peer.Identity
	accepted chan *peer.Conn
}

func (m *mesh) port(cert *tls.Certificate, change func(*peer.Config), protos map[string]peer.Policy) *port {
	m.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		m.t.Fatal(err)
	}
	// A loaded machine takes its time over a handshake, and between two calls.
	config := peer.Config{Listener: l, Identity: identity(m.t, cert), Trust: m, HandshakeTimeout: patience, AnonymousLifetime: time.Hour}
	if change != nil {
		change(&config)
	}
	p, err := peer.NewPort(config)
	if err != nil {
		m.t.Fatal(err)
	}
	out := &port{Port: p, addr: l.Addr().String(), identity: config.Identity, accepted: make(chan *peer.Conn, 1024)}
	for name, policy := range protos {
		pl, err := p.Listen(name, policy)
		if err != nil {
			m.t.Fatal(err)
		}
		go out.echo(pl)
	}
	m.run(p.Run)
	return out
}

func (p *port) echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		p.accepted <- c.(*peer.Conn)
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

// run runs f until the test ends, and fails the test if f fails.
func (m *mesh) run(f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	m.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			m.t.Errorf("run: %v", err)
		}
	})
}

func (m *mesh) dialer(cert *tls.Certificate) *peer.Dialer {
	m.t.Helper()
	d, err := peer.NewDialer(peer.DialConfig{Identity: identity(m.t, cert), Trust: m, Timeout: patience})
	if err != nil {
		m.t.Fatal(err)
	}
	return d
}

// echoes reports whether the connection is admitted by both ends: TLS 1.3 tells a client of a refusal with the first read.
func echoes(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != "ping" {
		return errors.New("echo of " + string(got))
	}
	return nil
}

// try dials and echoes.
func try(t *testing.T, d *peer.Dialer, proto, node, addr string) error {
	t.Helper()
	c, err := d.Dial(t.Context(), proto, node, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	return echoes(c)
}

// ended waits until the other end has ended c.
func ended(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	_, err := c.Read(make([]byte, 1))
	var timeout net.Error
	if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Fatalf("the connection is still open: %v", err)
	}
}
