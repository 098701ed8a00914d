package policy

import (
	"fmt"
	"iter"
	"slices"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
)

// anyone is the principal of a request without a session.
var anyone = types.NewEntityUID(typeAnonymous, "anyone") // never written

// Decide answers a request. It is pure, does no I/O, never panics, and is safe for concurrent use. A request that is
// incomplete (unknown route, no subject and not anonymous, no time, no source address, a path that is not canonical …) is
// refused without being evaluated; Decision.Reason then begins with "refused".
func (s *Set) Decide(r *Request) (d Decision) {
	defer func() {
		if p := recover(); p != nil {
			d = Decision{Reason: "policy error", Errors: []string{fmt.Sprintf("engine: %v", p)}}
		}
	}()
	rt, why := s.admit(r)
	if why != "" {
		return Decision{Reason: "refused: " + why}
	}
	return s.evaluate(r, rt)
}

// admit finds the route, or says why the request cannot be evaluated.
func (s *Set) admit(r *Request) (*route, string) {
	if s == nil || r == nil {
		return nil, "no policy or no request"
	}
	rt, ok := s.routes[r.Route]
	switch {
	case !ok:
		return nil, "unknown route"
	case r.Suspended:
		return nil, "suspended"
	case r.Anonymous && (r.Principal.Subject != "" || len(r.Principal.Groups) > 0 || r.Principal.Email != ""):
		return nil, "both anonymous and known"
	case !r.Anonymous && r.Principal.Validate() != nil:
		return nil, "no valid subject"
	case r.Now.IsZero():
		return nil, "no time"
	case !r.SourceIP.IsValid():
		return nil, "no source address"
	case r.Region == "" || s.regions != nil && !s.regions[r.Region]:
		return nil, "unknown region"
	case (r.Method != "") == (r.TCPPort != 0):
		return nil, "neither a method nor a port, or both"
	case r.Method == "" && (r.TCPPort < 0 || r.TCPPort > 65535):
		return nil, "no valid port"
	case r.Method != "" && checkPath(r.Path) != "":
		return nil, "path: " + checkPath(r.Path)
	case r.Method != "" && r.Host == "":
		return nil, "no host"
	}
	return rt, ""
}

// candidates are the policies whose scope a request matches, as cedar.PolicyIterator wants them.
type candidates []*rule

// All implements cedar.PolicyIterator.
func (c *candidates) All() iter.Seq2[cedar.PolicyID, *cedar.Policy] {
	return func(yield func(cedar.PolicyID, *cedar.Policy) bool) {
		for _, r := range *c {
			if !yield(r.id, r.cedar) {
				return
			}
		}
	}
}

func (s *Set) evaluate(r *Request, rt *route) Decision {
	action := actionNumber(r.Method)
	if len(rt.lists[action]) == 0 {
		return Decision{Reason: defaultDeny}
	}
	tmp := s.scratch.Get().(*scratch)
	defer tmp.release(&s.scratch)
	principal := anyone
	if !r.Anonymous {
		principal = uid(typeUser, r.Principal.Subject)
		for _, g := range r.Principal.Groups {
			if s.groups[g] {
				tmp.groups = append(tmp.groups, uid(typeGroup, g))
			}
		}
	}
	var n needs
	for _, list := range rt.lists[action] {
		for _, rule := range list {
			if rule.who.matches(principal, tmp.groups) {
				tmp.candidates = append(tmp.candidates, rule)
				n |= rule.needs
			}
		}
	}
	if len(tmp.candidates) == 0 {
		return Decision{Reason: defaultDeny}
	}
	tmp.entities = entities{set: s, request: r, needs: n, principal: principal, route: &rt.entity, groups: tmp.groups}
	allowed, diag := cedar.Authorize(&tmp.candidates, &tmp.entities, cedar.Request{
		Principal: principal,
		Action:    s.actions[actionNames[action]].UID,
		Resource:  rt.entity.UID,
		Context:   s.buildContext(r, n, tmp),
	})
	return s.conclude(allowed, diag)
}

const defaultDeny = "default deny"

// conclude turns the engine's answer into ours.
func (s *Set) conclude(allowed cedar.Decision, diag cedar.Diagnostic) Decision {
	d := Decision{Allow: allowed == cedar.Allow}
	for _, reason := range diag.Reasons {
		d.Policies = append(d.Policies, string(reason.PolicyID))
	}
	failed := ""
	for _, e := range diag.Errors {
		id := string(e.PolicyID)
		d.Errors = append(d.Errors, id+": "+e.Message)
		if known := s.byID[id]; known != nil && !known.forbid {
			continue
		}
		// Cedar skips what errs. A forbid that was skipped would let through what it was written to stop.
		if d.Allow {
			d.Allow, d.Policies = false, nil
		}
		d.Policies = append(d.Policies, id)
		if failed == "" || id < failed {
			failed = id
		}
	}
	slices.Sort(d.Policies)
	slices.Sort(d.Errors)
	switch {
	case failed != "":
		d.Reason = "policy error in " + failed
	case d.Allow:
		d.Reason = "allowed by " + d.Policies[0]
	case len(d.Policies) > 0:
		d.Reason = "forbidden by " + d.Policies[0]
	default:
		d.Reason = defaultDeny
	}
	return d
}
