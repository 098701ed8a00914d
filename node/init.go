package node

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"github.com/iapmesh/iapmesh/cluster/raftstore"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/profile"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/control"
)

// InitConfig says how a mesh is founded. Config is the first node's, with role control.
type InitConfig struct {
	Config
	TrustDomain string // of the SPIFFE IDs, such as mesh.example.com
	Admin       string // name of the first administrator
	Grants      []keyring.Role
	Logger      *slog.Logger
}

// Founded is what init hands over, once: neither secret is stored anywhere else.
type Founded struct {
	MeshID    string
	NodeID    string
	Bootstrap keyring.ProvisioningSecret
	Key       keyring.Key
	Profile   profile.Profile
}

// Init founds a mesh in a new data directory: its CA, its first control node, an administrator and one bootstrap key.
func Init(ctx context.Context, c InitConfig) (*Founded, error) {
	if !c.HasRole(keyring.RoleControl) {
		return nil, fault.New(fault.Invalid, "roles %v: the first node of a mesh is a control node", c.Roles)
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	advertised, err := c.addresses()
	if err != nil {
		return nil, err
	}
	if c.DataDir, err = filepath.Abs(c.DataDir); err != nil {
		return nil, fault.New(fault.Invalid, "data_dir: %w", err)
	}
	id, err := openIdentity(ctx, &c.Config)
	if err != nil {
		return nil, err
	}
	if id.enrolled() {
		return nil, fault.New(fault.Conflict, "%s belongs to node %s of mesh %s already", c.DataDir, id.public.NodeID, id.public.MeshID)
	}
	f, err := newFounding(&c, id, advertised)
	if err != nil {
		return nil, err
	}
	if err := commitFounding(ctx, &c, id, f.founding); err != nil {
		return nil, err
	}
	p := &id.public
	p.Founder, p.NodeID, p.MeshID, p.TrustDomain = true, f.founding.Node.ID, f.founding.Mesh.ID, c.TrustDomain
	p.Certificate, p.Bundle = f.certificate.Raw, [][]byte{f.founding.Authority.Certificate.Raw}
	p.ControlNodes = []controlNode{{NodeID: p.NodeID, Region: c.Region, Address: advertised.Mesh}}
	p.FirstKey = firstKey{Epoch: 1}
	if err := id.save(); err != nil {
		return nil, err
	}
	return &Founded{MeshID: p.MeshID, NodeID: p.NodeID, Bootstrap: f.secret, Key: f.founding.Keys[0], Profile: f.profile}, nil
}

// founding is all that is made before anything is committed.
type founding struct {
	founding    control.Founding
	secret      keyring.ProvisioningSecret
	certificate *x509.Certificate
	profile     profile.Profile
}

func newFounding(c *InitConfig, id *identity, advertised keyring.Addresses) (*founding, error) {
	now := time.Now().UTC().Truncate(time.Millisecond)
	authority, caKey, err := keyring.NewAuthority(rand.Reader, now, c.TrustDomain)
	if err != nil {
		return nil, err
	}
	secret, err := keyring.GenerateKey(keyring.Pin(authority.Certificate), rand.Reader)
	if err != nil {
		return nil, err
	}
	request := keyring.BootstrapRequest(secret.PublicKey(), "init", now)
	if len(c.Grants) > 0 {
		request.Grants = c.Grants
	}
	key, err := keyring.IssueKey(request)
	if err != nil {
		return nil, err
	}
	sealing, err := seal.ParseSealingKey(id.keys.Sealing)
	if err != nil {
		return nil, err
	}
	node, err := newControlNode(&c.Config, id, advertised, now)
	if err != nil {
		return nil, err
	}
	node.ProvisioningKey, node.BoundKey = key.ID, key.ID
	f := &founding{secret: secret}
	if f.certificate, err = issueNodeCertificate(authority, caKey, id.nodeKey(), node, c.TrustDomain, now); err != nil {
		return nil, err
	}
	admin, err := f.issueAdmin(c, authority, caKey, now)
	if err != nil {
		return nil, err
	}
	mesh := keyring.Mesh{ID: "m-" + hex.EncodeToString(random(8)), TrustDomain: c.TrustDomain, FoundedAt: now}
	f.profile.Mesh, f.profile.ControlNodes = mesh.ID, []string{advertised.Mesh}
	f.founding = control.Founding{
		Mesh: mesh, Authority: &authority, AuthorityKey: caKey, Node: node, SealingKey: sealing, Admin: admin, Keys: []keyring.Key{key},
	}
	return f, nil
}

// newControlNode is the record of a mesh's first node, but for the key that it counts under.
func newControlNode(c *Config, id *identity, advertised keyring.Addresses, now time.Time) (*keyring.Node, error) {
	sealing, err := seal.ParseSealingKey(id.keys.Sealing)
	if err != nil {
		return nil, err
	}
	public := id.nodeKey().Public().(ed25519.PublicKey)
	return &keyring.Node{
		ID: keyring.NodeID(public), Name: c.Name, Region: c.Region, Roles: c.roles(), Addresses: advertised, PublicKey: public, SealingPublicKey: sealing.PublicKey(),
		SessionPublicKey: id.sessionKey().Public().(ed25519.PublicKey), State: keyring.NodeActive, JoinID: hex.EncodeToString(id.public.JoinID),
		EnrolledAt: now, StateSince: now, CertExpiresAt: now.Add(keyring.NodeCertLife),
	}, nil
}

func issueNodeCertificate(a keyring.Authority, caKey, nodeKey ed25519.PrivateKey, n *keyring.Node, trustDomain string, now time.Time) (*x509.Certificate, error) {
	der, err := keyring.NewCSR(nodeKey)
	if err != nil {
		return nil, err
	}
	csr, err := keyring.ParseCSR(der)
	if err != nil {
		return nil, err
	}
	return keyring.IssueNode(a, caKey, csr, keyring.NodeTemplate{TrustDomain: trustDomain, Region: n.Region, NodeID: n.ID, Control: true, Now: now})
}

func (f *founding) issueAdmin(c *InitConfig, a keyring.Authority, caKey ed25519.PrivateKey, now time.Time) (*keyring.Admin, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fault.New(fault.Internal, "make the administrator's key: %w", err)
	}
	admin, err := keyring.NewAdmin(c.Admin, public, now)
	if err != nil {
		return nil, err
	}
	der, err := keyring.NewCSR(private)
	if err != nil {
		return nil, err
	}
	csr, err := keyring.ParseCSR(der)
	if err != nil {
		return nil, err
	}
	cert, err := keyring.IssueAdmin(a, caKey, csr, keyring.AdminTemplate{TrustDomain: c.TrustDomain, Name: c.Admin, Now: now})
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fault.New(fault.Internal, "encode the administrator's key: %w", err)
	}
	f.profile = profile.Profile{
		TrustDomain: c.TrustDomain, Name: c.Admin, Roots: profile.CertificatePEM(a.Certificate.Raw), Certificate: profile.CertificatePEM(cert.Raw),
		Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})),
	}
	return &admin, nil
}

