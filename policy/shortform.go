package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// shortForm compiles one item. It collects every problem; the policy is used only if there is none.
type shortForm struct {
	item      Item
	deny      bool
	schedules map[string]*schedule
	policy    *ast.Policy
	problems  []error
}

// compileItem makes one Cedar policy of an item. Each key becomes a clause of its own, so that the one that failed can be
// named. It builds the tree and never text: no value can break out of its place.
func compileItem(it Item, deny bool, id, source string, resource ast.IsResourceScopeNode, schedules map[string]*schedule) (*ast.Policy, error) {
	c := shortForm{item: it, deny: deny, schedules: schedules, policy: ast.Permit()}
	if deny {
		c.policy = ast.Forbid()
	}
	c.policy.Annotate("id", types.String(id)).Annotate("source", types.String(source))
	c.policy.Resource = resource
	c.checkSize()
	c.who()
	c.methods()
	c.paths()
	c.ips()
	c.countries()
	c.device()
	c.hours()
	if it.MFA != 0 {
		if c.allowOnly("mfa") {
			session := ast.Context().Access("session")
			c.whenPresent(session.Has("mfaAge"), session.Access("mfaAge").LessThanOrEqual(ast.ExtensionCall("duration", ast.String(cedarDuration(it.MFA)))))
		}
	}
	if !it.Until.IsZero() {
		until := it.Until.UTC().Format("2006-01-02T15:04:05.000Z")
		c.policy.When(ast.Context().Access("time").Access("now").LessThan(ast.ExtensionCall("datetime", ast.String(until))))
	}
	return c.policy, errors.Join(c.problems...)
}

func (c *shortForm) bad(format string, args ...any) {
	c.problems = append(c.problems, fault.New(fault.Invalid, format, args...))
}

// whenPresent guards a clause on an optional attribute: absent does not satisfy an allow, and does satisfy a deny.
func (c *shortForm) whenPresent(has, clause ast.Node) {
	if c.deny {
		c.policy.When(ast.IfThenElse(has, clause, ast.True()))
		return
	}
	c.policy.When(has.And(clause))
}

func (c *shortForm) allowOnly(key string) bool {
	if c.deny {
		c.bad("%s: a limit, legal in allow only: in a deny it would read either way; write cedar instead", key)
	}
	return !c.deny
}

func (c *shortForm) checkSize() {
	it, size := c.item, 0
	var systems []string
	if it.Device != nil {
		systems = it.Device.OS
	}
	for _, values := range [][]string{systems, it.Groups, it.Users, it.Emails, it.Domains, it.Services, it.Methods, it.Paths, it.IPs, it.Countries, it.CountriesNot, it.Hours} {
		for _, v := range values {
			size += len(v) + 4
			if v == "" || strings.ContainsFunc(v, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '\uFFFD' }) {
				c.bad("%.60q: empty, or not plain text", v)
			}
		}
	}
	if size > maxText {
		c.bad("%d bytes, at most %d", size, maxText)
	}
}

func (c *shortForm) who() {
	it := c.item
	var keys []string
	add := func(key string, there bool) {
		if there {
			keys = append(keys, key)
		}
	}
	add("groups", len(it.Groups) > 0)
	add("users", len(it.Users) > 0)
	add("emails", len(it.Emails) > 0)
	add("domains", len(it.Domains) > 0)
	add("services", len(it.Services) > 0)
	add("authenticated", it.Authenticated)
	add("anyone", it.Anyone)
	switch {
	case len(keys) > 1:
		c.bad("%s: one of them an item: together they would read as either", strings.Join(keys, " and "))
		return
	case len(keys) == 0 && !c.deny:
		c.bad("an allow must say who: groups, users, emails, domains, services, authenticated: true or anyone: true")
		return
	case len(keys) == 0:
		return
	}
	switch keys[0] {
	case "groups":
		c.principalIn(typeGroup, it.Groups)
	case "users":
		c.principalIn(typeUser, it.Users)
	case "services":
		c.principalIn(typeService, it.Services)
	case "emails":
		c.principalAttribute("email", it.Emails, cleanEmail, "an e-mail address: write ana@example.com")
	case "domains":
		c.principalAttribute("domain", it.Domains, cleanDomain, "a domain: write example.com")
	case "authenticated":
		c.policy.When(ast.Principal().Is(typeUser).Or(ast.Principal().Is(typeService)))
	}
}

