package keyring

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// MaxCSR bounds a certificate request; one for an Ed25519 key takes about 200 bytes.
const MaxCSR = 4 << 10

// ParseCSR reads a PKCS #10 request (DER) for an Ed25519 key and checks that it is signed by that key. Of the request only the key
// counts; names are the mesh's to give. Errors are Invalid.
func ParseCSR(der []byte) (*x509.CertificateRequest, error) {
	if len(der) == 0 || len(der) > MaxCSR {
		return nil, fault.New(fault.Invalid, "certificate request: %d bytes, want 1 to %d", len(der), MaxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fault.New(fault.Invalid, "certificate request: %w", err)
	}
	if _, err := csrKey(csr); err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fault.New(fault.Invalid, "certificate request: not signed by its own key: %w", err)
	}
	return csr, nil
}

func csrKey(csr *x509.CertificateRequest) (ed25519.PublicKey, error) {
	if csr == nil {
		return nil, fault.New(fault.Invalid, "certificate request: missing")
	}
	pub, ok := csr.PublicKey.(ed25519.PublicKey)
	if !ok || csr.SignatureAlgorithm != x509.PureEd25519 {
		return nil, fault.New(fault.Invalid, "certificate request: %v key, want Ed25519", csr.PublicKeyAlgorithm)
	}
	return pub, validPublicKey("certificate request", pub)
}

// NewCSR makes a request for the key.
func NewCSR(key ed25519.PrivateKey) ([]byte, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, fault.New(fault.Invalid, "certificate request: %d bytes, want an Ed25519 private key", len(key))
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fault.New(fault.Internal, "certificate request: %w", err)
	}
	return der, nil
}

// NodeTemplate is what a node's certificate says.
type NodeTemplate struct {
	TrustDomain string
	Region      string
	NodeID      string // the DNS name too, so that a dialer's TLS ServerName is the node it means
	Control     bool
	IPs         []netip.Addr
	Now         time.Time
}

// IssueNode issues a node's certificate for the key in the request: 24 hours, back-dated by 5 minutes, for client and server.
// authority is active, or prepared; a retired one issues nothing.
func IssueNode(authority Authority, caKey ed25519.PrivateKey, csr *x509.CertificateRequest, t NodeTemplate) (*x509.Certificate, error) {
	id := ID{TrustDomain: t.TrustDomain, Kind: KindNode, Region: t.Region, Node: t.NodeID}
	if t.Control {
		id.Kind = KindControl
	}
	ips := make([]net.IP, 0, len(t.IPs))
	for _, ip := range t.IPs {
		ips = append(ips, ip.Unmap().AsSlice())
	}
	return issue(authority, caKey, csr, id, &x509.Certificate{
		Subject:     pkix.Name{CommonName: t.NodeID},
		DNSNames:    []string{t.NodeID},
		IPAddresses: ips,
		NotBefore:   t.Now.Add(-BackDate),
		NotAfter:    t.Now.Add(NodeCertLife),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
}

// AdminTemplate is what an administrator's certificate says.
type AdminTemplate struct {
	TrustDomain string
	Name        string
	Now         time.Time
}

// IssueAdmin issues an administrator's certificate: 90 days, for clients only.
func IssueAdmin(authority Authority, caKey ed25519.PrivateKey, csr *x509.CertificateRequest, t AdminTemplate) (*x509.Certificate, error) {
	return issue(authority, caKey, csr, ID{TrustDomain: t.TrustDomain, Kind: KindAdmin, Name: t.Name}, &x509.Certificate{
		Subject:     pkix.Name{CommonName: t.Name},
		NotBefore:   t.Now.Add(-BackDate),
		NotAfter:    t.Now.Add(AdminLife),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

func issue(a Authority, caKey ed25519.PrivateKey, csr *x509.CertificateRequest, id ID, c *x509.Certificate) (*x509.Certificate, error) {
	if err := checkAuthority(a, caKey); err != nil {
		return nil, err
	}
	if a.State == AuthorityRetired {
		return nil, fault.New(fault.Invalid, "authority %s: retired", a.Serial)
	}
	pub, err := csrKey(csr)
	if err != nil {
		return nil, err
	}
	if pub.Equal(caKey.Public()) {
		return nil, fault.New(fault.Invalid, "certificate request: for the CA's own key")
	}
	uri, err := id.URI()
	if err != nil {
		return nil, err
	}
	if own := a.Certificate.URIs; len(own) != 1 || own[0].Host != uri.Host {
		return nil, fault.New(fault.Invalid, "trust domain %s: not that of authority %s", id.TrustDomain, a.Serial)
	}
	if c.SerialNumber, err = newSerial(rand.Reader); err != nil {
		return nil, err
	}
	c.URIs = []*url.URL{uri}
	c.KeyUsage = x509.KeyUsageDigitalSignature
	c.BasicConstraintsValid = true
	c.NotAfter = earlier(c.NotAfter, a.Certificate.NotAfter)
	return sign(c, a.Certificate, pub, caKey)
}
