package keyring

import (
	"crypto/ed25519"
	"encoding/binary"
	"net/netip"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// Re-binding: a node that has enrolled moves on to the successor of the key that it is bound to, by itself, on proof that it holds
// its node key. Under a key that was revoked it moves only where an operator names the key for this very node. The parent, under which
// it first joined, never changes.

// rebindDomain separates this signature from all else that a node key signs.
const rebindDomain = "iapmesh/rebind/v1"

// RebindMessage is what a node signs to be bound to another key: the domain, then mesh, node, from and to, each after its length
// (u32, big-endian).
func RebindMessage(mesh, node, from, to string) []byte {
	message := []byte(rebindDomain)
	for _, part := range []string{mesh, node, from, to} {
		message = binary.BigEndian.AppendUint32(message, uint32(len(part)))
		message = append(message, part...)
	}
	return message
}

// VerifyRebind checks a node's signature over RebindMessage by its record. A wrong one is Denied.
func VerifyRebind(mesh string, n *Node, from, to string, signature []byte) error {
	if len(n.PublicKey) != ed25519.PublicKeySize || len(signature) != ed25519.SignatureSize ||
		!ed25519.Verify(n.PublicKey, RebindMessage(mesh, n.ID, from, to), signature) {
		return fault.New(fault.Denied, "node %s: re-bind: the proof that it holds its key does not verify", n.ID)
	}
	return nil
}

// RebindFacts are what a re-binding is decided on, beside the records.
type RebindFacts struct {
	ActiveNodes int        // other nodes that take a place under the target now: Snapshot.CountActive
	Source      netip.Addr // from where the node asks; zero: not known, as when an operator speaks
}

// RebindNode binds a trusted node, which has proved its key, to another provisioning key: to the successor of the one that it is bound
// to, unless that one was revoked; or to the one that an operator named for it, which must be active. Either must cover the node.
// A node that is bound to the target already stays as it is.
func RebindNode(n Node, from, to Key, f RebindFacts) (Node, error) {
	switch {
	case !n.Trusted():
		return n, nodeConflict(&n, "re-bind")
	case to.ID != "" && n.BoundKey == to.ID:
		n.RebindTo = ""
		return n, nil
	case to.ID == "" || n.BoundKey != from.ID:
		return n, fault.New(fault.Conflict, "node %s: re-bind: it is bound to key %q, not to %q", n.ID, n.BoundKey, from.ID)
	}
	if n.RebindTo != to.ID {
		if err := succeeds(&n, &from, &to); err != nil {
			return n, err
		}
	} else if err := ruleActive(&to); err != nil {
		return n, err
	}
	if err := Covers(&to, &n, f); err != nil {
		return n, err
	}
	n.BoundKey, n.RebindTo = to.ID, ""
	return n, nil
}

// succeeds is what a node may do without anybody's word.
func succeeds(n *Node, from, to *Key) error {
	switch {
	case from.Successor != to.ID || to.Predecessor != from.ID:
		return fault.New(fault.Conflict, "node %s: re-bind: key %s does not succeed %s, to which it is bound", n.ID, to.ID, from.ID)
	case from.State == KeyRevoked:
		return refuse(from, "revoked at %s: node %s re-binds on an operator's word only", stamp(from.RevokedAt), n.ID)
	case !to.binds():
		return refuse(to, "%s: it binds no nodes", string(to.State))
	}
	return nil
}

// binds reports whether nodes may move on to the key by themselves. One that is used up, expired or rotated itself admits nobody new,
// but stops no node that has enrolled, and may be a step on the way to its own successor.
func (k *Key) binds() bool {
	switch k.State {
	case KeyActive, KeyExhausted, KeyExpired, KeyRetiring, KeyRetired:
		return true
	}
	return false
}

func ruleActive(k *Key) error {
	switch k.State {
	case KeyActive:
		return nil
	case KeyRevoked:
		return refuse(k, "revoked at %s", stamp(k.RevokedAt))
	}
	return refuse(k, "it is %s: an operator's word needs an active key", string(k.State))
}

// Covers refuses to bind a node to a key under which it could not have joined: its roles, its region, its selector, the address that
// it comes from, and how many may be active at once.
func Covers(k *Key, n *Node, f RebindFacts) error {
	if n.RouteSelector != k.RouteSelector {
		return refuse(k, "route_selector: node %s serves %q, the key is for %q", n.ID, n.RouteSelector, k.RouteSelector)
	}
	facts := &JoinFacts{Roles: n.Roles, Region: n.Region, SourceIP: f.Source, ActiveNodes: f.ActiveNodes}
	rules := []func(*Key, *JoinFacts) error{ruleGrants, ruleRegions, ruleMaxActive}
	if f.Source.IsValid() {
		rules = append(rules, ruleSourceCIDRs)
	}
	for _, rule := range rules {
		if err := rule(k, facts); err != nil {
			return err
		}
	}
	return nil
}

// AllowRebind takes an operator's word that a node may bind to a key. It may be given to a quarantined node, which proves its key
// once it is released. The word is spent by the re-binding, and ends with the node or the key.
func AllowRebind(n Node, to Key, f RebindFacts) (Node, error) {
	if !n.Trusted() && n.State != NodeQuarantined {
		return n, nodeConflict(&n, "let it re-bind")
	}
	if err := ruleActive(&to); err != nil {
		return n, err
	}
	if n.BoundKey == to.ID {
		return n, fault.New(fault.Conflict, "node %s is bound to key %s already", n.ID, to.ID)
	}
	if err := Covers(&to, &n, f); err != nil {
		return n, err
	}
	n.RebindTo = to.ID
	return n, nil
}

// RebindTarget returns the key that a node should ask to be bound to now; nil if it should stay. Whether it may, RebindNode says.
func (s *Snapshot) RebindTarget(n *Node) *Key {
	if !n.Trusted() {
		return nil
	}
	if to := s.Keys[n.RebindTo]; to != nil && to.State == KeyActive {
		return to
	}
	from := s.Keys[n.BoundKey]
	if from == nil {
		return nil
	}
	if to := s.Keys[from.Successor]; to != nil && succeeds(n, from, to) == nil {
		return to
	}
	return nil
}

// SpentWord reports whether an operator's word for a node names a key that can bind nobody any more.
func (s *Snapshot) SpentWord(n *Node) bool {
	if n.RebindTo == "" {
		return false
	}
	to := s.Keys[n.RebindTo]
	return to == nil || to.State == KeyRevoked
}

// AdmitsSource refuses a node that speaks from outside of the addresses that the key to which it is bound names. A node whose key the
// snapshot does not hold is refused: it cannot be known from where it may.
func (s *Snapshot) AdmitsSource(n *Node, source netip.Addr) error {
	if n.BoundKey == "" {
		return nil
	}
	k := s.Keys[n.BoundKey]
	if k == nil {
		return fault.New(fault.Denied, "node %s: there is no key %s, to which it is bound", n.ID, n.BoundKey)
	}
	return ruleSourceCIDRs(k, &JoinFacts{SourceIP: source})
}

// standingDomain separates what a node signs to learn its own standing.
const standingDomain = "iapmesh/standing/v1"

// StandingMessage is what a node signs to be told what became of it, bound to the connection by its exported keying material.
func StandingMessage(ekm [32]byte, node string) []byte {
	return append(append([]byte(standingDomain), ekm[:]...), node...)
}
