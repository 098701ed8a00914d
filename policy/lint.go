package policy

import (
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// linter finds what the validator misses: names of things that the mesh does not have, and clauses that cannot mean what they
// say. Groups and users come from identity providers and cannot be known; that they carry a provider can.
type linter struct {
	names map[types.EntityType][]string // what each closed type may be called
	times []string                      // schedules
	words []string                      // of the schema, for suggestions
}

func (l *linter) policy(p *ast.Policy) error {
	var problems []error
	bad := func(format string, args ...any) {
		problems = append(problems, fault.New(fault.Invalid, format, args...))
	}
	check := func(id types.EntityUID) {
		if err := l.entity(id); err != nil {
			problems = append(problems, err)
		}
	}
	for _, scope := range []ast.IsScopeNode{p.Principal, p.Action, p.Resource} {
		switch s := scope.(type) {
		case ast.ScopeTypeEq:
			check(s.Entity)
		case ast.ScopeTypeIn:
			check(s.Entity)
		case ast.ScopeTypeIsIn:
			check(s.Entity)
		}
	}
	for _, c := range p.Conditions {
		constant, nodes := true, 0
		ast.Inspect(ast.NewNode(c.Body), func(n ast.IsNode) bool {
			nodes++
			switch v := n.(type) {
			case ast.NodeTypeVariable:
				constant = false
			case ast.NodeValue:
				if id, ok := v.Value.(types.EntityUID); ok {
					check(id)
				}
			case ast.NodeTypeLike:
				if !hasWildcard(v.Value) {
					bad("like %s has no *: write == instead", v.Value.MarshalCedar())
				}
			case ast.NodeTypeContains:
				access, isAccess := v.Left.(ast.NodeTypeAccess)
				value, isValue := v.Right.(ast.NodeValue)
				if isAccess && isValue && access.Value == "active" {
					if name, ok := value.Value.(types.String); ok && !slices.Contains(l.times, string(name)) {
						bad("no schedule %.60q%s", string(name), suggest(string(name), l.times))
					}
				}
			}
			return nodes <= maxNodes
		})
		if nodes > maxNodes {
			bad("a condition of more than %d terms", maxNodes)
		}
		if constant {
			bad("a condition that depends on nothing in the request")
		}
	}
	return errors.Join(problems...)
}

func (l *linter) entity(id types.EntityUID) error {
	if id.Type == typeUser || id.Type == typeGroup {
		return checkQualified(id.Type, string(id.ID))
	}
	known, closed := l.names[id.Type]
	if closed && !slices.Contains(known, string(id.ID)) {
		return fault.New(fault.Invalid, "no %s %.80q%s", strings.ToLower(string(id.Type)), string(id.ID), suggest(string(id.ID), known))
	}
	return nil
}

// hasWildcard reports whether a pattern holds an unescaped *.
func hasWildcard(p types.Pattern) bool {
	text := p.MarshalCedar()
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '*':
			return true
		}
	}
	return false
}

// schemaWord finds the words of the schema; backticked, those that the validator complains about; forAction, where.
var (
	schemaWord = regexp.MustCompile(`[A-Za-z]+`)
	backticked = regexp.MustCompile("`([^`]+)`")
	forAction  = regexp.MustCompile(` for Action::"(\w+)"`)
)

// explain merges what the validator says once per action, sorts it, and adds suggestions.
func (l *linter) explain(problems []error) []error {
	actions := map[string][]string{}
	for _, e := range problems {
		action := ""
		if m := forAction.FindStringSubmatch(e.Error()); m != nil {
			action = m[1]
		}
		message := forAction.ReplaceAllString(e.Error(), "")
		actions[message] = append(actions[message], action)
	}
	var out []error
	for _, message := range sortedKeys(actions) {
		text := message
		if names := sorted(actions[message]); names[0] != "" {
			text += " (for " + strings.Join(names, ", ") + ")"
		}
		out = append(out, fault.New(fault.Invalid, "%s%s", text, l.hint(message)))
	}
	return out
}

// hint suggests a word of the schema for the first that the message names and the schema does not have.
func (l *linter) hint(message string) string {
	for _, m := range backticked.FindAllStringSubmatch(message, -1) {
		for _, word := range schemaWord.FindAllString(m[1], -1) {
			if slices.Contains(l.words, word) {
				continue
			}
			if hint := suggest(word, l.words); strings.Contains(hint, "did you mean") {
				return hint
			}
		}
	}
	return ""
}
