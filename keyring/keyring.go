// Package keyring holds what binds a mesh together: provisioning keys, the nodes that joined under them, administrators,
// signing keys, certificate authorities, revocations, and who may open which secret. It is types and lifecycles: state in, state
// out, no I/O. Whoever stores the results does so by one guarded commit.
//
// Invariants. No transition leaves Revoked. A key's uses never exceed its maximum. The parent under which a node first joined
// never changes. A node, key or session that is unknown is refused. Lifecycles take the time as an argument; none reads a clock.
package keyring

import (
	"crypto/ed25519"
	"crypto/x509"
	"net/netip"
	"time"

	"github.com/iapmesh/iapmesh/internal/revision"
)

// Role is what a node may be.
type Role string

// The roles.
const (
	RoleControl    Role = "control"    // hosts the replicated state, can lead
	RoleProxy      Role = "proxy"      // serves users
	RoleAggregator Role = "aggregator" // collects the audit trail
)

// KeyState is a provisioning key's state. PROTOCOLS.md draws the transitions.
type KeyState string

// The states of a provisioning key.
const (
	KeyPending   KeyState = "pending"
	KeyActive    KeyState = "active"
	KeySuspended KeyState = "suspended"
	KeyExhausted KeyState = "exhausted"
	KeyExpired   KeyState = "expired"
	KeyRetiring  KeyState = "retiring"
	KeyRetired   KeyState = "retired"
	KeyRevoked   KeyState = "revoked"
)

// Cascade says what revoking a key does to the nodes that joined under it.
type Cascade string

// The cascades.
const (
	CascadeKeep       Cascade = "keep"
	CascadeQuarantine Cascade = "quarantine"
	CascadeKill       Cascade = "kill"
)

// Key is a provisioning key as the mesh knows it: the public half, its scope, its state.
type Key struct {
	ID            string // of the public key: KeyID
	Name          string
	PublicKey     ed25519.PublicKey
	Grants        []Role
	Regions       []string // empty: any
	RouteSelector string   // empty: every route
	SourceCIDRs   []netip.Prefix
	NotBefore     time.Time
	ExpiresAt     time.Time
	MaxUses       uint32 // 0: unlimited
	MaxActive     uint32 // 0: unlimited
	Uses          uint32
	State         KeyState
	Predecessor   string
	Successor     string
	GraceUntil    time.Time
	CreatedBy     string
	CreatedAt     time.Time
	Reason        string
	Cascade       Cascade
	RevokedAt     time.Time
	RevokedBy     string
	RecentUses    []Use // newest last, at most MaxRecentUses

	NeedsApproval bool // by another administrator than CreatedBy: ApproveKey
	ApprovedBy    string
	ApprovedAt    time.Time
	ApprovalGrace time.Duration // of a successor: the predecessor's grace, which begins with the approval

	RotateEvery     time.Duration // 0: no schedule
	RotateGrace     time.Duration // for how long a predecessor that its schedule retired still admits
	Rotator         string        // id of the node that makes the successors, and has the secrets stored
	RotateRequested bool          // an operator asked the rotator to act now
	ProposedBy      string        // id of the rotator that made this key; empty: an operator issued it
	ScheduledBy     string        // who named the rotator; approves no successor that it makes
}

// MaxRecentUses bounds Key.RecentUses.
const MaxRecentUses = 64

// Use says who used a key, and when.
type Use struct {
	Node, Name string
	At         time.Time
}

// NodeState is a node's state.
type NodeState string

// The states of a node.
const (
	NodeEnrolled    NodeState = "enrolled"    // joined, not yet confirmed
	NodeActive      NodeState = "active"      // confirmed
	NodeLapsed      NodeState = "lapsed"      // 24 h silent; its key brings it back
	NodeDeparted    NodeState = "departed"    // left, or never confirmed, or 7 days silent
	NodeQuarantined NodeState = "quarantined" // by an operator, or by its key's revocation
	NodeRevoked     NodeState = "revoked"     // for good
)

// Addresses are where a node is reached: host:port, empty where it does not listen.
type Addresses struct {
	Mesh   string // mutual TLS among nodes, and the gRPC API
	Gossip string // TCP and UDP
	Proxy  string // users
}

// Node is an enrolled node. Between enrolled nodes this record is the trust: PublicKey is the certificate's.
type Node struct {
	ID               string
	Name             string
	Region           string
	Roles            []Role
	RouteSelector    string
	Addresses        Addresses
	PublicKey        ed25519.PublicKey
	SealingPublicKey []byte // HPKE DHKEM(X25519), 32 bytes
	SessionPublicKey ed25519.PublicKey
	ProvisioningKey  string // id; never changes
	BoundKey         string // id; changes by re-binding
	RebindTo         string // id of the key that an operator lets this node bind to; empty: its key's successor alone
	State            NodeState
	JoinID           string // hex
	EnrolledAt       time.Time
	StateSince       time.Time
	CertExpiresAt    time.Time
	Reason           string
}

