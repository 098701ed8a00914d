package keyring

import (
	"crypto/x509"
	"net/url"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// IDKind is what a certificate of the mesh names.
type IDKind string

// The kinds of certificates' names.
const (
	KindControl IDKind = "control"
	KindNode    IDKind = "node"
	KindAdmin   IDKind = "admin"
)

// ID is the SPIFFE ID of a certificate: spiffe://<trust domain>/control|node/<region>/<node> or …/admin/<name>. It says who the
// CA meant; whether that one counts, the record says.
type ID struct {
	TrustDomain string
	Kind        IDKind
	Region      string // nodes
	Node        string // nodes: id
	Name        string // administrators
}

const maxSPIFFE = 2048 // the SPIFFE ID specification's bound

// ParseID reads a certificate's SPIFFE ID. It must be the only URI among the subject's alternative names. Errors are
// Unauthenticated.
func ParseID(cert *x509.Certificate) (ID, error) {
	if cert == nil || len(cert.URIs) != 1 {
		n := 0
		if cert != nil {
			n = len(cert.URIs)
		}
		return ID{}, fault.New(fault.Unauthenticated, "certificate: %d URI names, want exactly one SPIFFE ID", n)
	}
	id, err := parseID(cert.URIs[0])
	if err != nil {
		return ID{}, fault.New(fault.Unauthenticated, "certificate: SPIFFE ID: %w", err)
	}
	return id, nil
}

func parseID(uri *url.URL) (ID, error) {
	if n := len(uri.String()); n > maxSPIFFE {
		return ID{}, fault.New(fault.Invalid, "%d bytes, at most %d", n, maxSPIFFE)
	}
	parsed, err := spiffeid.FromURI(uri)
	if err != nil {
		return ID{}, err
	}
	segments := strings.Split(strings.TrimPrefix(parsed.Path(), "/"), "/")
	id := ID{TrustDomain: parsed.TrustDomain().Name(), Kind: IDKind(segments[0])}
	switch {
	case (id.Kind == KindControl || id.Kind == KindNode) && len(segments) == 3:
		id.Region, id.Node = segments[1], segments[2]
	case id.Kind == KindAdmin && len(segments) == 2:
		id.Name = segments[1]
	default:
		return ID{}, fault.New(fault.Invalid, "path %.200q: want control or node, region, node; or admin, name", parsed.Path())
	}
	if err := id.validate(); err != nil {
		return ID{}, err
	}
	return id, nil
}

func (id ID) validate() error {
	if _, err := spiffeid.TrustDomainFromString(id.TrustDomain); err != nil {
		return fault.New(fault.Invalid, "trust domain: %w", err)
	}
	if id.Kind == KindAdmin {
		return ValidName("administrator's name", id.Name)
	}
	if err := ValidRegion(id.Region); err != nil {
		return err
	}
	return ValidName("node id", id.Node)
}

// URI writes the ID as a certificate carries it.
func (id ID) URI() (*url.URL, error) {
	if err := id.validate(); err != nil {
		return nil, err
	}
	td, err := spiffeid.TrustDomainFromString(id.TrustDomain)
	if err != nil {
		return nil, fault.New(fault.Invalid, "trust domain: %w", err)
	}
	segments := []string{string(id.Kind), id.Region, id.Node}
	if id.Kind == KindAdmin {
		segments = []string{string(id.Kind), id.Name}
	}
	full, err := spiffeid.FromSegments(td, segments...)
	if err != nil {
		return nil, fault.New(fault.Invalid, "SPIFFE ID: %w", err)
	}
	return full.URL(), nil
}

// String is the URI, for logs; empty if there is none.
func (id ID) String() string {
	uri, err := id.URI()
	if err != nil {
		return ""
	}
	return uri.String()
}
