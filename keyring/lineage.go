package keyring

import "slices"

// Branch is one key of a rotation chain, and the nodes that descend from it.
type Branch struct {
	Key   *Key
	Nodes []*Node // that first joined under it, whatever they are bound to since

	// Rebound joined under a key outside of the chain and are bound to this one. They descend from the other; a revocation of this
	// one reaches them all the same.
	Rebound []*Node
}

// Lineage returns the rotation chain that a key belongs to, oldest first, each key with the nodes that joined under it; nil if there
// is no such key.
func (s *Snapshot) Lineage(key string) []Branch {
	chain := s.chain(key)
	seen := map[string]bool{}
	for _, k := range chain {
		seen[k.ID] = true
	}
	joined, bound := map[string][]*Node{}, map[string][]*Node{}
	for _, n := range s.nodesWhere(func(n *Node) bool { return seen[n.ProvisioningKey] || seen[n.BoundKey] }) {
		if seen[n.ProvisioningKey] {
			joined[n.ProvisioningKey] = append(joined[n.ProvisioningKey], n)
		} else {
			bound[n.BoundKey] = append(bound[n.BoundKey], n)
		}
	}
	var out []Branch
	for _, k := range chain {
		out = append(out, Branch{Key: k, Nodes: joined[k.ID], Rebound: bound[k.ID]})
	}
	return out
}

// chain is the rotation chain that a key belongs to, oldest first; nil if there is no such key. A link counts only where both of its ends
// name each other, so that every key stands in exactly one chain and every node under at most one key, however damaged the records are.
// A chain that closes on itself is cut before the key that was asked for.
func (s *Snapshot) chain(key string) []*Key {
	k := s.Keys[key]
	if k == nil {
		return nil
	}
	seen := map[string]bool{k.ID: true}
	chain := []*Key{k}
	for p := s.before(k); p != nil && !seen[p.ID]; p = s.before(p) {
		seen[p.ID] = true
		chain = append(chain, p)
	}
	slices.Reverse(chain)
	for n := s.after(k); n != nil && !seen[n.ID]; n = s.after(n) {
		seen[n.ID] = true
		chain = append(chain, n)
	}
	return chain
}

// before is the key that k succeeded; nil if there is none, or it names another successor.
func (s *Snapshot) before(k *Key) *Key {
	if p := s.Keys[k.Predecessor]; k.Predecessor != "" && p != nil && p.Successor == k.ID {
		return p
	}
	return nil
}

// after is the key that succeeded k; nil if there is none, or it names another predecessor.
func (s *Snapshot) after(k *Key) *Key {
	if n := s.Keys[k.Successor]; k.Successor != "" && n != nil && n.Predecessor == k.ID {
		return n
	}
	return nil
}
