// Package peer is mutual TLS among the parties of a mesh: one TCP port for every protocol, told apart by ALPN, and the dialing
// side of the same.
//
// Invariants. Between enrolled nodes the record is the trust: a peer is accepted if its certificate's key is that of a node/<id>
// in the local view, neither revoked nor quarantined nor departed, with the role that the protocol needs, and if the SPIFFE ID
// in the certificate names that same record. A node that was put out may only hand in its trail (KnownNode). A node that dials a Port does so from the addresses that its provisioning key names, if it
// names any. That a certificate chains to the mesh CA proves nothing here, and its expiry is not asked for: a mesh that was
// switched off for a week starts again. Only a party that has no view yet (a joiner, a command line)
// verifies by chain and expiry, against a pinned root or a fixed bundle. A connection outlives no trust: on each new view
// Recheck ends those whose peer may no longer speak. TLS 1.3 only, no session tickets, no early data; what negotiates none of
// the registered protocols is refused.
//
// It leaves to others: who may call which method (node/admin, cluster/enroll), and issuing certificates (keyring).
package peer

import (
	"crypto/tls"
	"net"

	"github.com/iapmesh/iapmesh/keyring"
)

// The protocols of the mesh port, as ALPN names.
const (
	ProtoJoin  = "iapmesh-join/1"  // gRPC EnrollService, no client certificate
	ProtoRaft  = "iapmesh-raft/1"  // hashicorp/raft among control nodes
	ProtoMesh  = "iapmesh-mesh/1"  // gRPC among nodes
	ProtoTrail = "iapmesh-trail/1" // gRPC AuditIngestService: also of nodes that were put out
	ProtoHop   = "iapmesh-hop/1"   // requests between regions
	ProtoAdmin = "h2"              // gRPC for administrators: plain grpcurl works
)

// Trust is what verification asks for: the local view, nil while there is none.
type Trust interface {
	Snapshot() *keyring.Snapshot
}

// Policy says whom a protocol admits. The zero Policy admits nobody at all.
type Policy string

// The policies. Nobody asks for no certificate: the peer is anonymous, its connection bounded in number and in time. KnownNode also admits
// nodes that were revoked or quarantined or have departed, on connections that are bounded in the same way: only for what such a node
// may still say.
const (
	Nobody      Policy = "nobody"
	AnyNode     Policy = "node"
	KnownNode   Policy = "known node"
	ControlNode Policy = rolePrefix + Policy(keyring.RoleControl)
	Admin       Policy = "admin"
	AdminOrNode Policy = "admin or node"
)

const rolePrefix = "role:"

// Role admits the nodes that have the role.
func Role(r keyring.Role) Policy { return rolePrefix + Policy(r) }

// Info is who the other end of a connection is. Both Node and Admin are nil where the protocol admits anonymous peers, and
// for a server that was verified by chain because there was no view.
type Info struct {
	Node       *keyring.Node
	Admin      *keyring.Admin
	TLS        tls.ConnectionState
	RemoteAddr net.Addr
}

// Name is how logs and records call the peer: node/<id>, admin/<id> or anonymous.
func (p Info) Name() string {
	switch {
	case p.Node != nil:
		return "node/" + p.Node.ID
	case p.Admin != nil:
		return "admin/" + p.Admin.ID
	}
	return "anonymous"
}
