package policy

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/schema/resolved"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// Set is one immutable, compiled generation of policies. Its methods are safe for concurrent use.
type Set struct {
	digest    [32]byte
	routes    map[string]*route
	zones     map[string]types.Entity
	actions   map[string]types.Entity
	regions   map[string]bool // nil: not checked
	groups    map[string]bool // that policies name
	schedules []*schedule
	byID      map[string]*rule
	scratch   sync.Pool // of *scratch
}

// Digest is the content hash of the source: equal for equal content, whatever its order and wherever it was read.
func (s *Set) Digest() [32]byte { return s.digest }

// Compile parses, validates and indexes a source. All problems come at once, each with its place; the kind is Invalid.
// It is the gate at write time and again at receipt: nothing that fails it is ever evaluated.
func Compile(src Source) (set *Set, err error) {
	defer func() { // the last guard against a defect of the engine; stack overflow is prevented by the caps
		if p := recover(); p != nil {
			set, err = nil, fault.New(fault.Invalid, "compile policies: %v", p)
		}
	}()
	c := compiler{
		src: src,
		set: &Set{
			routes: map[string]*route{}, zones: map[string]types.Entity{}, groups: map[string]bool{}, byID: map[string]*rule{},
			scratch: sync.Pool{New: func() any { return newScratch() }},
		},
		schedules: map[string]*schedule{},
		places:    map[string]string{},
		scopes:    map[types.EntityUID]*bucket{},
		shapes:    map[string]bool{},
	}
	if c.names(); len(c.problems) > 0 { // what follows would only repeat them
		return nil, c.err()
	}
	if err := c.engine(); err != nil {
		return nil, err
	}
	for _, r := range src.Routes {
		scope := ast.ScopeTypeEq{Entity: uid(typeRoute, r.Name)}
		c.items("route "+r.Name, r.Name, r.File, r.Line, scope, r.Allow, r.Deny)
	}
	for _, z := range src.Zones {
		scope := ast.ScopeTypeIn{Entity: uid(typeZone, z.Name)}
		c.items("zone "+z.Name, "zone:"+z.Name, z.File, z.Line, scope, z.Allow, z.Deny)
	}
	for _, p := range src.Policies {
		c.text(p)
	}
	if len(c.problems) > 0 {
		return nil, c.err()
	}
	c.index()
	if c.set.digest, err = digest(src); err != nil {
		return nil, err
	}
	return c.set, nil
}

// compiler holds what is needed while a Set is made.
type compiler struct {
	src       Source
	set       *Set
	schedules map[string]*schedule
	validator *validate.Validator
	linter    linter
	places    map[string]string           // id → where it was defined
	scopes    map[types.EntityUID]*bucket // the zero entity: all routes
	shapes    map[string]bool             // of items that the validator has accepted
	problems  []error
}

// maxProblems bounds what one answer names.
const maxProblems = 100

func (c *compiler) err() error {
	if more := len(c.problems) - maxProblems; more > 0 {
		c.problems = append(c.problems[:maxProblems], fault.New(fault.Invalid, "and %d more", more))
	}
	return fault.Wrap(fault.Invalid, errors.Join(c.problems...))
}

func (c *compiler) bad(place, format string, args ...any) {
	c.problems = append(c.problems, fault.New(fault.Invalid, "%s: %s", place, fmt.Sprintf(format, args...)))
}

// engine prepares schema, validator, linter and the action entities.
func (c *compiler) engine() error {
	sch, err := resolveSchema(sorted(c.src.Regions))
	if err != nil {
		return err
	}
	c.validator = validate.New(sch)
	c.set.actions = actionEntities(sch)
	c.linter = linter{
		names: map[types.EntityType][]string{
			typeRoute: sortedKeys(c.set.routes), typeZone: sortedKeys(c.set.zones), typeAnonymous: {"anyone"},
		},
		times: sortedKeys(c.schedules),
		words: sorted(schemaWord.FindAllString(schemaText, -1)),
	}
	if len(c.src.Regions) > 0 {
		c.linter.names[typeRegion] = sorted(c.src.Regions)
	}
	return nil
}

// actionEntities flattens the actions' parents, so that "in" finds each at its first step.
func actionEntities(sch *resolved.Schema) map[string]types.Entity {
	out := map[string]types.Entity{}
	for id := range sch.Actions {
		var parents []types.EntityUID
		todo := []types.EntityUID{id}
		for len(todo) > 0 {
			for p := range sch.Actions[todo[0]].Entity.Parents.All() {
				parents = append(parents, p)
				todo = append(todo, p)
			}
			todo = todo[1:]
		}
		out[string(id.ID)] = types.Entity{UID: id, Parents: types.NewEntityUIDSet(parents...)}
	}
	return out
}

