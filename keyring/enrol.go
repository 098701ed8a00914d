package keyring

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base32"
	"slices"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// NodeID names the node that holds a certificate key: "n-" and 16 characters of a-z and 2-7, a DNS label. A node keeps its key
// for life, so that a repeated join can only yield the same id.
func NodeID(pub ed25519.PublicKey) string { return derivedID("n-", "iapmesh/node-id/v1", pub) }

func derivedID(prefix, domain string, pub []byte) string {
	sum := sha256.Sum256(append([]byte(domain), pub...))
	return prefix + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10]))
}

// EnrolRequest is what a verified join says of its node.
type EnrolRequest struct {
	JoinID           string // hex
	Name             string
	Region           string
	Roles            []Role
	Addresses        Addresses
	PublicKey        ed25519.PublicKey
	SealingPublicKey []byte
	SessionPublicKey ed25519.PublicKey
	CertExpiresAt    time.Time
	Now              time.Time
}

// EnrolNode makes the record of a node that joins under a key which has admitted it. Its route selector is the key's.
func EnrolNode(k Key, r EnrolRequest) (Node, error) {
	if err := validEnrol(k, r); err != nil {
		return Node{}, err
	}
	return Node{
		ID:               NodeID(r.PublicKey),
		Name:             r.Name,
		Region:           r.Region,
		Roles:            slices.Sorted(slices.Values(r.Roles)),
		RouteSelector:    k.RouteSelector,
		Addresses:        r.Addresses,
		PublicKey:        slices.Clone(r.PublicKey),
		SealingPublicKey: slices.Clone(r.SealingPublicKey),
		SessionPublicKey: slices.Clone(r.SessionPublicKey),
		ProvisioningKey:  k.ID,
		BoundKey:         k.ID,
		State:            NodeEnrolled,
		JoinID:           r.JoinID,
		EnrolledAt:       r.Now,
		StateSince:       r.Now,
		CertExpiresAt:    r.CertExpiresAt,
	}, nil
}

func validEnrol(k Key, r EnrolRequest) error {
	if err := ValidName("node name", r.Name); err != nil {
		return err
	}
	if err := ValidRegion(r.Region); err != nil {
		return err
	}
	if err := validRoles("roles", r.Roles); err != nil {
		return err
	}
	if err := validPublicKey("node key", r.PublicKey); err != nil {
		return err
	}
	if err := validPublicKey("session key", r.SessionPublicKey); err != nil {
		return err
	}
	for _, a := range []string{r.Addresses.Mesh, r.Addresses.Gossip, r.Addresses.Proxy} {
		if err := validText("address", a, 261); err != nil {
			return err
		}
	}
	switch {
	case len(r.SealingPublicKey) != 32:
		return fault.New(fault.Invalid, "sealing key: %d bytes, want 32", len(r.SealingPublicKey))
	case len(r.JoinID) < 16 || len(r.JoinID) > 64 || strings.Trim(r.JoinID, "0123456789abcdef") != "":
		return fault.New(fault.Invalid, "join id: want 16 to 64 lower-case hex digits")
	case r.PublicKey.Equal(r.SessionPublicKey), r.PublicKey.Equal(k.PublicKey), r.SessionPublicKey.Equal(k.PublicKey):
		return fault.New(fault.Invalid, "node, session and provisioning key: want three different keys")
	}
	return nil
}

// JoinIdentity is what makes two joins the same one.
type JoinIdentity struct {
	JoinID     string // hex
	Key        string // provisioning key's id
	NodeKey    ed25519.PublicKey
	SessionKey ed25519.PublicKey
}

// ResumeJoin decides about a join whose id the mesh knows (Snapshot.NodeByJoinID): nil means that the asker gets the same node
// again and no use is counted. Conflict: the id is another's. Denied: the key or the node is gone.
func ResumeJoin(k Key, n Node, id JoinIdentity) error {
	switch {
	case n.JoinID != id.JoinID || n.ProvisioningKey != id.Key || k.ID != id.Key ||
		!n.PublicKey.Equal(id.NodeKey) || !n.SessionPublicKey.Equal(id.SessionKey):
		return fault.New(fault.Conflict, "join %s: its id or one of its keys belongs to another join; begin anew, with a new id and new keys", id.JoinID)
	case k.State == KeyRevoked:
		return refuse(&k, "revoked at %s", stamp(k.RevokedAt))
	case !n.Trusted():
		return fault.New(fault.Denied, "node %s: %s since %s; begin anew, with a new id and new keys", n.ID, n.State, stamp(n.StateSince))
	}
	return nil
}
