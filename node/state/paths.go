package state

import (
	"encoding/hex"

	"github.com/iapmesh/iapmesh/keyring"
)

// The prefixes of the replicated state, one for each kind of record.
const (
	PrefixKey        = "provisioning-key/"
	PrefixNode       = "node/"
	PrefixAdmin      = "admin/"
	PrefixSigningKey = "signing-key/"
	PrefixAuthority  = "ca/"
	PrefixRevocation = "revocation/"
	PrefixAudience   = "audience/"
	PrefixSecret     = "secret/"
	PrefixBlob       = "blob/"
	PrefixReceipt    = "receipt/"
	PathManifest     = "manifest"
	PathMesh         = "meta/mesh"
	PathGossipRing   = "meta/gossip-ring"
)

// KeyPath is where a provisioning key lies.
func KeyPath(id string) string { return PrefixKey + id }

// NodePath is where a node lies.
func NodePath(id string) string { return PrefixNode + id }

// AdminPath is where an administrator lies.
func AdminPath(id string) string { return PrefixAdmin + id }

// SigningKeyPath is where a signing key lies.
func SigningKeyPath(kid string) string { return PrefixSigningKey + kid }

// AuthorityPath is where an authority lies.
func AuthorityPath(serial string) string { return PrefixAuthority + serial }

// RevocationPath is where a revocation lies.
func RevocationPath(kind keyring.RevocationKind, value string) string {
	return PrefixRevocation + string(kind) + "/" + value
}

// AudiencePath is where an audience lies.
func AudiencePath(name string) string { return PrefixAudience + name }

// SecretPath is where a secret lies.
func SecretPath(audience, name string) string { return PrefixSecret + audience + "/" + name }

// ReceiptPath is where a receipt lies.
func ReceiptPath(id string) string { return PrefixReceipt + id }

// BlobPath is where a resource of that hash lies.
func BlobPath(hash [32]byte) string { return PrefixBlob + hex.EncodeToString(hash[:]) }
