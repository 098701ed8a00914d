package peer

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// maxChain bounds the certificates that a pinned server may send.
const maxChain = 8

// Pinned says how a joiner, which knows one hash, reaches a control node.
type Pinned struct {
	Pin     [32]byte                                                          // SHA-256 of the mesh root's SPKI
	NetDial func(ctx context.Context, network, addr string) (net.Conn, error) // nil: net.Dialer
	Clock   func() time.Time                                                  // nil: time.Now
}

// Dial connects under ProtoJoin, without a certificate. The server's chain must lead, unexpired, to the pinned root, which it
// sends, and its SPIFFE ID must be a control node's: that it merely chains to the root is not enough.
func (p Pinned) Dial(ctx context.Context, addr string) (*Conn, error) {
	if p.NetDial == nil {
		p.NetDial = new(net.Dialer).DialContext
	}
	if p.Clock == nil {
		p.Clock = time.Now
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	raw, err := p.NetDial(ctx, "tcp", addr)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "dial %s: %w", addr, err)
	}
	c, err := handshake(ctx, raw, ProtoJoin, nil, func(cs tls.ConnectionState) (PeerInfo, error) {
		return PeerInfo{}, p.verify(cs)
	})
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	return c, nil
}

func (p Pinned) verify(cs tls.ConnectionState) error {
	leaf, err := leafOf(cs)
	if err != nil {
		return err
	}
	if len(cs.PeerCertificates) > maxChain {
		return fault.New(fault.Unauthenticated, "verify server: it sent %d certificates, at most %d", len(cs.PeerCertificates), maxChain)
	}
	id, err := parseID(leaf)
	if err != nil {
		return err
	}
	if id.kind != kindControl {
		return fault.New(fault.Denied, "verify server: its certificate is a %s's, want a control node's", id.kind)
	}
	roots := x509.NewCertPool()
	found := false
	for _, c := range cs.PeerCertificates[1:] {
		sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
		if c.IsCA && subtle.ConstantTimeCompare(sum[:], p.Pin[:]) == 1 {
			roots.AddCert(c)
			found = true
		}
	}
	if !found {
		return fault.New(fault.Unauthenticated, "verify server: the root that the key pins is not in its chain: "+
			"it is of another mesh, or something in between ends TLS")
	}
	return verifyChain(cs.PeerCertificates, roots, p.Clock())
}

// asUnavailable gives a handshake's error a kind: our own refusals keep theirs, all else is the network's or the peer's.
func asUnavailable(err error) error {
	var own *fault.Error
	if errors.As(err, &own) {
		return err
	}
	return fault.New(fault.Unavailable, "handshake: %w", err)
}
