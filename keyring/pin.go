package keyring

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// Pin is SHA-256 of a certificate's public key (SPKI).
func Pin(cert *x509.Certificate) [sha256.Size]byte {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}

// ErrNoControlNode says that a server is a node of the mesh, but no control node: it can tell where those are, and no more.
var ErrNoControlNode = errors.New("is no control node")

// VerifyPinned verifies a server's chain, leaf first, against the root with the pin, which the server sends in the chain, and
// returns whose certificate it is. Only a control node's will do: that it merely chains to the root is not enough
// (ErrNoControlNode). Errors are Unauthenticated.
func VerifyPinned(chain []*x509.Certificate, pin [sha256.Size]byte, now time.Time) (ID, error) {
	id, err := VerifyPinnedNode(chain, pin, now)
	if err == nil && id.Kind != KindControl {
		return ID{}, fault.New(fault.Unauthenticated, "server: %s %w", id, ErrNoControlNode)
	}
	return id, err
}

// VerifyPinnedNode is VerifyPinned for what any node may be asked.
func VerifyPinnedNode(chain []*x509.Certificate, pin [sha256.Size]byte, now time.Time) (ID, error) {
	if len(chain) < 2 || len(chain) > MaxChain {
		return ID{}, fault.New(fault.Unauthenticated, "server: sent %d certificates, want its own, then the root: 2 to %d", len(chain), MaxChain)
	}
	var root *x509.Certificate
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range chain[1:] {
		have := Pin(c)
		if subtle.ConstantTimeCompare(have[:], pin[:]) == 1 && IsRoot(c) {
			root = c
			roots.AddCert(c)
			continue
		}
		intermediates.AddCert(c)
	}
	if root == nil {
		return ID{}, fault.New(fault.Unauthenticated, "server: the root that the key pins is not in its chain: "+
			"another mesh, or something that terminates TLS in between")
	}
	leaf := chain[0]
	if leaf.IsCA {
		return ID{}, fault.New(fault.Unauthenticated, "server: its certificate is a CA's")
	}
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: tolerant(leaf, now),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}); err != nil {
		return ID{}, fault.New(fault.Unauthenticated, "server: certificate: %w", sayIfClock(err, leaf, now))
	}
	id, err := ParseID(leaf)
	if err != nil {
		return ID{}, err
	}
	if id.Kind != KindControl && id.Kind != KindNode {
		return ID{}, fault.New(fault.Unauthenticated, "server: %s is no node", id)
	}
	if len(root.URIs) != 1 || root.URIs[0].Host != id.TrustDomain {
		return ID{}, fault.New(fault.Unauthenticated, "server: %s is outside the root's trust domain", id)
	}
	return id, nil
}

// sayIfClock adds, where a certificate is not valid now, what a person can hold his clock against.
func sayIfClock(err error, leaf *x509.Certificate, now time.Time) error {
	var invalid x509.CertificateInvalidError
	if !errors.As(err, &invalid) || invalid.Reason != x509.Expired {
		return err
	}
	return fmt.Errorf("%w; it holds from %s to %s, and here it is %s: is this machine's clock right?", err, stamp(leaf.NotBefore), stamp(leaf.NotAfter), stamp(now))
}

// tolerant moves now into the certificate's validity if it misses it by no more than the skew.
func tolerant(c *x509.Certificate, now time.Time) time.Time {
	switch {
	case now.Before(c.NotBefore) && !now.Add(Skew).Before(c.NotBefore):
		return c.NotBefore
	case now.After(c.NotAfter) && !now.Add(-Skew).After(c.NotAfter):
		return c.NotAfter
	}
	return now
}
