package keyring_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/iapmesh/iapmesh/keyring"
)

// drawn writes a lineage as "a(n1 n2) → b(n3; +n4)": +n4 is bound to b, and joined elsewhere.
func drawn(chain []keyring.Branch) string {
	var parts []string
	for _, b := range chain {
		text := strings.Join(ids(b.Nodes), " ")
		if len(b.Rebound) > 0 {
			text += "; +" + strings.Join(ids(b.Rebound), " +")
		}
		parts = append(parts, fmt.Sprintf("%s(%s)", b.Key.ID, text))
	}
	return strings.Join(parts, " → ")
}

func TestTheLineageOfAKey(t *testing.T) {
	t.Parallel()
	link := func(id, predecessor, successor string) *keyring.Key {
		return &keyring.Key{ID: id, Predecessor: predecessor, Successor: successor}
	}
	node := func(id, parent, bound string) *keyring.Node {
		return &keyring.Node{ID: id, ProvisioningKey: parent, BoundKey: bound}
	}
	for name, tc := range map[string]struct {
		keys  []*keyring.Key
		nodes []*keyring.Node
		of    map[string]string
	}{
		"a key alone": {[]*keyring.Key{link("a", "", "")}, nil, map[string]string{"a": "a()", "unknown": "", "": ""}},
		"a chain is the same from each of its keys, and a node stays under its parent": {
			[]*keyring.Key{link("a", "", "b"), link("b", "a", "c"), link("c", "b", ""), link("z", "", "")},
			[]*keyring.Node{node("n1", "a", "b"), node("n2", "a", "a"), node("n3", "c", "c"), node("n4", "z", "z")},
			map[string]string{"a": "a(n1 n2) → b() → c(n3)", "b": "a(n1 n2) → b() → c(n3)", "c": "a(n1 n2) → b() → c(n3)", "z": "z(n4)"},
		},
		"bound to a key of another chain": {
			[]*keyring.Key{link("a", "", ""), link("b", "", "")}, []*keyring.Node{node("n1", "a", "b")},
			map[string]string{"a": "a(n1)", "b": "b(; +n1)"},
		},
		"a link of one end is none": {
			[]*keyring.Key{link("a", "", "b"), link("b", "", ""), link("c", "a", ""), link("d", "gone", "gone")}, nil,
			map[string]string{"a": "a()", "b": "b()", "c": "c()", "d": "d()"},
		},
		"a circle ends": {
			[]*keyring.Key{link("a", "c", "b"), link("b", "a", "c"), link("c", "b", "a")}, nil,
			map[string]string{"a": "b() → c() → a()", "b": "c() → a() → b()"},
		},
		"its own successor": {[]*keyring.Key{link("a", "a", "a")}, nil, map[string]string{"a": "a()"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := keyring.Contents{Keys: map[string]*keyring.Key{}, Nodes: map[string]*keyring.Node{}}
			for _, k := range tc.keys {
				c.Keys[k.ID] = k
			}
			for _, n := range tc.nodes {
				c.Nodes[n.ID] = n
			}
			s := snapshot(c)
			for of, want := range tc.of {
				if diff := cmp.Diff(want, drawn(s.Lineage(of))); diff != "" {
					t.Errorf("lineage of %q: %s", of, diff)
				}
			}
		})
	}
}

