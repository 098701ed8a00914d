package keyring_test

import (
	"crypto/x509"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

func named(t testing.TB, uris ...string) *x509.Certificate {
	t.Helper()
	cert := &x509.Certificate{}
	for _, raw := range uris {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		cert.URIs = append(cert.URIs, u)
	}
	return cert
}

func TestParseID(t *testing.T) {
	t.Parallel()
	for uri, want := range map[string]keyring.ID{
		"spiffe://mesh.example/control/eu-west/n-1": {TrustDomain: domain, Kind: keyring.KindControl, Region: "eu-west", Node: "n-1"},
		"spiffe://mesh.example/node/eu-west/n-1":    {TrustDomain: domain, Kind: keyring.KindNode, Region: "eu-west", Node: "n-1"},
		"spiffe://mesh.example/admin/ana":           {TrustDomain: domain, Kind: keyring.KindAdmin, Name: "ana"},
	} {
		got, err := keyring.ParseID(named(t, uri))
		if diff := cmp.Diff(want, got); err != nil || diff != "" || got.String() != uri {
			t.Errorf("%s: %s %v, written as %s", uri, diff, err, got)
		}
	}
}

func TestParseIDRefuses(t *testing.T) {
	t.Parallel()
	for name, cert := range map[string]*x509.Certificate{
		"no certificate":         nil,
		"no URI":                 named(t),
		"two URIs":               named(t, "spiffe://mesh.example/admin/ana", "spiffe://mesh.example/control/eu-west/n-1"),
		"another scheme":         named(t, "https://mesh.example/admin/ana"),
		"no path":                named(t, "spiffe://mesh.example"),
		"no trust domain":        named(t, "spiffe:///admin/ana"),
		"another kind":           named(t, "spiffe://mesh.example/root/ana"),
		"a kind in capitals":     named(t, "spiffe://mesh.example/Admin/ana"),
		"an admin with more":     named(t, "spiffe://mesh.example/admin/ana/x"),
		"a node with less":       named(t, "spiffe://mesh.example/node/n-1"),
		"a node with more":       named(t, "spiffe://mesh.example/node/eu-west/n-1/x"),
		"an empty segment":       named(t, "spiffe://mesh.example/node//n-1"),
		"a path that climbs":     named(t, "spiffe://mesh.example/node/../n-1"),
		"an escaped slash":       named(t, "spiffe://mesh.example/admin/a%2fb"),
		"a trailing slash":       named(t, "spiffe://mesh.example/admin/ana/"),
		"a query":                named(t, "spiffe://mesh.example/admin/ana?x"),
		"a fragment":             named(t, "spiffe://mesh.example/admin/ana#x"),
		"a port":                 named(t, "spiffe://mesh.example:1/admin/ana"),
		"a user":                 named(t, "spiffe://u@mesh.example/admin/ana"),
		"a node in capitals":     named(t, "spiffe://mesh.example/node/eu-west/N-1"),
		"a region with a dot":    named(t, "spiffe://mesh.example/node/eu.west/n-1"),
		"a name far too long":    named(t, "spiffe://mesh.example/admin/"+strings.Repeat("a", 64)),
		"an ID far too long":     named(t, "spiffe://mesh.example/admin/"+strings.Repeat("a", 4096)),
		"capitals in the domain": named(t, "spiffe://MESH.example/admin/ana"),
	} {
		if id, err := keyring.ParseID(cert); !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("%s: %v, %v", name, id, err)
		}
	}
}

func FuzzParseID(f *testing.F) {
	c := newCA(f)
	f.Add("spiffe://mesh.example/control/eu-west/n-1", c.node(f, "n-1", true).Raw)
	f.Add("spiffe://mesh.example/admin/ana", c.admin(f, "ana").Raw)
	f.Add("spiffe://mesh.example/node//x", c.Certificate.Raw)
	check := func(t *testing.T, cert *x509.Certificate) {
		id, err := keyring.ParseID(cert)
		if err != nil {
			if !fault.Is(err, fault.Unauthenticated) {
				t.Fatalf("of kind %v: %v", fault.KindOf(err), err)
			}
			return
		}
		if got := id.String(); len(cert.URIs) != 1 || got != cert.URIs[0].String() {
			t.Fatalf("%v reads as %s", cert.URIs, got)
		}
	}
	f.Fuzz(func(t *testing.T, raw string, der []byte) {
		if u, err := url.Parse(raw); err == nil {
			check(t, &x509.Certificate{URIs: []*url.URL{u}})
		}
		if cert, err := x509.ParseCertificate(der); err == nil {
			check(t, cert)
		}
	})
}
