package policy

import (
	"cmp"
	"slices"

	"github.com/cedar-policy/cedar-go"
	publicast "github.com/cedar-policy/cedar-go/ast"
)

// Policy is one compiled policy, for people: the console, explain, get.
type Policy struct {
	ID     string
	Source string // file:line where it was written; empty file and line if that is not known
	Forbid bool
	Cedar  string // the text, also of the short form
}

// IDs lists the ids of all policies, sorted.
func (s *Set) IDs() []string { return sortedKeys(s.byID) }

// Policy returns the policy with the id.
func (s *Set) Policy(id string) (Policy, bool) {
	r, ok := s.byID[id]
	if !ok {
		return Policy{}, false
	}
	return r.public(), true
}

// RoutePolicies lists the policies that are looked at for a route, its zones' and everyone's included, sorted by id. They are
// nil for a route that is not known.
func (s *Set) RoutePolicies(name string) []Policy {
	rt, ok := s.routes[name]
	if !ok {
		return nil
	}
	out := []Policy{}
	seen := map[*rule]bool{}
	for _, perAction := range rt.lists {
		for _, b := range perAction {
			for _, r := range b {
				if !seen[r] {
					seen[r] = true
					out = append(out, r.public())
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b Policy) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

func (r *rule) public() Policy {
	text := cedar.NewPolicyFromAST((*publicast.Policy)(r.tree)).MarshalCedar()
	return Policy{ID: string(r.id), Source: r.source, Forbid: r.forbid, Cedar: string(text)}
}
