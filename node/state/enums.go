package state

import (
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// table maps a domain's words to a message's numbers, both ways. A number that is not in it becomes the empty word, which no
// lifecycle accepts: an unknown state verifies nothing and admits nobody.
type table[D ~string, P ~int32] map[D]P

func (t table[D, P]) proto(d D) P { return t[d] }

func (t table[D, P]) domain(p P) D {
	for d, have := range t {
		if have == p {
			return d
		}
	}
	return ""
}

var (
	roles = table[keyring.Role, iapmeshv1.Role]{
		keyring.RoleControl: iapmeshv1.Role_ROLE_CONTROL, keyring.RoleProxy: iapmeshv1.Role_ROLE_PROXY, keyring.RoleAggregator: iapmeshv1.Role_ROLE_AGGREGATOR,
	}
	keyStates = table[keyring.KeyState, iapmeshv1.KeyState]{
		keyring.KeyPending: iapmeshv1.KeyState_KEY_STATE_PENDING, keyring.KeyActive: iapmeshv1.KeyState_KEY_STATE_ACTIVE,
		keyring.KeySuspended: iapmeshv1.KeyState_KEY_STATE_SUSPENDED, keyring.KeyExhausted: iapmeshv1.KeyState_KEY_STATE_EXHAUSTED,
		keyring.KeyExpired: iapmeshv1.KeyState_KEY_STATE_EXPIRED, keyring.KeyRetiring: iapmeshv1.KeyState_KEY_STATE_RETIRING,
		keyring.KeyRetired: iapmeshv1.KeyState_KEY_STATE_RETIRED, keyring.KeyRevoked: iapmeshv1.KeyState_KEY_STATE_REVOKED,
	}
	cascades = table[keyring.Cascade, iapmeshv1.Cascade]{
		keyring.CascadeKeep: iapmeshv1.Cascade_CASCADE_KEEP, keyring.CascadeQuarantine: iapmeshv1.Cascade_CASCADE_QUARANTINE,
		keyring.CascadeKill: iapmeshv1.Cascade_CASCADE_KILL,
	}
	nodeStates = table[keyring.NodeState, iapmeshv1.NodeState]{
		keyring.NodeEnrolled: iapmeshv1.NodeState_NODE_STATE_ENROLLED, keyring.NodeActive: iapmeshv1.NodeState_NODE_STATE_ACTIVE,
		keyring.NodeLapsed: iapmeshv1.NodeState_NODE_STATE_LAPSED, keyring.NodeDeparted: iapmeshv1.NodeState_NODE_STATE_DEPARTED,
		keyring.NodeQuarantined: iapmeshv1.NodeState_NODE_STATE_QUARANTINED, keyring.NodeRevoked: iapmeshv1.NodeState_NODE_STATE_REVOKED,
	}
	signingKinds = table[keyring.SigningKind, iapmeshv1.SigningKeyKind]{
		keyring.SigningSession: iapmeshv1.SigningKeyKind_SIGNING_KEY_KIND_SESSION, keyring.SigningAssertion: iapmeshv1.SigningKeyKind_SIGNING_KEY_KIND_ASSERTION,
	}
	signingStates = table[keyring.SigningState, iapmeshv1.SigningKeyState]{
		keyring.SigningAnnounced: iapmeshv1.SigningKeyState_SIGNING_KEY_STATE_ANNOUNCED, keyring.SigningActive: iapmeshv1.SigningKeyState_SIGNING_KEY_STATE_ACTIVE,
		keyring.SigningVerifyOnly: iapmeshv1.SigningKeyState_SIGNING_KEY_STATE_VERIFY_ONLY, keyring.SigningRetired: iapmeshv1.SigningKeyState_SIGNING_KEY_STATE_RETIRED,
		keyring.SigningDestroyed: iapmeshv1.SigningKeyState_SIGNING_KEY_STATE_DESTROYED, keyring.SigningRevoked: iapmeshv1.SigningKeyState_SIGNING_KEY_STATE_REVOKED,
	}
	authorityStates = table[keyring.AuthorityState, iapmeshv1.AuthorityState]{
		keyring.AuthorityPrepared: iapmeshv1.AuthorityState_AUTHORITY_STATE_PREPARED, keyring.AuthorityActive: iapmeshv1.AuthorityState_AUTHORITY_STATE_ACTIVE,
		keyring.AuthorityRetired: iapmeshv1.AuthorityState_AUTHORITY_STATE_RETIRED,
	}
	receiptStates = table[keyring.ReceiptState, iapmeshv1.ReceiptState]{
		keyring.ReceiptOpen: iapmeshv1.ReceiptState_RECEIPT_STATE_OPEN, keyring.ReceiptLive: iapmeshv1.ReceiptState_RECEIPT_STATE_LIVE,
		keyring.ReceiptEverywhere: iapmeshv1.ReceiptState_RECEIPT_STATE_EVERYWHERE,
	}
	revocationKinds = table[keyring.RevocationKind, iapmeshv1.RevocationKind]{
		keyring.RevokeSession: iapmeshv1.RevocationKind_REVOCATION_KIND_SESSION, keyring.RevokeSubject: iapmeshv1.RevocationKind_REVOCATION_KIND_SUBJECT,
	}
)

// RolesProto writes roles.
func RolesProto(rs []keyring.Role) []iapmeshv1.Role {
	out := make([]iapmeshv1.Role, 0, len(rs))
	for _, r := range rs {
		out = append(out, roles.proto(r))
	}
	return out
}

// RolesOf reads roles; unknown ones are left out.
func RolesOf(ps []iapmeshv1.Role) []keyring.Role {
	out := make([]keyring.Role, 0, len(ps))
	for _, p := range ps {
		if r := roles.domain(p); r != "" {
			out = append(out, r)
		}
	}
	return out
}

// CascadeOf reads a cascade; empty if it is not set.
func CascadeOf(p iapmeshv1.Cascade) keyring.Cascade { return cascades.domain(p) }

// KeyStateOf reads a provisioning key's state.
func KeyStateOf(p iapmeshv1.KeyState) keyring.KeyState { return keyStates.domain(p) }

// NodeStateOf reads a node's state.
func NodeStateOf(p iapmeshv1.NodeState) keyring.NodeState { return nodeStates.domain(p) }

// SigningKindOf reads what a signing key signs.
func SigningKindOf(p iapmeshv1.SigningKeyKind) keyring.SigningKind { return signingKinds.domain(p) }

// SigningStateOf reads a signing key's state.
func SigningStateOf(p iapmeshv1.SigningKeyState) keyring.SigningState { return signingStates.domain(p) }

// RevocationKindOf reads what a revocation matches.
func RevocationKindOf(p iapmeshv1.RevocationKind) keyring.RevocationKind {
	return revocationKinds.domain(p)
}
