package peer

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// requirement is what a peer must be: admitted by policy and, if node is set, that node.
type requirement struct {
	policy Policy
	node   string
	self   ownKey // whose source does not count
}

// credential is what a peer has proved by its handshake: that it holds the leaf's key. Whether that counts, check says.
type credential struct {
	pub     ed25519.PublicKey
	id      keyring.ID
	chain   []*x509.Certificate
	inbound bool       // the peer dialed this side
	source  netip.Addr // from where, if it did
}

// check decides whether the holder of a credential may speak. A nil credential is that of an anonymous peer.
type check func(*credential) (Info, error)

// read reads the credential from a handshake.
func read(cs tls.ConnectionState) (*credential, error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, fault.New(fault.Unauthenticated, "verify peer: it sent no certificate")
	}
	leaf := cs.PeerCertificates[0]
	pub, ok := leaf.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, fault.New(fault.Unauthenticated, "verify peer: its key is not Ed25519")
	}
	id, err := keyring.ParseID(leaf)
	if err != nil {
		return nil, fmt.Errorf("verify peer: %w", err)
	}
	return &credential{pub: pub, id: id, chain: cs.PeerCertificates}, nil
}

// verifyConnection is the hook of crypto/tls that runs check in every handshake.
func (c check) verifyConnection(cs tls.ConnectionState) error {
	cred, err := read(cs)
	if err != nil {
		return err
	}
	_, err = c(cred)
	return err
}

// verifyFrom is verifyConnection for a peer that came from an address.
func (c check) verifyFrom(source netip.Addr, cs tls.ConnectionState) error {
	cred, err := read(cs)
	if err != nil {
		return err
	}
	cred.inbound, cred.source = true, source
	_, err = c(cred)
	return err
}

// byRecord decides whether the holder of a credential may speak, by the records of the view and by nothing else.
func byRecord(view *keyring.Snapshot, cred *credential, want requirement, now time.Time) (Info, error) {
	if view == nil {
		return Info{}, fault.New(fault.Unavailable, "verify peer: this node has no view of the mesh yet")
	}
	id, pub := cred.id, cred.pub
	if id.TrustDomain != view.Mesh.TrustDomain {
		return Info{}, fault.New(fault.Unauthenticated, "verify peer: it is of trust domain %q, not of %q", id.TrustDomain, view.Mesh.TrustDomain)
	}
	if id.Kind == keyring.KindAdmin {
		return adminByRecord(view, pub, id, want, now)
	}
	// By the record that the certificate names, and not by whatever record has its key: so one key never speaks as two nodes.
	node := view.Nodes[id.Node]
	switch {
	case node == nil || !pub.Equal(node.PublicKey):
		return Info{}, fault.New(fault.Unauthenticated, "verify peer: its key is not that of node/%s", id.Node)
	case !node.Trusted() && want.policy != KnownNode:
		return Info{}, fault.New(fault.Denied, "verify peer: node/%s is %s", node.ID, node.State)
	case want.node != "" && want.node != node.ID:
		return Info{}, fault.New(fault.Unauthenticated, "verify peer: node/%s answered where node/%s was meant", node.ID, want.node)
	case !want.policy.admitsNode(node):
		return Info{}, fault.New(fault.Denied, "verify peer: node/%s is not admitted: want %s", node.ID, want.policy)
	}
	if cred.inbound && !want.self.equals(pub) {
		if err := view.AdmitsSource(node, cred.source); err != nil {
			return Info{}, fmt.Errorf("verify peer: node/%s: %w", node.ID, err)
		}
	}
	return Info{Node: node}, nil
}

// ownKey is this party's own public key. A node that speaks to itself, as the leader does, comes from whatever address its host picks.
type ownKey ed25519.PublicKey

func (k ownKey) equals(pub ed25519.PublicKey) bool {
	return len(k) > 0 && ed25519.PublicKey(k).Equal(pub)
}

func adminByRecord(view *keyring.Snapshot, pub ed25519.PublicKey, id keyring.ID, want requirement, now time.Time) (Info, error) {
	admin := view.AdminByKey(pub)
	switch {
	case admin == nil || admin.Name != id.Name:
		return Info{}, fault.New(fault.Unauthenticated, "verify peer: its key is not that of administrator %q", id.Name)
	case !admin.RevokedAt.IsZero():
		return Info{}, fault.New(fault.Denied, "verify peer: admin/%s is revoked", admin.ID)
	case now.After(admin.ExpiresAt.Add(keyring.Skew)):
		return Info{}, fault.New(fault.Unauthenticated, "verify peer: the credential of admin/%s expired at %s", admin.ID, admin.ExpiresAt.UTC().Format(time.RFC3339))
	case want.policy != Admin && want.policy != AdminOrNode:
		return Info{}, fault.New(fault.Denied, "verify peer: admin/%s is not admitted: want %s", admin.ID, want.policy)
	}
	return Info{Admin: admin}, nil
}

func (p Policy) admitsNode(n *keyring.Node) bool {
	if role, ok := strings.CutPrefix(string(p), rolePrefix); ok {
		return n.HasRole(keyring.Role(role))
	}
	return p == AnyNode || p == KnownNode || p == AdminOrNode
}

func (p Policy) valid() bool {
	switch p {
	case Nobody, AnyNode, KnownNode, Admin, AdminOrNode:
		return true
	}
	return strings.HasPrefix(string(p), rolePrefix) && len(p) > len(rolePrefix)
}

// Bundle verifies a server by chain, for a party that has no view yet: after the join until the first view, and the command
// line. Certificate expiry is enforced.
type Bundle struct {
	Roots       *x509.CertPool
	TrustDomain string
	AnyNode     bool             // a node that is no control node will do, too
	Clock       func() time.Time // for ClientTLS; nil: time.Now
}

func (b Bundle) verify(cred *credential, node string, now time.Time) error {
	id := cred.id
	switch {
	case b.Roots == nil: // nil would mean the machine's own roots
		return fault.New(fault.Unauthenticated, "verify server: no trusted roots")
	case id.TrustDomain != b.TrustDomain:
		return fault.New(fault.Unauthenticated, "verify server: it is of trust domain %q, not of %q", id.TrustDomain, b.TrustDomain)
	case id.Kind != keyring.KindControl && (!b.AnyNode || id.Kind != keyring.KindNode):
		return fault.New(fault.Denied, "verify server: %s is no control node", id)
	case node != "" && node != id.Node:
		return fault.New(fault.Unauthenticated, "verify server: node/%s answered where node/%s was meant", id.Node, node)
	}
	between := x509.NewCertPool()
	for _, c := range cred.chain[1:min(len(cred.chain), keyring.MaxChain)] {
		between.AddCert(c)
	}
	if _, err := cred.chain[0].Verify(x509.VerifyOptions{Roots: b.Roots, Intermediates: between, CurrentTime: now}); err != nil {
		return fault.New(fault.Unauthenticated, "verify server: %w", err)
	}
	return nil
}

// ClientTLS is the configuration by which a plain TLS client, such as a gRPC library, verifies a server by the bundle and presents
// cert; nil presents none. The caller adds what it negotiates.
func (b Bundle) ClientTLS(cert *tls.Certificate) *tls.Config {
	clock := b.Clock
	if clock == nil {
		clock = time.Now
	}
	c := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, //nolint:gosec // a host's name says nothing about a node; VerifyConnection decides
		VerifyConnection: check(func(cred *credential) (Info, error) {
			return Info{}, b.verify(cred, "", clock())
		}).verifyConnection,
	}
	if cert != nil {
		c.Certificates = []tls.Certificate{*cert}
	}
	return c
}