// principalIn accepts any of several entities: in is reflexive, so it serves users as well as groups.
func (c *shortForm) principalIn(t types.EntityType, ids []string) {
	for _, id := range ids {
		if t == typeService {
			continue
		}
		if err := checkQualified(t, id); err != nil {
			c.problems = append(c.problems, err)
		}
	}
	if len(ids) == 1 {
		c.policy.PrincipalIn(uid(t, ids[0]))
		return
	}
	set := make([]ast.Node, len(ids))
	for i, id := range ids {
		set[i] = ast.EntityUID(t, types.String(id))
	}
	c.policy.When(ast.Principal().In(ast.Set(set...)))
}

func (c *shortForm) principalAttribute(name types.String, values []string, clean func(string) string, want string) {
	cleaned := make([]string, 0, len(values))
	for _, v := range values {
		if clean(v) == "" {
			c.bad("%.60q is not %s", v, want)
			continue
		}
		cleaned = append(cleaned, clean(v))
	}
	c.whenPresent(ast.Principal().Has(name), stringSet(cleaned).Contains(ast.Principal().Access(name)))
}

// otherMethods are registered methods that have no action of their own.
var otherMethods = [...]string{"ACL", "BIND", "CHECKIN", "CHECKOUT", "CONNECT", "COPY", "LABEL", "LINK", "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL",
	"MKREDIRECTREF", "MKWORKSPACE", "MOVE", "ORDERPATCH", "PROPFIND", "PROPPATCH", "QUERY", "REBIND", "REPORT", "SEARCH", "TRACE", "UNBIND", "UNCHECKOUT", "UNLINK",
	"UNLOCK", "UPDATE", "UPDATEREDIRECTREF", "VERSION-CONTROL"} // never written

func (c *shortForm) methods() {
	it := c.item
	if len(it.Methods) == 0 {
		if len(it.Paths) > 0 {
			c.policy.ActionIn(uid(typeAction, "http"))
			return
		}
		c.policy.ActionIn(uid(typeAction, "any"))
		return
	}
	known := []string{"read", "write", "other", "GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"}
	var actions []types.EntityUID
	var others []string
	for _, m := range it.Methods {
		switch {
		case slices.Contains(known, m):
			actions = append(actions, uid(typeAction, m))
		case slices.Contains(otherMethods[:], m):
			others = append(others, m)
		default:
			c.bad("method %.40q is not known%s", m, suggest(m, known))
		}
	}
	if len(others) == 0 {
		c.policy.ActionInSet(actions...)
		return
	}
	c.policy.ActionIn(uid(typeAction, "http"))
	clause := stringSet(others).Contains(ast.Context().Access("http").Access("method"))
	for _, a := range actions {
		clause = ast.Action().In(ast.Value(a)).Or(clause)
	}
	c.policy.When(clause)
}

func (c *shortForm) paths() {
	var under, exact []string
	for _, p := range c.item.Paths {
		path, isExact := strings.CutPrefix(p, "=")
		clean := path
		if !isExact && path != "/" {
			clean = strings.TrimSuffix(path, "/")
		}
		switch {
		case strings.ContainsAny(path, "*?#"):
			c.bad("path %.80q: no globs, queries or fragments: /x/ is /x and all below, =/x is exactly /x", p)
		case !isExact && !strings.HasSuffix(path, "/"):
			c.bad("path %.80q: write %.80q for it and all below, or %.80q for it alone", p, path+"/", "="+path)
		case checkPath(clean) != "":
			c.bad("path %.80q: %s", p, checkPath(clean))
		case isExact:
			exact = append(exact, clean)
		default:
			under = append(under, clean)
		}
	}
	http := ast.Context().Access("http")
	var clauses []ast.Node
	switch len(under) {
	case 0:
	case 1:
		clauses = append(clauses, http.Access("under").Contains(ast.String(under[0])))
	default:
		clauses = append(clauses, http.Access("under").ContainsAny(stringSet(under)))
	}
	switch len(exact) {
	case 0:
	case 1:
		clauses = append(clauses, http.Access("path").Equal(ast.String(exact[0])))
	default:
		clauses = append(clauses, stringSet(exact).Contains(http.Access("path")))
	}
	c.whenAny(clauses)
}

func (c *shortForm) ips() {
	var clauses []ast.Node
	for _, s := range c.item.IPs {
		p, err := parseRange(s)
		if err != nil {
			c.problems = append(c.problems, err)
			continue
		}
		clauses = append(clauses, ast.Context().Access("session").Access("ip").IsInRange(ast.ExtensionCall("ip", ast.String(p.String()))))
	}
	c.whenAny(clauses)
}

