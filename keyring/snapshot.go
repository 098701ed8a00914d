package keyring

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"

	"github.com/iapmesh/iapmesh/internal/revision"
)

// Contents are the records of one state of the mesh, keyed as in the store.
type Contents struct {
	Mesh        Mesh
	Keys        map[string]*Key        // by id
	Nodes       map[string]*Node       // by id
	Admins      map[string]*Admin      // by id
	SigningKeys map[string]*SigningKey // by kid
	Authorities map[string]*Authority  // by serial
	Revocations map[RevocationKind]map[string]*Revocation
	Audiences   map[string]*Audience
	Secrets     map[string]*Secret // by audience + "/" + name
	GossipRing  GossipRing
	Receipts    map[string]*Receipt // by id; only those that are not complete everywhere
	Restoration *Restoration        // the last one; nil: never
}

// Snapshot is one immutable, indexed state. Everything that it returns is shared: read, never change.
type Snapshot struct {
	Contents
	Revision    revision.Revision
	nodesByKey  map[[32]byte]*Node
	adminsByKey map[[32]byte]*Admin
	roots       *x509.CertPool
}

// NewSnapshot indexes contents, which the caller no longer changes.
func NewSnapshot(at revision.Revision, c Contents) *Snapshot {
	s := &Snapshot{
		Contents:    c,
		Revision:    at,
		nodesByKey:  make(map[[32]byte]*Node, len(c.Nodes)),
		adminsByKey: make(map[[32]byte]*Admin, len(c.Admins)),
		roots:       x509.NewCertPool(),
	}
	for _, n := range c.Nodes {
		s.nodesByKey[sha256.Sum256(n.PublicKey)] = n
	}
	for _, a := range c.Admins {
		s.adminsByKey[sha256.Sum256(a.PublicKey)] = a
	}
	for _, a := range c.Authorities {
		s.roots.AddCert(a.Certificate)
	}
	return s
}

// NodeByKey returns the node whose certificate key is pub, whatever its state; nil if there is none.
func (s *Snapshot) NodeByKey(pub ed25519.PublicKey) *Node { return s.nodesByKey[sha256.Sum256(pub)] }

// AdminByKey returns the administrator whose certificate key is pub, revoked ones too; nil if there is none.
func (s *Snapshot) AdminByKey(pub ed25519.PublicKey) *Admin {
	return s.adminsByKey[sha256.Sum256(pub)]
}

// Roots are the roots of all authorities.
func (s *Snapshot) Roots() *x509.CertPool { return s.roots }

// Revoked returns the revocation that refuses a session of that id and subject, minted at rev; nil if none does.
func (s *Snapshot) Revoked(sessionID, subject string, minted revision.Revision) *Revocation {
	if r := s.Revocations[RevokeSession][sessionID]; r != nil {
		return r
	}
	if r := s.Revocations[RevokeSubject][subject]; r != nil && (r.Block || minted.Before(r.Revision)) {
		return r
	}
	return nil
}

// Blocked returns the revocation that keeps a subject from signing in; nil if none does.
func (s *Snapshot) Blocked(subject string) *Revocation {
	if r := s.Revocations[RevokeSubject][subject]; r != nil && r.Block {
		return r
	}
	return nil
}
