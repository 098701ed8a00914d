package peer

import (
	"crypto"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"sync/atomic"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// Identity holds the certificate by which this party proves itself, and swaps it on renewal: the next handshake uses the new
// one. The zero Identity holds none. Safe for concurrent use.
type Identity struct {
	current atomic.Pointer[tls.Certificate]
}

// NewIdentity holds cert.
func NewIdentity(cert *tls.Certificate) (*Identity, error) {
	id := new(Identity)
	return id, id.Set(cert)
}

// Set swaps the certificate: the leaf first, then what a joiner needs to find the root that it pinned, the root included.
// The leaf's key is Ed25519; anything else is Invalid.
func (i *Identity) Set(cert *tls.Certificate) error {
	if cert == nil || len(cert.Certificate) == 0 {
		return fault.New(fault.Invalid, "set identity: no certificate")
	}
	c := *cert
	if c.Leaf == nil {
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			return fault.New(fault.Invalid, "set identity: parse certificate: %w", err)
		}
		c.Leaf = leaf
	}
	pub, ok := c.Leaf.PublicKey.(ed25519.PublicKey)
	if !ok {
		return fault.New(fault.Invalid, "set identity: the key is %T, want Ed25519", c.Leaf.PublicKey)
	}
	signer, ok := c.PrivateKey.(crypto.Signer)
	if !ok {
		return fault.New(fault.Invalid, "set identity: no private key")
	}
	if !pub.Equal(signer.Public()) {
		return fault.New(fault.Invalid, "set identity: certificate and private key do not belong together")
	}
	i.current.Store(&c)
	return nil
}

// Certificate returns the current certificate, Leaf parsed; nil if there is none. Read, never change.
func (i *Identity) Certificate() *tls.Certificate {
	if i == nil {
		return nil
	}
	return i.current.Load()
}
