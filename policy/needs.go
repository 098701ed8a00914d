package policy

import (
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// needs is the set of attributes that a policy may read: only these are built for a request.
type needs uint32

const (
	needMethod needs = 1 << iota
	needHost
	needPath
	needUnder
	needIP
	needRegion
	needCountry
	needMTLS
	needAMR
	needAuthAge
	needMFAAge
	needKeyringAge
	needDirectoryAge
	needDevice
	needNow
	needActive
	needPort
	needSNI
	needEmail
	needDomain
	needSuspended
	needGroups // the caller's, by an "in" among the conditions

	needHTTP    = needMethod | needHost | needPath | needUnder
	needSession = needIP | needRegion | needCountry | needMTLS | needAMR | needAuthAge | needMFAAge | needKeyringAge | needDirectoryAge | needDevice
	needTime    = needNow | needActive
	needContext = needHTTP | needSession | needTime | needPort | needSNI
	needUser    = needEmail | needDomain | needSuspended
	needAll     = needContext | needUser | needGroups
)

// attributeNeeds says what reading an attribute of this name may read, of whatever it is an attribute: a name that occurs in
// several entities only builds more than needed. Names that are not listed belong to entities that are always there.
func attributeNeeds(name types.String) needs {
	switch name {
	case "http":
		return needHTTP
	case "session":
		return needSession
	case "time":
		return needTime
	case "method":
		return needMethod
	case "host":
		return needHost
	case "path":
		return needPath
	case "under":
		return needUnder
	case "ip":
		return needIP
	case "region":
		return needRegion
	case "country":
		return needCountry
	case "mtls":
		return needMTLS
	case "amr":
		return needAMR
	case "authAge":
		return needAuthAge
	case "mfaAge":
		return needMFAAge
	case "keyringAge":
		return needKeyringAge
	case "directoryAge":
		return needDirectoryAge
	case "device":
		return needDevice
	case "now":
		return needNow
	case "active":
		return needActive
	case "port":
		return needPort
	case "sni":
		return needSNI
	case "email":
		return needEmail
	case "domain":
		return needDomain
	case "suspended":
		return needSuspended
	}
	return 0
}

// needsOf over-approximates what a policy reads. A record that is used as a whole (compared, chosen by an if, asked for by
// has) needs all that is in it; context.session.ip alone needs only the ip.
func needsOf(p *ast.Policy) needs {
	var n needs
	var visit func(ast.IsNode) bool
	visit = func(v ast.IsNode) bool {
		var attribute ast.StrOpNode
		switch v := v.(type) {
		case ast.NodeTypeVariable:
			if v.Name == "context" {
				n |= needContext
			}
			return true
		case ast.NodeTypeAccess:
			attribute = v.StrOpNode
		case ast.NodeTypeHas:
			attribute = v.StrOpNode
		case ast.NodeTypeIn, ast.NodeTypeIsIn:
			n |= needGroups
			return true
		default:
			return true
		}
		n |= attributeNeeds(attribute.Value)
		// Walk down the chain: its inner records are needed for this attribute only.
		for {
			inner, ok := attribute.Arg.(ast.NodeTypeAccess)
			if !ok {
				break
			}
			if inner.Value == "device" {
				n |= needDevice
			}
			attribute = inner.StrOpNode
		}
		if _, ok := attribute.Arg.(ast.NodeTypeVariable); !ok {
			ast.Inspect(ast.NewNode(attribute.Arg), visit)
		}
		return false
	}
	for _, c := range p.Conditions {
		ast.Inspect(ast.NewNode(c.Body), visit)
	}
	return n
}
