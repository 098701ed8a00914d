// Package ca is the development certificate authority: one ECDSA P-256 root per directory, and TLS certificates under it for
// the host names of a development mesh.
//
// The root may speak for localhost, its subdomains and the loopback addresses only (a critical name constraint, RFC 5280
// §4.2.1.10), so that trusting it in a browser trusts it with nothing else; Open may be told of more names when it creates one.
// The private key is readable by its owner alone. The mesh's own CA, of nodes and administrators, is package keyring's.
package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

const (
	rootLife = 5 * 365 * 24 * time.Hour
	leafLife = 90 * 24 * time.Hour
	backdate = time.Hour

	rootFile = "dev-ca-key.pem" // certificate and key, 0600: one file, so that the two never part
	certFile = "dev-ca.pem"     // the certificate alone, for trust stores
)

// Authority is a development CA. Its methods may be called concurrently.
type Authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

// Open loads the CA of dir, or creates it. Names in permit (a domain, which includes its subdomains, or a CIDR) are added to
// those that a new root may speak for; an existing root keeps what it has. Two processes that open one directory at the
// same time get the same root.
func Open(dir string, permit ...string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open development CA: %w", err)
	}
	path := filepath.Join(dir, rootFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		data, err = create(dir, path, permit)
	}
	if err != nil {
		return nil, fmt.Errorf("open development CA: %w", err)
	}
	a, err := parse(dir, data)
	if err != nil {
		return nil, fmt.Errorf("open development CA %s: %w", path, err)
	}
	if err := replaceFile(a.CertFile(), a.CertPEM(), 0o644); err != nil {
		return nil, fmt.Errorf("open development CA: %w", err)
	}
	return a, nil
}

// CertPEM is the root certificate.
func (a *Authority) CertPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// CertFile is the path of the root certificate in PEM.
func (a *Authority) CertFile() string { return filepath.Join(a.dir, certFile) }

// Pool holds the root and nothing else.
func (a *Authority) Pool() *x509.CertPool { return a.pool.Clone() }

// Leaf issues a server certificate for hosts: DNS names, `*.name`, or IP addresses. Name every host that a browser will visit:
// Chrome matches no wildcard directly under a top-level name such as localhost. A name that the root may not speak for is Invalid.
func (a *Authority) Leaf(hosts ...string) (tls.Certificate, error) {
	if len(hosts) == 0 {
		return tls.Certificate{}, fault.New(fault.Invalid, "issue development certificate: no host")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("issue development certificate: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: hosts[0], Organization: []string{"iapmesh development"}},
		NotBefore:    now.Add(-backdate),
		NotAfter:     minTime(now.Add(leafLife), a.cert.NotAfter),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, strings.ToLower(host))
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return tls.Certificate{}, fault.New(fault.Invalid, "issue development certificate for %q: %w", hosts, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fault.New(fault.Invalid, "issue development certificate for %q: %w", hosts, err)
	}
	// Verify here what every client will verify, name constraints included, so that the mistake is named where it is made.
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: a.pool, CurrentTime: now}); err != nil {
		return tls.Certificate{}, fault.New(fault.Invalid, "issue development certificate for %q: %w", hosts, err)
	}
	return tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// WriteLeaf issues a certificate as Leaf does and writes it to name.pem and name-key.pem (0600) in the CA's directory, where
// programs that take files find it. It replaces what is there.
func (a *Authority) WriteLeaf(name string, hosts ...string) (cert, key string, err error) {
	if name != filepath.Base(name) || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "dev-ca") {
		return "", "", fault.New(fault.Invalid, "write development certificate: file name %q", name)
	}
	leaf, err := a.Leaf(hosts...)
	if err != nil {
		return "", "", err
	}
	der, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey)
	if err != nil {
		return "", "", fmt.Errorf("write development certificate %s: %w", name, err)
	}
	var chain bytes.Buffer
	for _, c := range leaf.Certificate {
		if err := pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: c}); err != nil {
			return "", "", fmt.Errorf("write development certificate %s: %w", name, err)
		}
	}
	cert, key = filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+"-key.pem")
	err = errors.Join(
		replaceFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600),
		replaceFile(cert, chain.Bytes(), 0o644),
	)
	if err != nil {
		return "", "", fmt.Errorf("write development certificate %s: %w", name, err)
	}
	return cert, key, nil
}

// parse reads the root's file and refuses a root that cannot sign any more.
func parse(dir string, data []byte) (*Authority, error) {
	pair, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, fault.New(fault.Invalid, "not an ECDSA certificate authority")
	}
	if time.Now().Add(24 * time.Hour).After(pair.Leaf.NotAfter) {
		return nil, fault.New(fault.Invalid, "expires on %s: remove the file and start again", pair.Leaf.NotAfter.Format(time.DateOnly))
	}
	a := &Authority{dir: dir, cert: pair.Leaf, key: key, pool: x509.NewCertPool()}
	a.pool.AddCert(a.cert)
	return a, nil
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never returns an error (crypto/rand)
	b[0] &= 0x7f           // positive, at most 20 octets (RFC 5280 §4.1.2.2)
	b[0] |= 0x40
	return new(big.Int).SetBytes(b[:])
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