// items compiles a short form: ids are NAME#0, NAME#1 … for allow and NAME!0 … for deny.
func (c *compiler) items(what, id, file string, line int, scope ast.IsResourceScopeNode, allow, deny []Item) {
	for _, part := range []struct {
		key, mark string
		items     []Item
	}{{"allow", "#", allow}, {"deny", "!", deny}} {
		for i, it := range part.items {
			at := it.Line
			if at == 0 {
				at = line
			}
			place := location(file, at, 0)
			label := fmt.Sprintf("%s: %s: %s[%d]", place, what, part.key, i)
			itemID := fmt.Sprintf("%s%s%d", id, part.mark, i)
			p, err := compileItem(it, part.key == "deny", itemID, place, scope, c.schedules)
			if err != nil {
				for _, e := range flatten(err) {
					c.bad(label, "%v", e)
				}
				continue
			}
			c.rule(itemID, place, label, p, shape(p))
		}
	}
}

// text compiles one free text.
func (c *compiler) text(in CedarPolicy) {
	what := fmt.Sprintf("%s: policy %s", location(in.File, in.Line, 0), in.Name)
	if err := checkCaps(in.Cedar); err != nil {
		c.bad(what, "%v", err)
		return
	}
	list, err := cedar.NewPolicyListFromBytes(in.File, []byte(in.Cedar))
	if err != nil {
		c.bad(what, "%v", err)
		return
	}
	if len(list) == 0 {
		c.bad(what, "holds no policy")
	}
	for i, p := range list {
		tree := (*ast.Policy)(p.AST())
		pos := p.Position()
		place := location(in.File, max(in.Line, 1)+pos.Line-1, pos.Column)
		label := fmt.Sprintf("%s: policy %s", place, in.Name)
		id := string(p.Annotations()["id"])
		if err := checkName(id); err != nil {
			c.bad(label, `policy %d of the text needs an id, as in @id("no-contractors-at-night"): %v`, i+1, err)
			continue
		}
		c.rule(id, place, label, tree, "")
	}
}

// rule validates one policy and files it under its resource scope. A policy of a shape that was accepted before is not
// validated again; free text has none.
func (c *compiler) rule(id, place, label string, tree *ast.Policy, shape string) {
	if first, taken := c.places[id]; taken {
		c.bad(label, "id %q is taken: %s", id, first)
		return
	}
	c.places[id] = place
	problems := flatten(c.linter.policy(tree))
	if len(problems) == 0 && !c.shapes[shape] { // the linter bounds what the validator gets
		problems = c.linter.explain(flatten(c.validate(tree)))
	}
	if len(problems) > 0 {
		for _, e := range problems {
			c.bad(label, "%s: %v", id, e)
		}
		return
	}
	if shape != "" {
		c.shapes[shape] = true
	}
	r := newRule(id, place, tree, c.set.actions)
	c.set.byID[id] = r
	groupsIn(tree, c.set.groups)
	scope := scopeEntity(tree.Resource)
	if c.scopes[scope] == nil {
		c.scopes[scope] = &bucket{}
	}
	c.scopes[scope].add(r)
}

// validate keeps a defect of the validator from taking the process down: what it cannot judge is refused.
func (c *compiler) validate(p *ast.Policy) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("cannot be validated: %v", r)
		}
	}()
	return c.validator.Policy("", p)
}

// index hands each route the buckets of itself, its ancestors and everyone.
func (c *compiler) index() {
	for _, b := range c.scopes {
		b.sort()
	}
	for _, r := range c.set.routes {
		r.take(c.scopes[r.entity.UID])
		for zone := range r.entity.Parents.All() {
			r.take(c.scopes[zone])
		}
		r.take(c.scopes[types.EntityUID{}])
	}
}

// location writes file:line:column, as far as known.
func location(file string, line, column int) string {
	if file == "" {
		file = "(no file)"
	}
	switch {
	case line <= 0:
		return file
	case column <= 0:
		return fmt.Sprintf("%s:%d", file, line)
	}
	return fmt.Sprintf("%s:%d:%d", file, line, column)
}

// flatten lists the problems that errors.Join has joined.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	var joined interface {
		error
		Unwrap() []error
	}
	if errors.As(err, &joined) {
		var out []error
		for _, e := range joined.Unwrap() {
			out = append(out, flatten(e)...)
		}
		return out
	}
	return []error{err}
}
