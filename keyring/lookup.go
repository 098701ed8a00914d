package keyring

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// The lookups here scan: operators and the leader ask, never a request. Results are sorted by id.

// NodesUnder returns the nodes that a key is answerable for: those that first joined under it, whatever they are bound to since,
// and those bound to it. A key's revocation cascades to all of them.
func (s *Snapshot) NodesUnder(key string) []*Node {
	return s.nodesWhere(func(n *Node) bool { return n.ProvisioningKey == key || n.BoundKey == key })
}

// CountActive counts the nodes, other than one that asks, which take a place under a key's max_active: neither departed nor revoked, and
// bound to it or to another key of its rotation chain. While nodes move from a key to its successor both share their places, or else a
// rotation would let in twice as many. Those of a revoked key do not move, and take none from the others.
func (s *Snapshot) CountActive(key, asks string) int {
	shared := map[string]bool{key: true}
	for _, k := range s.chain(key) {
		shared[k.ID] = k.ID == key || k.State != KeyRevoked
	}
	return len(s.nodesWhere(func(n *Node) bool {
		return shared[n.BoundKey] && n.ID != asks && !n.State.Final()
	}))
}

// ControlNodes returns the trusted nodes with role control.
func (s *Snapshot) ControlNodes() []*Node {
	return s.nodesWhere(func(n *Node) bool { return n.Trusted() && n.HasRole(RoleControl) })
}

// TrustedNodes returns the nodes that may speak at all.
func (s *Snapshot) TrustedNodes() []*Node { return s.nodesWhere((*Node).Trusted) }

// NodeByJoinID returns the node that a join made; nil if there is none.
func (s *Snapshot) NodeByJoinID(joinID string) *Node {
	for _, n := range s.Nodes {
		if joinID != "" && n.JoinID == joinID {
			return n
		}
	}
	return nil
}

func (s *Snapshot) nodesWhere(keep func(*Node) bool) []*Node {
	var out []*Node
	for _, n := range s.Nodes {
		if keep(n) {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b *Node) int { return compareID(a.ID, b.ID) })
	return out
}

// FindKey returns the key with that id or, if no other key in use shares it, that name: of keys that succeeded each other, the
// last; one that is yet to take over does not count. NotFound, or Invalid if the name is ambiguous.
func (s *Snapshot) FindKey(idOrName string) (*Key, error) {
	if k := s.Keys[idOrName]; k != nil {
		return k, nil
	}
	var current, gone []*Key
	for _, k := range s.Keys {
		switch {
		case k.Name != idOrName || idOrName == "":
		case k.Proposed(): // until it is complete, the name is its predecessor's
		case k.nameless():
			gone = append(gone, k)
		default:
			current = append(current, k)
		}
	}
	if len(current) == 0 { // of a chain whose last was revoked, that one
		current = slices.DeleteFunc(slices.Clone(gone), func(k *Key) bool {
			return slices.ContainsFunc(gone, func(o *Key) bool { return o.ID == k.Successor || k.State == KeyPending && o.ID == k.Predecessor })
		})
	}
	switch len(current) {
	case 0:
		return nil, fault.New(fault.NotFound, "key %.80q: no key has this id or name", idOrName)
	case 1:
		return current[0], nil
	}
	return nil, ambiguous("key", idOrName, "keys have this name", current, func(k *Key) string { return k.ID })
}

// nameless reports whether a key's name is another's: its successor's or, until it takes over, its predecessor's. A revoked one needs none.
func (k *Key) nameless() bool {
	return k.Successor != "" || k.State == KeyRevoked || k.State == KeyPending && k.Predecessor != ""
}

// NameTaken returns the key that a name means, if it admits nodes or may come to: by name, nobody could tell it from another. nil if there is
// none.
func (s *Snapshot) NameTaken(name string, now time.Time) *Key {
	for _, k := range s.Keys {
		if k.Name == name && !k.nameless() && k.mayJoin(now) && !k.usedUp() {
			return k
		}
	}
	return nil
}

// maxNamed bounds how many ids an error names.
const maxNamed = 8

// ambiguous refuses a name that several bear. It is Invalid: repeating it does not help, and nobody else was first.
func ambiguous[T any](what, name, why string, found []T, id func(T) string) error {
	ids := make([]string, 0, len(found))
	for _, f := range found {
		ids = append(ids, id(f))
	}
	slices.Sort(ids)
	more := ""
	if len(ids) > maxNamed {
		ids, more = ids[:maxNamed], fmt.Sprintf(" and %d more", len(ids)-maxNamed)
	}
	return fault.New(fault.Invalid, "%s %.80q: %d %s; give the id: %s%s", what, name, len(found), why, strings.Join(ids, ", "), more)
}

