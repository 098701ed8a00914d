package keyring

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// The lifetimes of certificates, and by how much they begin before they are issued, for clocks that lag.
const (
	AuthorityLife = 10 * 365 * 24 * time.Hour
	NodeCertLife  = 24 * time.Hour
	BackDate      = 5 * time.Minute
)

// NewAuthority makes a root of the mesh: Ed25519, self-signed, ten years. It is active, as the first of a mesh is; PrepareAuthority
// takes one as the next. A nil random is crypto/rand. The private key is the caller's to keep, as a secret of audience control.
func NewAuthority(random io.Reader, now time.Time, trustDomain string) (Authority, ed25519.PrivateKey, error) {
	if random == nil {
		random = rand.Reader
	}
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return Authority{}, nil, fault.New(fault.Invalid, "trust domain: %w", err)
	}
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(random, seed); err != nil {
		return Authority{}, nil, fmt.Errorf("generate CA key: %w", err)
	}
	key := ed25519.NewKeyFromSeed(seed)
	serial, err := newSerial(random)
	if err != nil {
		return Authority{}, nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "iapmesh root " + td.Name()},
		NotBefore:             now.Add(-BackDate),
		NotAfter:              now.Add(AuthorityLife),
		URIs:                  []*url.URL{td.ID().URL()},
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLen:            1, // another authority, cross-signed, and its leaves
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	cert, err := sign(template, template, key.Public().(ed25519.PublicKey), key)
	if err != nil {
		return Authority{}, nil, err
	}
	return Authority{Serial: hex.EncodeToString(serial.Bytes()), Certificate: cert, State: AuthorityActive, CreatedAt: now, ActiveAt: now}, key, nil
}

// newSerial is 127 random bits, never zero.
func newSerial(random io.Reader) (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := io.ReadFull(random, b); err != nil {
		return nil, fmt.Errorf("generate certificate serial: %w", err)
	}
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b), nil
}

func sign(template, parent *x509.Certificate, pub ed25519.PublicKey, key ed25519.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate for %s: %w", template.Subject.CommonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back certificate for %s: %w", template.Subject.CommonName, err)
	}
	return cert, nil
}

// CrossSign makes next's root trusted by those who trust authority alone: a certificate of next's key, signed by authority, for the
// chain of a server whose certificate next issued. So pins outlive a change of CA. A retired authority still signs others' keys; its
// path length of zero keeps a cross certificate from signing a further one.
func CrossSign(authority Authority, caKey ed25519.PrivateKey, next Authority, now time.Time) (*x509.Certificate, error) {
	if err := checkAuthority(authority, caKey); err != nil {
		return nil, err
	}
	pub, ok := next.Certificate.PublicKey.(ed25519.PublicKey)
	if !ok || !next.Certificate.IsCA {
		return nil, fault.New(fault.Invalid, "cross-sign: the next certificate is no Ed25519 CA")
	}
	serial, err := newSerial(rand.Reader)
	if err != nil {
		return nil, err
	}
	return sign(&x509.Certificate{
		SerialNumber:          serial,
		Subject:               next.Certificate.Subject,
		SubjectKeyId:          next.Certificate.SubjectKeyId,
		AuthorityKeyId:        authority.Certificate.SubjectKeyId, // all roots bear one name: this tells them apart
		NotBefore:             now.Add(-BackDate),
		NotAfter:              earlier(authority.Certificate.NotAfter, next.Certificate.NotAfter),
		URIs:                  next.Certificate.URIs,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}, authority.Certificate, pub, caKey)
}

func checkAuthority(a Authority, key ed25519.PrivateKey) error {
	if a.Certificate == nil || len(key) != ed25519.PrivateKeySize {
		return fault.New(fault.Invalid, "authority %s: certificate or private key missing", a.Serial)
	}
	pub, ok := a.Certificate.PublicKey.(ed25519.PublicKey)
	if !ok || !pub.Equal(key.Public()) {
		return fault.New(fault.Invalid, "authority %s: the private key is another's", a.Serial)
	}
	return nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
