package keyring_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

const domain = "mesh.example"

type ca struct {
	keyring.Authority
	key ed25519.PrivateKey
}

func newCA(t testing.TB) ca {
	t.Helper()
	a, key, err := keyring.NewAuthority(nil, now, domain)
	if err != nil {
		t.Fatal(err)
	}
	return ca{a, key}
}

func csr(t testing.TB, key crypto.Signer, template x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func parsedCSR(t testing.TB, name string) *x509.CertificateRequest {
	t.Helper()
	der, err := keyring.NewCSR(private(name))
	if err != nil {
		t.Fatal(err)
	}
	r, err := keyring.ParseCSR(der)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (c ca) node(t testing.TB, name string, control bool) *x509.Certificate {
	t.Helper()
	cert, err := keyring.IssueNode(c.Authority, c.key, parsedCSR(t, name), keyring.NodeTemplate{
		TrustDomain: domain, Region: "eu-west", NodeID: name, Control: control, IPs: []netip.Addr{netip.MustParseAddr("::ffff:127.0.0.1")}, Now: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (c ca) admin(t testing.TB, name string) *x509.Certificate {
	t.Helper()
	cert, err := keyring.IssueAdmin(c.Authority, c.key, parsedCSR(t, name), keyring.AdminTemplate{TrustDomain: domain, Name: name, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestAnAuthorityIsASelfSignedRootForTenYears(t *testing.T) {
	t.Parallel()
	c := newCA(t)
	cert := c.Certificate
	if err := cert.CheckSignatureFrom(cert); err != nil {
		t.Error(err)
	}
	if !cert.IsCA || cert.NotBefore != now.Add(-5*time.Minute) || cert.NotAfter != now.Add(keyring.AuthorityLife) || cert.PublicKeyAlgorithm != x509.Ed25519 {
		t.Errorf("root: CA %v, %v to %v, %v", cert.IsCA, cert.NotBefore, cert.NotAfter, cert.PublicKeyAlgorithm)
	}
	if c.State != keyring.AuthorityActive || len(c.Serial) != 32 || c.Serial == newCA(t).Serial {
		t.Errorf("%s with serial %s", c.State, c.Serial)
	}
	if _, _, err := keyring.NewAuthority(nil, now, "Not A Domain"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a bad trust domain: %v", err)
	}
	if _, _, err := keyring.NewAuthority(bytes.NewReader(nil), now, domain); err == nil {
		t.Error("a root without randomness")
	}
}

func TestANodesCertificate(t *testing.T) {
	t.Parallel()
	c := newCA(t)
	for control, uri := range map[bool]string{
		true: "spiffe://mesh.example/control/eu-west/n-1", false: "spiffe://mesh.example/node/eu-west/n-1",
	} {
		cert := c.node(t, "n-1", control)
		if cert.URIs[0].String() != uri || len(cert.URIs) != 1 || cert.IsCA || cert.Subject.CommonName != "n-1" {
			t.Errorf("%v of %s, CA %v", cert.URIs, cert.Subject, cert.IsCA)
		}
		if cert.NotBefore != now.Add(-5*time.Minute) || cert.NotAfter != now.Add(24*time.Hour) {
			t.Errorf("%v to %v", cert.NotBefore, cert.NotAfter)
		}
		if err := cert.VerifyHostname("n-1"); err != nil {
			t.Error(err)
		}
		if err := cert.VerifyHostname("127.0.0.1"); err != nil {
			t.Error(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(c.Certificate)
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
			if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
				t.Errorf("usage %v: %v", usage, err)
			}
		}
	}
}

func TestAnAdministratorsCertificateIsForClientsOnly(t *testing.T) {
	t.Parallel()
	cert := newCA(t).admin(t, "ana")
	if cert.URIs[0].String() != "spiffe://mesh.example/admin/ana" || cert.NotAfter != now.Add(90*24*time.Hour) || len(cert.DNSNames) != 0 {
		t.Errorf("%v until %v, names %v", cert.URIs, cert.NotAfter, cert.DNSNames)
	}
	if diff := cmp.Diff([]x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, cert.ExtKeyUsage); diff != "" {
		t.Error(diff)
	}
}

func TestWhatARequestAsksForIsNotGiven(t *testing.T) {
	t.Parallel()
	c := newCA(t)
	uri, err := url.Parse("spiffe://mesh.example/control/eu-west/n-0")
	if err != nil {
		t.Fatal(err)
	}
	asked, err := keyring.ParseCSR(csr(t, private("n-1"), x509.CertificateRequest{URIs: []*url.URL{uri}, DNSNames: []string{"n-0"}}))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := keyring.IssueNode(c.Authority, c.key, asked, keyring.NodeTemplate{TrustDomain: domain, Region: "eu-west", NodeID: "n-1", Now: now})
	if err != nil {
		t.Fatal(err)
	}
	id, err := keyring.ParseID(cert)
	if err != nil || id.Kind != keyring.KindNode || id.Node != "n-1" || cert.VerifyHostname("n-0") == nil {
		t.Errorf("%v, %v", id, err)
	}
}

func TestNoCertificateOutlivesItsRoot(t *testing.T) {
	t.Parallel()
	c := newCA(t)
	late := now.Add(keyring.AuthorityLife - time.Hour)
	cert, err := keyring.IssueNode(c.Authority, c.key, parsedCSR(t, "n-1"), keyring.NodeTemplate{TrustDomain: domain, Region: "eu-west", NodeID: "n-1", Now: late})
	if err != nil || cert.NotAfter != c.Certificate.NotAfter {
		t.Errorf("until %v, %v", cert.NotAfter, err)
	}
}

func TestIssueRefuses(t *testing.T) {
	t.Parallel()
	c, other := newCA(t), newCA(t)
	good := keyring.NodeTemplate{TrustDomain: domain, Region: "eu-west", NodeID: "n-1", Now: now}
	with := func(change func(x *keyring.NodeTemplate)) keyring.NodeTemplate { x := good; change(&x); return x }
	retired := c.Authority
	retired.State = keyring.AuthorityRetired
	ownKey, err := keyring.ParseCSR(csr(t, c.key, x509.CertificateRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		authority keyring.Authority
		key       ed25519.PrivateKey
		csr       *x509.CertificateRequest
		template  keyring.NodeTemplate
	}{
		"another CA's key":       {c.Authority, other.key, parsedCSR(t, "n-1"), good},
		"no CA key":              {c.Authority, nil, parsedCSR(t, "n-1"), good},
		"no authority":           {keyring.Authority{}, c.key, parsedCSR(t, "n-1"), good},
		"a retired authority":    {retired, c.key, parsedCSR(t, "n-1"), good},
		"no request":             {c.Authority, c.key, nil, good},
		"the CA's own key":       {c.Authority, c.key, ownKey, good},
		"another trust domain":   {c.Authority, c.key, parsedCSR(t, "n-1"), with(func(x *keyring.NodeTemplate) { x.TrustDomain = "other.example" })},
		"a node with a slash":    {c.Authority, c.key, parsedCSR(t, "n-1"), with(func(x *keyring.NodeTemplate) { x.NodeID = "n-1/x" })},
		"a region that climbs":   {c.Authority, c.key, parsedCSR(t, "n-1"), with(func(x *keyring.NodeTemplate) { x.Region = ".." })},
		"a node without a name":  {c.Authority, c.key, parsedCSR(t, "n-1"), with(func(x *keyring.NodeTemplate) { x.NodeID = "" })},
		"a trust domain of dots": {c.Authority, c.key, parsedCSR(t, "n-1"), with(func(x *keyring.NodeTemplate) { x.TrustDomain = "" })},
	} {
		if _, err := keyring.IssueNode(tc.authority, tc.key, tc.csr, tc.template); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseCSRRefuses(t *testing.T) {
	t.Parallel()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := csr(t, private("n-1"), x509.CertificateRequest{})
	forged := bytes.Clone(good)
	forged[len(forged)-1] ^= 1
	for name, der := range map[string][]byte{
		"nothing":           nil,
		"rubbish":           []byte("x"),
		"huge":              make([]byte, keyring.MaxCSR+1),
		"something after":   append(bytes.Clone(good), 0),
		"P-256":             csr(t, ec, x509.CertificateRequest{}),
		"a wrong signature": forged,
	} {
		if _, err := keyring.ParseCSR(der); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := keyring.NewCSR(nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("a request of no key: %v", err)
	}
}

func FuzzParseCSR(f *testing.F) {
	f.Add(csr(f, private("n-1"), x509.CertificateRequest{}))
	f.Add(csr(f, private("n-2"), x509.CertificateRequest{DNSNames: []string{"x"}}))
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, der []byte) {
		r, err := keyring.ParseCSR(der)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("of kind %v: %v", fault.KindOf(err), err)
			}
			return
		}
		if pub, ok := r.PublicKey.(ed25519.PublicKey); !ok || !ed25519.Verify(pub, r.RawTBSCertificateRequest, r.Signature) {
			t.Fatal("accepted without a valid Ed25519 signature")
		}
	})
}

func verifyAgainst(roots *x509.CertPool) x509.VerifyOptions {
	return x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
}
