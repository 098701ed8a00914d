package policy

import (
	"cmp"
	"slices"

	"github.com/cedar-policy/cedar-go"
	publicast "github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// The index goes by resource and action scope, and each request's candidates by principal scope. It is sound because scopes
// cannot err: a policy whose scope does not match could neither apply nor fail. What has been decided so is not evaluated
// again: the compiled policies carry no scope.

// actionNames are the actions that requests have; a slice's place is the action's number. Never written.
var actionNames = [...]string{"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "other", "tcp"}

const (
	actionOther = 7
	actionTCP   = 8
	actionCount = 9
)

// actionNumber maps a request to its action; a method that the schema does not name is "other", a write.
func actionNumber(method string) int {
	switch method {
	case "":
		return actionTCP
	case "GET":
		return 0
	case "HEAD":
		return 1
	case "OPTIONS":
		return 2
	case "POST":
		return 3
	case "PUT":
		return 4
	case "PATCH":
		return 5
	case "DELETE":
		return 6
	}
	return actionOther
}

// rule is one compiled policy.
type rule struct {
	id      cedar.PolicyID
	source  string // file:line
	forbid  bool
	needs   needs
	actions [actionCount]bool
	who     who
	tree    *ast.Policy   // as written
	cedar   *cedar.Policy // without its scope and who.anyOf
}

func newRule(id, source string, tree *ast.Policy, actions map[string]types.Entity) *rule {
	inner := *tree
	inner.Principal, inner.Action, inner.Resource = ast.ScopeTypeAll{}, ast.ScopeTypeAll{}, ast.ScopeTypeAll{}
	r := &rule{id: cedar.PolicyID(id), source: source, forbid: tree.Effect == ast.EffectForbid, who: whoOf(tree.Principal), tree: tree}
	if len(tree.Conditions) > 0 {
		if r.who.anyOf = principalList(tree.Conditions[0]); r.who.anyOf != nil {
			inner.Conditions = tree.Conditions[1:]
		}
	}
	r.needs = needsOf(&inner)
	for i, name := range actionNames {
		r.actions[i] = actionMatches(tree.Action, actions[name])
	}
	r.cedar = cedar.NewPolicyFromAST((*publicast.Policy)(&inner))
	return r
}

func actionMatches(scope ast.IsActionScopeNode, action types.Entity) bool {
	in := func(id types.EntityUID) bool { return id == action.UID || action.Parents.Contains(id) }
	switch s := scope.(type) {
	case ast.ScopeTypeEq:
		return s.Entity == action.UID
	case ast.ScopeTypeIn:
		return in(s.Entity)
	case ast.ScopeTypeInSet:
		return slices.ContainsFunc(s.Entities, in)
	}
	return true
}

// who is a principal scope: zero fields do not restrict.
type who struct {
	is    types.EntityType
	eq    types.EntityUID
	in    types.EntityUID
	anyOf []types.EntityUID // from a first clause "when { principal in [literals] }", which cannot err either
}

// principalList returns the literals of such a clause: the short form's way to name several groups or users.
func principalList(c ast.ConditionType) []types.EntityUID {
	in, ok := c.Body.(ast.NodeTypeIn)
	if !ok || c.Condition != ast.ConditionWhen {
		return nil
	}
	left, isVariable := in.Left.(ast.NodeTypeVariable)
	right, isSet := in.Right.(ast.NodeTypeSet)
	if !isVariable || left.Name != "principal" || !isSet {
		return nil
	}
	var out []types.EntityUID
	for _, element := range right.Elements {
		value, ok := element.(ast.NodeValue)
		if !ok {
			return nil
		}
		id, ok := value.Value.(types.EntityUID)
		if !ok {
			return nil
		}
		out = append(out, id)
	}
	return out
}

func whoOf(scope ast.IsPrincipalScopeNode) who {
	switch s := scope.(type) {
	case ast.ScopeTypeEq:
		return who{eq: s.Entity}
	case ast.ScopeTypeIn:
		return who{in: s.Entity}
	case ast.ScopeTypeIs:
		return who{is: s.Type}
	case ast.ScopeTypeIsIn:
		return who{is: s.Type, in: s.Entity}
	}
	return who{}
}

// matches reports whether the scope holds for a principal in these groups; groups lie in no others.
func (w *who) matches(principal types.EntityUID, groups []types.EntityUID) bool {
	return (w.is == "" || w.is == principal.Type) &&
		(w.eq.Type == "" || w.eq == principal) &&
		(w.in.Type == "" || w.in == principal || slices.Contains(groups, w.in)) &&
		(w.anyOf == nil || slices.ContainsFunc(w.anyOf, func(id types.EntityUID) bool { return id == principal || slices.Contains(groups, id) }))
}

// bucket holds the policies of one resource scope, by action, each list by id.
type bucket [actionCount][]*rule

func (b *bucket) add(r *rule) {
	for i, ok := range r.actions {
		if ok {
			b[i] = append(b[i], r)
		}
	}
}

func (b *bucket) sort() {
	for i := range b {
		slices.SortFunc(b[i], func(a, b *rule) int { return cmp.Compare(a.id, b.id) })
	}
}

// route is a route with what its scope chain selects for each action: its own policies, its zones', and everyone's. The
// lists are shared: one that holds for all routes is held once.
type route struct {
	entity types.Entity
	lists  [actionCount][][]*rule
}

func (rt *route) take(b *bucket) {
	if b == nil {
		return
	}
	for i := range b {
		if len(b[i]) > 0 {
			rt.lists[i] = append(rt.lists[i], b[i])
		}
	}
}

// scopeEntity is the entity that a resource scope names; the zero one if it holds for all routes ("is Route" does: the
// validator lets no other type pass).
func scopeEntity(scope ast.IsResourceScopeNode) types.EntityUID {
	switch s := scope.(type) {
	case ast.ScopeTypeEq:
		return s.Entity
	case ast.ScopeTypeIn:
		return s.Entity
	case ast.ScopeTypeIsIn:
		return s.Entity
	}
	return types.EntityUID{}
}

// groupsIn adds the groups that a policy names. No others can matter: Cedar makes no entity from a string.
func groupsIn(p *ast.Policy, out map[string]bool) {
	add := func(id types.EntityUID) {
		if id.Type == typeGroup {
			out[string(id.ID)] = true
		}
	}
	switch s := p.Principal.(type) {
	case ast.ScopeTypeEq:
		add(s.Entity)
	case ast.ScopeTypeIn:
		add(s.Entity)
	case ast.ScopeTypeIsIn:
		add(s.Entity)
	}
	for _, c := range p.Conditions {
		ast.Inspect(ast.NewNode(c.Body), func(n ast.IsNode) bool {
			if v, ok := n.(ast.NodeValue); ok {
				if id, ok := v.Value.(types.EntityUID); ok {
					add(id)
				}
			}
			return true
		})
	}
}
