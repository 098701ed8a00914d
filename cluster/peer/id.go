package peer

import (
	"crypto/x509"
	"strings"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// The kinds of SPIFFE ID: spiffe://<trust domain>/<control|node>/<region>/<node> and …/admin/<name>.
const (
	kindControl = "control"
	kindNode    = "node"
	kindAdmin   = "admin"
)

type peerID struct {
	trustDomain, kind, region string
	name                      string // a node's id, an administrator's name
}

// parseID reads the one SPIFFE ID of a certificate (SPIFFE X.509-SVID, section 2).
func parseID(leaf *x509.Certificate) (peerID, error) {
	bad := fault.New(fault.Unauthenticated, "verify peer: its certificate holds no SPIFFE ID of a node or an administrator")
	if len(leaf.URIs) != 1 {
		return peerID{}, bad
	}
	u := leaf.URIs[0]
	if u.Scheme != "spiffe" || u.User != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.RawPath != "" {
		return peerID{}, bad
	}
	part := strings.Split(strings.TrimPrefix(u.Path, "/"), "/")
	for _, p := range part {
		if p == "" || p == "." || p == ".." {
			return peerID{}, bad
		}
	}
	switch {
	case len(part) == 3 && (part[0] == kindControl || part[0] == kindNode):
		return peerID{trustDomain: u.Host, kind: part[0], region: part[1], name: part[2]}, nil
	case len(part) == 2 && part[0] == kindAdmin:
		return peerID{trustDomain: u.Host, kind: kindAdmin, name: part[1]}, nil
	}
	return peerID{}, bad
}
