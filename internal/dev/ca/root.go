package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// create makes a root and publishes it at path; if another process was first, its root is returned instead.
func create(dir, path string, permit []string) ([]byte, error) {
	data, err := newRoot(permit)
	if err != nil {
		return nil, err
	}
	tmp, err := writeTemp(dir, data, 0o600)
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp)
	// A link, unlike a rename, fails if the name is taken.
	if err := os.Link(tmp, path); errors.Is(err, fs.ErrExist) {
		return os.ReadFile(path)
	} else if err != nil {
		return nil, err
	}
	return data, nil
}

func newRoot(permit []string) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now, number := time.Now(), serial()
	template := &x509.Certificate{
		SerialNumber: number,
		// The serial tells apart the roots of several data directories in one trust store.
		Subject: pkix.Name{
			CommonName:   "iapmesh development CA " + hex.EncodeToString(number.Bytes()[:4]),
			Organization: []string{"iapmesh development"},
		},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(rootLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,

		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{"localhost"},
		PermittedIPRanges: []*net.IPNet{
			{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)},
			{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)},
		},
	}
	for _, p := range permit {
		if _, network, err := net.ParseCIDR(p); err == nil {
			template.PermittedIPRanges = append(template.PermittedIPRanges, network)
		} else if domain := strings.Trim(p, "."); domain != "" && !strings.ContainsAny(domain, "/*: ") {
			template.PermittedDNSDomains = append(template.PermittedDNSDomains, domain)
		} else {
			return nil, fault.New(fault.Invalid, "permit %q: neither a domain nor a CIDR", p)
		}
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = errors.Join(
		pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		pem.Encode(&out, &pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	)
	return out.Bytes(), err
}

// replaceFile puts data at path in one step: a reader meets the old file or the new, never a part.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	tmp, err := writeTemp(filepath.Dir(path), data, mode)
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

func writeTemp(dir string, data []byte, mode fs.FileMode) (name string, err error) {
	f, err := os.CreateTemp(dir, ".dev-ca-*") // 0600 from the start
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err != nil {
		return "", errors.Join(fmt.Errorf("write %s: %w", f.Name(), err), os.Remove(f.Name()))
	}
	return f.Name(), nil
}
