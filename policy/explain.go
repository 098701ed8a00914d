package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go"
	publicast "github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/eval"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// Explanation says why a request got its answer.
type Explanation struct {
	Decision Decision
	Checks   []Check // every policy of the route: what applied first, then permits, the nearest first
}

// Check is one policy held against a request.
type Check struct {
	Policy  Policy
	Applies bool
	Failed  []string // what kept it from applying: "principal", "action", or the text of a clause; "error: …" in front if one erred
}

// Explain decides a request and holds every policy of its route against it, clause by clause. It is for people: it costs a
// hundred times what [Set.Decide] does. A refused request has no checks. The error is about the engine, and Internal.
func (s *Set) Explain(r *Request) (out Explanation, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.New(fault.Internal, "explain decision: %v", p)
		}
	}()
	out.Decision = s.Decide(r)
	rt, why := s.admit(r)
	if why != "" {
		return out, nil
	}
	tmp := newScratch()
	principal := anyone
	if !r.Anonymous {
		principal = uid(typeUser, r.Principal.Subject)
		for _, g := range r.Principal.Groups {
			tmp.groups = append(tmp.groups, uid(typeGroup, g))
		}
	}
	action := actionNumber(r.Method)
	env := eval.Env{
		Entities:  &entities{set: s, request: r, needs: needAll, principal: principal, route: &rt.entity, groups: tmp.groups},
		Principal: principal, Action: s.actions[actionNames[action]].UID, Resource: rt.entity.UID,
		Context: s.buildContext(r, needAll, tmp),
	}
	for _, p := range s.RoutePolicies(r.Route) {
		scope := whoOf(s.byID[p.ID].tree.Principal) // who without anyOf, which is a clause here
		who := scope.matches(principal, tmp.groups)
		out.Checks = append(out.Checks, check(p, s.byID[p.ID], env, [2]bool{who, s.byID[p.ID].actions[action]}))
	}
	rank := func(c Check) int {
		switch {
		case c.Applies:
			return -1
		case c.Policy.Forbid:
			return 1 << 20
		}
		return len(c.Failed)
	}
	slices.SortStableFunc(out.Checks, func(a, b Check) int { return cmp.Compare(rank(a), rank(b)) })
	return out, nil
}

// check holds one policy against a request; scope says whether principal and action match.
func check(p Policy, r *rule, env eval.Env, scope [2]bool) Check {
	c := Check{Policy: p}
	if !scope[0] {
		c.Failed = append(c.Failed, "principal")
	}
	if !scope[1] {
		c.Failed = append(c.Failed, "action")
		return c // its clauses may read what this action does not have
	}
	for _, condition := range r.tree.Conditions {
		v, err := eval.Eval(condition.Body, env)
		switch {
		case err != nil:
			c.Failed = append(c.Failed, fmt.Sprintf("error: %v in %s", err, clause(condition)))
		case v != types.Boolean(condition.Condition == ast.ConditionWhen):
			c.Failed = append(c.Failed, clause(condition))
		}
	}
	c.Applies = len(c.Failed) == 0
	return c
}

// clause is the text of one when or unless: that of a policy with nothing else, without what comes before.
func clause(c ast.ConditionType) string {
	p := ast.Permit()
	p.Conditions = []ast.ConditionType{c}
	text := string(cedar.NewPolicyFromAST((*publicast.Policy)(p)).MarshalCedar())
	keyword := "when {"
	if c.Condition == ast.ConditionUnless {
		keyword = "unless {"
	}
	return strings.TrimSuffix(text[max(0, strings.Index(text, keyword)):], ";")
}