// FindNode returns the node with that id or name. The name of a node that was put out may be given to another: who is trusted comes first,
// then who is quarantined, then who has departed, and last who was revoked. NotFound, or Invalid where several come first.
func (s *Snapshot) FindNode(idOrName string) (*Node, error) {
	if n := s.Nodes[idOrName]; n != nil {
		return n, nil
	}
	var ranks [4][]*Node
	for _, n := range s.Nodes {
		if n.Name == idOrName && idOrName != "" {
			ranks[n.rank()] = append(ranks[n.rank()], n)
		}
	}
	for _, found := range ranks {
		switch len(found) {
		case 0:
		case 1:
			return found[0], nil
		default:
			return nil, ambiguous("node", idOrName, "nodes have this name, each "+string(found[0].State), found, func(n *Node) string { return n.ID })
		}
	}
	return nil, fault.New(fault.NotFound, "no node %.80q", idOrName)
}

// rank orders the nodes that bear a name: the less is over for one, the more likely it is meant.
func (n *Node) rank() int {
	switch {
	case n.Trusted():
		return 0
	case n.State == NodeQuarantined:
		return 1
	case n.State == NodeDeparted:
		return 2
	}
	return 3
}

// OpenProposal returns the successor that a key's rotator has proposed and not completed; nil if there is none.
func (s *Snapshot) OpenProposal(key string) *Key {
	for _, k := range s.Keys {
		if k.Predecessor == key && k.Proposed() {
			return k
		}
	}
	return nil
}

// ActiveSessionKey returns the key that a node signs sessions with; nil if there is none.
func (s *Snapshot) ActiveSessionKey(node string) *SigningKey {
	return s.activeKey(SigningKey{Kind: SigningSession, Node: node})
}

// ActiveAssertionKey returns the key that signs assertions for a region and selector; nil if there is none.
func (s *Snapshot) ActiveAssertionKey(region, selector string) *SigningKey {
	return s.activeKey(SigningKey{Kind: SigningAssertion, Region: region, RouteSelector: selector})
}

func (s *Snapshot) activeKey(slot SigningKey) *SigningKey {
	for _, k := range s.SigningKeys {
		if k.State == SigningActive && k.SameSlot(&slot) {
			return k
		}
	}
	return nil
}

// VerifyingKeys returns the keys of a kind whose tokens count, announced ones included: what a key set publishes.
func (s *Snapshot) VerifyingKeys(kind SigningKind) []*SigningKey {
	return s.signingWhere(func(k *SigningKey) bool { return k.Kind == kind && k.Verifies() })
}

// ActiveSigningKeys returns the keys of a kind that sign.
func (s *Snapshot) ActiveSigningKeys(kind SigningKind) []*SigningKey {
	return s.signingWhere(func(k *SigningKey) bool { return k.Kind == kind && k.State == SigningActive })
}

// SigningKeysOf returns a node's session keys, of every state.
func (s *Snapshot) SigningKeysOf(node string) []*SigningKey {
	return s.signingWhere(func(k *SigningKey) bool { return k.Kind == SigningSession && k.Node == node })
}

// LeftBehind returns the session keys that a key's revocation revokes although their nodes stay as they are, node by node. A quarantine does not
// reach who has departed, and what such a node has signed counts until its session keys are over: whoever joined by a stolen key could leave
// before he is found out, and keep his.
func (s *Snapshot) LeftBehind(key string, c Cascade) []*SigningKey {
	if c != CascadeQuarantine { // keep takes nothing away, and kill takes the nodes with all their keys
		return nil
	}
	departed := map[string]bool{}
	for _, n := range s.NodesUnder(key) {
		departed[n.ID] = n.State == NodeDeparted
	}
	out := s.signingWhere(func(k *SigningKey) bool { return k.Kind == SigningSession && k.Verifies() && departed[k.Node] })
	slices.SortStableFunc(out, func(a, b *SigningKey) int { return compareID(a.Node, b.Node) })
	return out
}

func (s *Snapshot) signingWhere(keep func(*SigningKey) bool) []*SigningKey {
	var out []*SigningKey
	for _, k := range s.SigningKeys {
		if keep(k) {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, func(a, b *SigningKey) int { return compareID(a.KID, b.KID) })
	return out
}

// ActiveAuthority returns the authority that issues; nil if there is none. Should two be active, the newer.
func (s *Snapshot) ActiveAuthority() *Authority {
	var best *Authority
	for _, a := range s.Authorities {
		if a.State == AuthorityActive && (best == nil || a.CreatedAt.After(best.CreatedAt)) {
			best = a
		}
	}
	return best
}
