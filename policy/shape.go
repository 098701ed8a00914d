package policy

import (
	"fmt"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// shape writes down all of a policy that its validity can depend on, and leaves out the strings and ids that differ from item
// to item. It serves the short form only, whose literals compileItem has checked: of the items of one shape, the validator
// sees one.
func shape(p *ast.Policy) string {
	var b strings.Builder
	entity := func(id types.EntityUID) {
		b.WriteString(string(id.Type))
		if id.Type == typeAction {
			b.WriteString(string(id.ID))
		}
		b.WriteByte(' ')
	}
	for _, scope := range []ast.IsScopeNode{p.Principal, p.Action, p.Resource} {
		fmt.Fprintf(&b, "%T ", scope)
		switch s := scope.(type) {
		case ast.ScopeTypeEq:
			entity(s.Entity)
		case ast.ScopeTypeIn:
			entity(s.Entity)
		case ast.ScopeTypeInSet:
			for _, id := range s.Entities {
				entity(id)
			}
		}
	}
	for _, c := range p.Conditions {
		fmt.Fprintf(&b, "when %v ", c.Condition)
		ast.Inspect(ast.NewNode(c.Body), func(n ast.IsNode) bool {
			switch v := n.(type) {
			case ast.NodeTypeVariable:
				b.WriteString(string(v.Name))
			case ast.NodeTypeAccess:
				b.WriteByte('.')
				b.WriteString(string(v.Value))
			case ast.NodeTypeHas:
				b.WriteByte('?')
				b.WriteString(string(v.Value))
			case ast.NodeTypeSet:
				fmt.Fprintf(&b, "[%d", len(v.Elements))
			case ast.NodeTypeExtensionCall:
				fmt.Fprintf(&b, "%s(%d", v.Name, len(v.Args))
			case ast.NodeTypeIs:
				fmt.Fprintf(&b, "is %s", v.EntityType)
			case ast.NodeValue:
				switch value := v.Value.(type) {
				case types.EntityUID:
					entity(value)
				case types.Boolean:
					b.WriteString(value.String())
				default:
					fmt.Fprintf(&b, "%T", value)
				}
			default:
				fmt.Fprintf(&b, "%T", n)
			}
			b.WriteByte(' ')
			return true
		})
	}
	return b.String()
}
