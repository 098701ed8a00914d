package peer

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// skew is how far clocks may differ.
const skew = time.Minute

// requirement is what a peer must be: admitted by policy and, if node is set, that node.
type requirement struct {
	policy Policy
	node   string
}

// byRecord decides whether the holder of leaf may speak, by the records of the view and by nothing else.
func byRecord(view *keyring.Snapshot, leaf *x509.Certificate, want requirement, now time.Time) (PeerInfo, error) {
	if view == nil {
		return PeerInfo{}, fault.New(fault.Unavailable, "verify peer: this node has no view of the mesh yet")
	}
	pub, ok := leaf.PublicKey.(ed25519.PublicKey)
	if !ok {
		return PeerInfo{}, fault.New(fault.Unauthenticated, "verify peer: its key is not Ed25519")
	}
	id, err := parseID(leaf)
	if err != nil {
		return PeerInfo{}, err
	}
	if id.trustDomain != view.Mesh.TrustDomain {
		return PeerInfo{}, fault.New(fault.Unauthenticated, "verify peer: it is of trust domain %.80q, not of %q", id.trustDomain, view.Mesh.TrustDomain)
	}
	if id.kind == kindAdmin {
		return adminByRecord(view, pub, id, want, now)
	}
	// By the record that the certificate names, and not by whatever record has its key: so one key never speaks as two nodes.
	node := view.Nodes[id.name]
	switch {
	case node == nil || !pub.Equal(node.PublicKey):
		return PeerInfo{}, fault.New(fault.Unauthenticated, "verify peer: its key is not that of node/%.80s", id.name)
	case !node.Trusted():
		return PeerInfo{}, fault.New(fault.Denied, "verify peer: node/%s is %s", node.ID, node.State)
	case want.node != "" && want.node != node.ID:
		return PeerInfo{}, fault.New(fault.Unauthenticated, "verify peer: node/%s answered where node/%s was meant", node.ID, want.node)
	case !want.policy.admitsNode(node):
		return PeerInfo{}, fault.New(fault.Denied, "verify peer: node/%s is not admitted: want %s", node.ID, want.policy)
	}
	return PeerInfo{Node: node}, nil
}

func adminByRecord(view *keyring.Snapshot, pub ed25519.PublicKey, id peerID, want requirement, now time.Time) (PeerInfo, error) {
	admin := view.AdminByKey(pub)
	switch {
	case admin == nil || admin.Name != id.name:
		return PeerInfo{}, fault.New(fault.Unauthenticated, "verify peer: its key is not that of administrator %.80q", id.name)
	case !admin.RevokedAt.IsZero():
		return PeerInfo{}, fault.New(fault.Denied, "verify peer: admin/%s is revoked", admin.ID)
	case now.After(admin.ExpiresAt.Add(skew)):
		return PeerInfo{}, fault.New(fault.Unauthenticated, "verify peer: the credential of admin/%s expired at %s", admin.ID, admin.ExpiresAt.UTC().Format(time.RFC3339))
	case want.policy != Admin && want.policy != AdminOrNode:
		return PeerInfo{}, fault.New(fault.Denied, "verify peer: admin/%s is not admitted: want %s", admin.ID, want.policy)
	}
	return PeerInfo{Admin: admin}, nil
}

func (p Policy) admitsNode(n *keyring.Node) bool {
	if role, ok := strings.CutPrefix(string(p), rolePrefix); ok {
		return n.HasRole(keyring.Role(role))
	}
	return p == AnyNode || p == AdminOrNode
}

func (p Policy) valid() bool {
	switch p {
	case Nobody, AnyNode, Admin, AdminOrNode:
		return true
	}
	return strings.HasPrefix(string(p), rolePrefix) && len(p) > len(rolePrefix)
}

func leafOf(cs tls.ConnectionState) (*x509.Certificate, error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, fault.New(fault.Unauthenticated, "verify peer: it sent no certificate")
	}
	return cs.PeerCertificates[0], nil
}

// Bundle verifies a server by chain, for a party that has no view yet: after the join until the first view, and the command
// line. Certificate expiry is enforced.
type Bundle struct {
	Roots       *x509.CertPool
	TrustDomain string
	AnyNode     bool // a node that is no control node will do, too
}

func (b Bundle) verify(cs tls.ConnectionState, node string, now time.Time) error {
	leaf, err := leafOf(cs)
	if err != nil {
		return err
	}
	if b.Roots == nil { // nil would mean the machine's own roots
		return fault.New(fault.Unauthenticated, "verify server: no trusted roots")
	}
	id, err := parseID(leaf)
	if err != nil {
		return err
	}
	if id.trustDomain != b.TrustDomain {
		return fault.New(fault.Unauthenticated, "verify server: it is of trust domain %.80q, not of %q", id.trustDomain, b.TrustDomain)
	}
	if id.kind != kindControl && (!b.AnyNode || id.kind != kindNode) {
		return fault.New(fault.Denied, "verify server: its certificate is a %s's, want a control node's", id.kind)
	}
	if node != "" && node != id.name {
		return fault.New(fault.Unauthenticated, "verify server: node/%.80s answered where node/%s was meant", id.name, node)
	}
	return verifyChain(cs.PeerCertificates, b.Roots, now)
}

func verifyChain(chain []*x509.Certificate, roots *x509.CertPool, now time.Time) error {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now})
	if err != nil {
		return fault.New(fault.Unauthenticated, "verify server: %w", err)
	}
	return nil
}