// Whatever is issued, joined, rotated, re-bound and revoked, in whatever order: the lineages are a forest. Each key stands in one
// chain, which is the same from each of its keys; each node stands under the key that it first joined under, and nowhere else.
func TestLineageIsAForest(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		c := keyring.Contents{Keys: map[string]*keyring.Key{}, Nodes: map[string]*keyring.Node{}}
		at, made, damaged := now, 0, false
		parents := map[string]string{}
		fresh := func() string { made++; return fmt.Sprint("k", made) }
		key := func(rt *rapid.T) *keyring.Key {
			if len(c.Keys) == 0 {
				rt.Skip("no key yet")
			}
			return c.Keys[rapid.SampledFrom(slices.Sorted(maps.Keys(c.Keys))).Draw(rt, "key")]
		}
		node := func(rt *rapid.T) *keyring.Node {
			if len(c.Nodes) == 0 {
				rt.Skip("no node yet")
			}
			return c.Nodes[rapid.SampledFrom(slices.Sorted(maps.Keys(c.Nodes))).Draw(rt, "node")]
		}
		put := func(keys ...keyring.Key) {
			for _, k := range keys {
				c.Keys[k.ID] = &k
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"issue": func(*rapid.T) {
				put(issued(t, func(r *keyring.KeyRequest) { r.PublicKey, r.MaxUses, r.Now = public(fresh()), ptr(uint32(0)), at }))
			},
			"join": func(rt *rapid.T) {
				k, name := key(rt), fmt.Sprint("n", len(c.Nodes))
				admitted, err := keyring.AdmitJoin(*k, facts(func(f *keyring.JoinFacts) { f.Now, f.Node = at, name }))
				if err != nil {
					return
				}
				n := enrolled(t, admitted, name)
				put(admitted)
				c.Nodes[n.ID], parents[n.ID] = &n, k.ID
			},
			"rotate": func(rt *rapid.T) {
				before, after, err := keyring.RotateKey(*key(rt), keyring.RotateRequest{SuccessorPublicKey: public(fresh()), Grace: time.Hour, Now: at})
				if err == nil {
					put(before, after)
				}
			},
			"re-bind": func(rt *rapid.T) {
				n := node(rt)
				from := c.Keys[n.BoundKey]
				to := c.Keys[from.Successor]
				if to == nil {
					return
				}
				if after, err := keyring.RebindNode(*n, *from, *to, keyring.RebindFacts{}); err == nil {
					c.Nodes[n.ID] = &after
				}
			},
			"revoke": func(rt *rapid.T) {
				target := key(rt)
				k, changed, err := keyring.RevokeKey(*target, snapshot(c).NodesUnder(target.ID), keyring.RevokeRequest{Cascade: keyring.CascadeKill, Now: at})
				if err != nil {
					return
				}
				put(k)
				for _, n := range changed {
					c.Nodes[n.ID] = &n
				}
			},
			"time passes": func(*rapid.T) { at = at.Add(40 * time.Minute) },
			"damage": func(rt *rapid.T) { // a record that points where it should not
				k := *key(rt)
				k.Successor, k.Predecessor = key(rt).ID, key(rt).ID
				put(k)
				damaged = true
			},
			"": func(rt *rapid.T) {
				s := snapshot(c)
				under := map[string]string{}
				for id, k := range c.Keys {
					chain := s.Lineage(id)
					members := map[string]bool{}
					for _, b := range chain {
						if members[b.Key.ID] {
							rt.Fatalf("key %s stands twice in the chain of %s: %s", b.Key.ID, id, drawn(chain))
						}
						members[b.Key.ID] = true
						for _, n := range b.Nodes {
							if was, ok := under[n.ID]; (ok && was != b.Key.ID) || n.ProvisioningKey != b.Key.ID {
								rt.Fatalf("node %s of %s is under %s and %s", n.ID, n.ProvisioningKey, b.Key.ID, was)
							}
							under[n.ID] = b.Key.ID
						}
						if len(b.Rebound) > 0 && !damaged {
							rt.Fatalf("re-binding left the chain: %s", drawn(chain))
						}
					}
					if !members[id] || (!damaged && k.Successor != "" && !members[k.Successor]) || (!damaged && k.Predecessor != "" && !members[k.Predecessor]) {
						rt.Fatalf("the chain of %s (after %q, before %q) is %s", id, k.Predecessor, k.Successor, drawn(chain))
					}
					for other := range members {
						again := s.Lineage(other)
						if len(again) != len(chain) || !slices.ContainsFunc(again, func(b keyring.Branch) bool { return b.Key.ID == id }) {
							rt.Fatalf("%s is in the chain of %s (%s), which from there is %s", other, id, drawn(chain), drawn(again))
						}
					}
				}
				if diff := cmp.Diff(parents, under); diff != "" {
					rt.Fatalf("whose nodes are whose: %s", diff)
				}
			},
		})
	})
}