// commitFounding starts the engine of one member for as long as the first commit takes.
func commitFounding(ctx context.Context, c *InitConfig, id *identity, f control.Founding) error {
	engine, err := raftstore.Open(raftstore.Config{
		Dir: filepath.Join(c.DataDir, raftDir), NodeID: f.Node.ID, Transport: newAlone(f.Node.Addresses.Mesh), Seal: id.sealer, Bootstrap: true, Logger: c.Logger,
	})
	if err != nil {
		return err
	}
	return leadOnce(ctx, engine, 30*time.Second, func(ctx context.Context) error { return control.Found(ctx, engine, f) })
}

// leadOnce runs an engine of one member for as long as f takes.
func leadOnce(ctx context.Context, engine *raftstore.Store, patience time.Duration, f func(context.Context) error) error {
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- engine.Run(running) }()
	lead, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := error(fault.New(fault.Unavailable, "the engine did not come to lead itself within %v", patience))
	_ = engine.Lead(lead, func(ctx context.Context, _ store.Term) error { // it ends with lead, whose end says nothing more
		defer cancel()
		err = f(ctx)
		return err
	})
	stop()
	return errors.Join(err, <-ended)
}

// alone is the transport of an engine that has no other members: nobody calls, and nobody is called.
type alone struct {
	addr   net.Addr
	closed chan struct{}
}

func newAlone(addr string) *alone { return &alone{addr: meshAddr(addr), closed: make(chan struct{})} }

func (a *alone) Accept() (net.Conn, error) {
	<-a.closed
	return nil, net.ErrClosed
}

func (a *alone) Close() error {
	select {
	case <-a.closed:
	default:
		close(a.closed)
	}
	return nil
}

func (a *alone) Addr() net.Addr { return a.addr }

func (a *alone) Dial(addr string, _ time.Duration) (net.Conn, error) {
	return nil, fault.New(fault.Unavailable, "dial %s: this engine is alone", addr)
}

// meshAddr is a host:port as others reach it; it may name a host.
type meshAddr string

func (meshAddr) Network() string  { return "tcp" }
func (a meshAddr) String() string { return string(a) }