// parseRange reads an address or a prefix. An IPv4-mapped one could never match, and one with host bits set says two things.
func parseRange(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if addr, addrErr := netip.ParseAddr(s); addrErr == nil && addr.Zone() == "" {
		p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	switch {
	case err != nil:
		return p, fault.New(fault.Invalid, "%.60q is no address or prefix: write 10.0.0.0/8", s)
	case p.Addr().Is4In6():
		return p, fault.New(fault.Invalid, "%.60q: write the IPv4 address itself; mapped addresses are unmapped", s)
	case p != p.Masked():
		return p, fault.New(fault.Invalid, "%.60q has bits set past its length: did you mean %q?", s, p.Masked())
	}
	return p, nil
}

func (c *shortForm) countries() {
	session := ast.Context().Access("session")
	for _, code := range slices.Concat(c.item.Countries, c.item.CountriesNot) {
		if cleanCountry(code) != code {
			c.bad("country %.20q: write two capital letters (ISO 3166-1)", code)
		}
	}
	if list := c.item.Countries; len(list) > 0 {
		c.whenPresent(session.Has("country"), stringSet(list).Contains(session.Access("country")))
	}
	if list := c.item.CountriesNot; len(list) > 0 {
		c.whenPresent(session.Has("country"), ast.Not(stringSet(list).Contains(session.Access("country"))))
	}
}

func (c *shortForm) device() {
	r := c.item.Device
	if r == nil {
		return
	}
	device := ast.Context().Access("session").Access("device")
	var clauses []ast.Node
	if r.Managed != nil {
		clauses = append(clauses, device.Access("managed").Equal(ast.Boolean(*r.Managed)))
	}
	if r.Encrypted != nil {
		clauses = append(clauses, device.Access("encrypted").Equal(ast.Boolean(*r.Encrypted)))
	}
	if len(r.OS) > 0 {
		clauses = append(clauses, stringSet(r.OS).Contains(device.Access("os")))
	}
	if r.Posture != 0 && c.allowOnly("device.posture") {
		clauses = append(clauses, device.Access("posture").GreaterThanOrEqual(ast.Long(r.Posture)))
	}
	if r.OSVersion != 0 && c.allowOnly("device.os_version") {
		clauses = append(clauses, device.Access("osVersion").GreaterThanOrEqual(ast.Long(r.OSVersion)))
	}
	if r.MaxAge != 0 && c.allowOnly("device.max_age") {
		clauses = append(clauses, device.Access("age").LessThanOrEqual(ast.ExtensionCall("duration", ast.String(cedarDuration(r.MaxAge)))))
	}
	if len(clauses) == 0 {
		c.bad("device: says nothing")
		return
	}
	all := clauses[0]
	for _, clause := range clauses[1:] {
		all = all.And(clause)
	}
	c.whenPresent(ast.Context().Access("session").Has("device"), all)
}

func (c *shortForm) hours() {
	var clauses []ast.Node
	for _, name := range c.item.Hours {
		if _, ok := c.schedules[name]; !ok {
			c.bad("hours: no schedule %.60q%s", name, suggest(name, sortedKeys(c.schedules)))
		}
		clauses = append(clauses, ast.Context().Access("time").Access("active").Contains(ast.String(name)))
	}
	c.whenAny(clauses)
}

func (c *shortForm) whenAny(clauses []ast.Node) {
	if len(clauses) == 0 {
		return
	}
	anyOf := clauses[0]
	for _, clause := range clauses[1:] {
		anyOf = anyOf.Or(clause)
	}
	c.policy.When(anyOf)
}

func stringSet(values []string) ast.Node {
	nodes := make([]ast.Node, len(values))
	for i, v := range values {
		nodes[i] = ast.String(v)
	}
	return ast.Set(nodes...)
}

// checkQualified refuses the id of a user or group that lacks its provider: it could never match.
func checkQualified(t types.EntityType, id string) error {
	provider, rest, ok := strings.Cut(id, "/")
	if ok && provider != "" && rest != "" {
		return nil
	}
	hint := ""
	if t == typeUser && strings.Contains(id, "@") {
		hint = " (for an e-mail address use emails, or principal.email)"
	}
	return fault.New(fault.Invalid, "%s %.80q: must carry its identity provider, as in okta/%s%s", strings.ToLower(string(t)), id, strings.Trim(id, "/"), hint)
}

func cedarDuration[D interface{ Milliseconds() int64 }](d D) string {
	return fmt.Sprintf("%dms", d.Milliseconds())
}
