package assertion

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"sync/atomic"

	"github.com/go-jose/go-jose/v4"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
)

// signer finds the key that this node signs with, and opens its private half once for each key, not for each view.
type signer struct {
	node    string
	secrets Secrets
	memo    atomic.Pointer[current]
}

// current is the answer in one view.
type current struct {
	view   *state.View
	kid    string
	signer jose.Signer
	err    error // Unavailable
}

func (s *signer) load(view *state.View) *current {
	have := s.memo.Load()
	if have != nil && have.view == view {
		return have
	}
	next := s.find(view, have)
	s.memo.Store(next)
	return next
}

func (s *signer) find(view *state.View, before *current) *current {
	c := &current{view: view}
	node := view.Keyring.Nodes[s.node]
	if node == nil || !node.Trusted() || !node.HasRole(keyring.RoleProxy) {
		c.err = fault.New(fault.Unavailable, "assert: this node may not assert identities")
		return c
	}
	record := view.Keyring.ActiveAssertionKey(node.Region, node.RouteSelector)
	if record == nil {
		c.err = fault.New(fault.Unavailable, "assert: no key is active for region %s and selector %q", node.Region, node.RouteSelector)
		return c
	}
	c.kid = record.KID
	if before != nil && before.err == nil && before.kid == record.KID {
		c.signer = before.signer
		return c
	}
	if c.signer, c.err = s.open(view.Keyring, record); c.err != nil {
		c.err = fault.New(fault.Unavailable, "assert: open key %s: %w", record.KID, c.err)
	}
	return c
}

// open opens secret/<audience>/<kid>, which holds PKCS #8 DER, and refuses a private half that is not the record's.
func (s *signer) open(snapshot *keyring.Snapshot, record *keyring.SigningKey) (jose.Signer, error) {
	public, err := publicKey(record)
	if err != nil {
		return nil, err
	}
	der, err := s.secrets.Open(snapshot, keyring.AssertAudience(record.Region, record.RouteSelector), record.KID)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	private, ok := parsed.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		return nil, fault.New(fault.Internal, "its secret is no PKCS #8 ECDSA key")
	}
	if !public.Equal(private.Public()) {
		return nil, fault.New(fault.Internal, "its secret is another key")
	}
	return newSigner(private, record.KID)
}

func publicKey(record *keyring.SigningKey) (*ecdsa.PublicKey, error) {
	parsed, err := x509.ParsePKIXPublicKey(record.PublicKey)
	public, ok := parsed.(*ecdsa.PublicKey)
	if err != nil || !ok || public.Curve != elliptic.P256() {
		return nil, fault.New(fault.Internal, "signing key %s: not PKIX DER of a P-256 key", record.KID)
	}
	return public, nil
}