// Trusted reports whether a peer that proves to hold the node's key may speak at all: neither revoked, quarantined nor departed.
func (n *Node) Trusted() bool {
	return n.State == NodeEnrolled || n.State == NodeActive || n.State == NodeLapsed
}

// HasRole reports whether the node may act in the role.
func (n *Node) HasRole(r Role) bool {
	for _, have := range n.Roles {
		if have == r {
			return true
		}
	}
	return false
}

// Admin is an administrator's credential.
type Admin struct {
	ID        string
	Name      string
	PublicKey ed25519.PublicKey
	CreatedAt time.Time
	ExpiresAt time.Time
	RevokedAt time.Time
	Reason    string
}

// SigningKind is what a signing key signs.
type SigningKind string

// The kinds of signing keys.
const (
	SigningSession   SigningKind = "session"   // EdDSA, one a proxy node
	SigningAssertion SigningKind = "assertion" // ES256, one a region and selector
)

// SigningState is a signing key's state.
type SigningState string

// The states of a signing key.
const (
	SigningAnnounced  SigningState = "announced"
	SigningActive     SigningState = "active"
	SigningVerifyOnly SigningState = "verify_only"
	SigningRetired    SigningState = "retired"
	SigningDestroyed  SigningState = "destroyed"
	SigningRevoked    SigningState = "revoked"
)

// SigningKey is the public half of a key that signs sessions or assertions.
type SigningKey struct {
	KID             string
	Kind            SigningKind
	Node            string // session keys: whose
	Region          string
	RouteSelector   string
	PublicKey       []byte // session: Ed25519, 32 bytes; assertion: PKIX DER of a P-256 key
	State           SigningState
	AnnouncedAt     time.Time
	ActiveAt        time.Time
	RetireAt        time.Time // verify_only until then
	StateSince      time.Time
	RotateRequested bool
	Reason          string
	ProvisioningKey string            // lineage: what the signing node joined under
	Revision        revision.Revision // at which the record was last written
}

// Verifies reports whether what the key signed counts: announced keys do not sign yet, but a token of one is no forgery.
func (k *SigningKey) Verifies() bool {
	return k.State == SigningAnnounced || k.State == SigningActive || k.State == SigningVerifyOnly
}

// AuthorityState is a certificate authority's state.
type AuthorityState string

// The states of a certificate authority.
const (
	AuthorityPrepared AuthorityState = "prepared"
	AuthorityActive   AuthorityState = "active"
	AuthorityRetired  AuthorityState = "retired"
)

// Authority is a root of the mesh; its private key is a secret of audience control.
type Authority struct {
	Serial      string // hex
	Certificate *x509.Certificate
	State       AuthorityState
	CreatedAt   time.Time
	ActiveAt    time.Time // it issues from then on
	RetiredAt   time.Time // until then
	// CrossCertificates are of this authority's key, each signed by another authority: for the chain of a server whose certificate this
	// one issued.
	CrossCertificates []*x509.Certificate
	Revision          revision.Revision // at which the record was last written
}

// RevocationKind is what a revocation matches.
type RevocationKind string

// The kinds of revocations.
const (
	RevokeSession RevocationKind = "session" // value: session id
	RevokeSubject RevocationKind = "subject" // value: <idp>/<subject>
)

// Revocation, committed at Revision R, refuses matching sessions with rev < R; with Block, later ones too.
type Revocation struct {
	Kind      RevocationKind
	Value     string
	Block     bool
	Reason    string
	By        string
	At        time.Time
	ExpiresAt time.Time // zero: stands until lifted
	Revision  revision.Revision
}

// Audience is a named set of nodes that may open the secrets encrypted under its key.
type Audience struct {
	Name      string
	Version   uint32
	Wraps     []Wrap
	RotatedAt time.Time
}

// Wrap is an audience key, encrypted by HPKE to one member's sealing key.
type Wrap struct {
	Node         string
	Encapsulated []byte
	Ciphertext   []byte
}

// Secret is a value under an audience's key.
type Secret struct {
	Audience   string
	Name       string
	Version    uint32
	Ciphertext []byte
	At         time.Time
}

// The audiences.
const (
	AudienceControl = "control" // CA keys
	AudienceProxies = "proxies" // hand-off and refresh keys, identity providers' client secrets
	AudienceGossip  = "gossip"  // the ring of gossip keys
)

// AssertAudience names the audience of the assertion key for a region and selector.
func AssertAudience(region, selector string) string {
	if selector == "" {
		selector = "_"
	}
	return "assert/" + region + "/" + selector
}

// Mesh is what never changes but by recovery.
type Mesh struct {
	ID          string
	TrustDomain string
	FoundedAt   time.Time
}
