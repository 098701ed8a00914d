package node

import (
	"crypto/tls"
	"crypto/x509"
	"slices"

	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// certificate is the node's own, with what it presents behind it: a joiner finds the root that it pinned there, and how that leads to
// the issuer.
func (id *identity) certificate() (*tls.Certificate, error) {
	leaf, err := x509.ParseCertificate(id.public.Certificate)
	if err != nil {
		return nil, fault.New(fault.Internal, "identity: certificate: %w", err)
	}
	return &tls.Certificate{
		Certificate: append([][]byte{id.public.Certificate}, id.public.Bundle...), PrivateKey: id.nodeKey(), Leaf: leaf,
	}, nil
}

// roots are those that the node knew when it last spoke to the mesh: all it has before its first view.
func (id *identity) roots() (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	for _, der := range id.public.Bundle {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fault.New(fault.Internal, "identity: root: %w", err)
		}
		if keyring.IsRoot(cert) { // the others are cross certificates, which are presented, and lead here
			pool.AddCert(cert)
		}
	}
	return pool, nil
}

// renewed puts a new certificate and chain in use, once they are on the disk. nodes are where control nodes are, if that is known.
func (id *identity) renewed(own *peer.Identity, certificate []byte, chain [][]byte, nodes []*iapmeshv1.ControlNode) error {
	if len(chain) >= keyring.MaxChain {
		return fault.New(fault.Internal, "a chain of %d certificates, at most %d", len(chain), keyring.MaxChain-1)
	}
	for _, der := range chain {
		if _, err := x509.ParseCertificate(der); err != nil {
			return fault.New(fault.Internal, "a certificate of the chain: %w", err)
		}
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	id.public.setCertificate(certificate, chain)
	if nodes != nil {
		id.public.setControlNodes(nodes)
	}
	return id.present(own)
}

// follow presents the chain that a view wants behind this node's certificate: it changes where the mesh's authorities do. What cannot
// be written to the disk is presented all the same.
func (id *identity) follow(own *peer.Identity, v *keyring.Snapshot) error {
	id.mu.Lock()
	defer id.mu.Unlock()
	leaf := own.Certificate().Leaf
	if v.IssuerOf(leaf) == nil {
		return nil // the mesh has forgotten it: the renewal, which is due, brings another chain
	}
	chain := v.Chain(leaf)
	if slices.EqualFunc(chain, id.public.Bundle, slices.Equal) {
		return nil
	}
	id.public.setCertificate(id.public.Certificate, chain)
	return id.present(own)
}

// present saves the identity and presents it. mu is held.
func (id *identity) present(own *peer.Identity) error {
	saved := id.save()
	cert, err := id.certificate()
	if err != nil {
		return err
	}
	if err := own.Set(cert); err != nil {
		return err
	}
	return saved
}

// controlNodes are where control nodes were when the node last spoke to the mesh.
func (id *identity) controlNodes() []controlNode {
	id.mu.Lock()
	defer id.mu.Unlock()
	return slices.Clone(id.public.ControlNodes)
}

// followAuthorities keeps what this node presents in step with each view, before the view counts as served: once it has acknowledged an
// authority, everybody who knows that one alone can verify it.
func (a *assembly) followAuthorities(v *state.View) {
	if err := a.id.follow(a.cert, v.Keyring); err != nil {
		a.logger.Error("chain of the certificate not saved", "error", err)
	}
}
