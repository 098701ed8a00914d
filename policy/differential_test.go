package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/iapmesh/iapmesh/policy"
)

// The index, the dropped scopes, the skipped groups and the partial context must not change any answer: this compares Decide
// with Cedar itself, given every policy as written and everything that POLICY.md says about the request.

// conditions cover each attribute, and the ways to get at one: chains, has, whole records, records chosen by an if.
var conditions = []string{
	`context.http.method == "PROPFIND"`, `context.http.host like "*.example.com"`, `context.http.path == "/api/x"`, `context.http.under.contains("/api")`,
	`context.session.ip.isInRange(ip("10.0.0.0/8"))`, `context.session.region == Region::"eu-west"`, `context.session has country && context.session.country == "FR"`,
	`!(context.session has country)`, `context.session.mtls`, `context.session.amr.contains("mfa")`, `context.session.authAge <= duration("1h")`,
	`context.session has mfaAge && context.session.mfaAge < duration("1h")`, `context.session.keyringAge > duration("10m")`, `context.session.directoryAge > duration("10m")`,
	`context.session has device && context.session.device.managed`, `context.session has device && context.session.device == {managed: true, encrypted: true, posture: 80, os: "linux", osVersion: 6, age: duration("1m")}`,
	`context.time.now < datetime("2026-11-25")`, `context.time.active.contains("office")`, `context.time == {now: context.time.now, active: ["office"]}`,
	`(if principal is User then context.session else context.session) has country`, `context.session == context.session && (if context.session.mtls then context.time else context.time).active.isEmpty()`,
	`principal has email && principal.email like "ana@*"`, `principal has domain && principal.domain == "example.com"`, `principal is User && principal.suspended`,
	`principal is User && {p: principal}.p has domain`, `principal in Group::"okta/all"`, `[Group::"okta/eng", Group::"okta/none"].contains(Group::"okta/eng") && principal in [Group::"okta/eng"]`,
	`principal in [Group::"okta/ops", Group::"okta/eng"]`, `principal in [User::"okta/ana", User::"okta/bob"]`, `principal is User in Group::"okta/all"`,
	`resource.sensitivity > 2`, `resource.regions.contains(context.session.region)`, `resource in Zone::"all"`, `resource.hasTag("team") && resource.getTag("team") == "docs"`,
	`resource.sensitivity * 9223372036854775807 > 0`, `action in Action::"read"`, `resource == Route::"wiki"`, `Route::"wiki" in Zone::"internal" && principal is User`,
}

func policyText(t *rapid.T, id string) string {
	pick := func(name string, from ...string) string { return rapid.SampledFrom(from).Draw(t, name) }
	effect := pick("effect", "permit", "permit", "forbid")
	principal := pick("principal", "principal", "principal is User", `principal in Group::"okta/eng"`, `principal is User in Group::"okta/ops"`, `principal == User::"okta/ana"`, `principal == Anonymous::"anyone"`)
	action := pick("action", `action in Action::"http"`, `action == Action::"GET"`, `action in [Action::"write", Action::"HEAD"]`, `action in Action::"read"`)
	resource := pick("resource", "resource", "resource is Route", `resource == Route::"wiki"`, `resource in Zone::"all"`, `resource is Route in Zone::"internal"`, `resource in Route::"other"`)
	when := pick("when", "when", "unless")
	return fmt.Sprintf("@id(%q) %s (%s, %s, %s) %s { %s };", id, effect, principal, action, resource, when, pick("condition", conditions...))
}

// reference is Cedar's own answer, with ours rules for errors on top.
func reference(all *cedar.PolicySet, r *policy.Request) (allow bool, ids, failed []string) {
	entities := cedar.EntityMap{}
	add := func(id types.EntityUID, attributes, tags types.RecordMap, parents ...types.EntityUID) types.EntityUID {
		entities[id] = types.Entity{UID: id, Parents: types.NewEntityUIDSet(parents...), Attributes: types.NewRecord(attributes), Tags: types.NewRecord(tags)}
		return id
	}
	uid := func(t, id string) types.EntityUID { return cedar.NewEntityUID(types.EntityType(t), types.String(id)) }
	zoneAll := add(uid("Zone", "all"), nil, nil)
	zone := add(uid("Zone", "internal"), nil, nil, zoneAll)
	add(uid("Route", "wiki"), types.RecordMap{"sensitivity": types.Long(3), "regions": types.NewSet(uid("Region", "eu-west"))}, types.RecordMap{"team": types.String("docs")}, zone)
	add(uid("Route", "other"), types.RecordMap{"sensitivity": types.Long(0), "regions": types.NewSet()}, nil)
	http := add(uid("Action", "http"), nil, nil, add(uid("Action", "any"), nil, nil))
	read, write := add(uid("Action", "read"), nil, nil, http), add(uid("Action", "write"), nil, nil, http)
	for _, a := range []string{"GET", "HEAD", "OPTIONS"} {
		add(uid("Action", a), nil, nil, read)
	}
	for _, a := range []string{"POST", "PUT", "PATCH", "DELETE", "other"} {
		add(uid("Action", a), nil, nil, write)
	}
	principal := uid("Anonymous", "anyone")
	if !r.Anonymous {
		attributes := types.RecordMap{"suspended": types.Boolean(r.Suspended)}
		if local, domain, ok := strings.Cut(strings.ToLower(r.Principal.Email), "@"); ok && !strings.Contains(domain, "@") {
			attributes["email"], attributes["domain"] = types.String(local+"@"+domain), types.String(domain)
		}
		var groups []types.EntityUID
		for _, g := range r.Principal.Groups {
			groups = append(groups, add(uid("Group", g), nil, nil))
		}
		principal = add(uid("User", r.Principal.Subject), attributes, nil, groups...)
	}
	var under []types.Value
	for i := range r.Path {
		if r.Path[i] == '/' {
			under = append(under, types.String(r.Path[:max(i, 1)]))
		}
	}
	under = append(under, types.String(r.Path))
	var amr, active []types.Value
	for _, a := range r.Principal.AMR {
		amr = append(amr, types.String(a))
	}
	if paris := r.Now.Add(time.Hour); paris.Weekday() >= time.Monday && paris.Weekday() <= time.Friday && paris.Hour() >= 9 && paris.Hour() < 18 {
		active = append(active, types.String("office"))
	}
	authAge := types.NewDurationFromMillis(1<<63 - 1)
	if !r.Anonymous {
		authAge = types.NewDuration(r.Now.Sub(r.Principal.AuthTime))
	}
	ip := r.SourceIP.Unmap()
	session := types.RecordMap{
		"ip": types.IPAddr(netip.PrefixFrom(ip, ip.BitLen())), "region": uid("Region", r.Region), "mtls": types.Boolean(r.MTLS), "amr": types.NewSet(amr...),
		"authAge": authAge, "keyringAge": types.NewDuration(r.KeyringAge), "directoryAge": types.NewDuration(r.DirectoryAge),
	}
	if r.Country != "" {
		session["country"] = types.String(r.Country)
	}
	if slices.Contains(r.Principal.AMR, "mfa") {
		session["mfaAge"] = authAge
	}
	if d := r.Device; d != nil {
		session["device"] = types.NewRecord(types.RecordMap{"managed": types.Boolean(d.Managed), "encrypted": types.Boolean(d.Encrypted), "posture": types.Long(d.Posture),
			"os": types.String(d.OS), "osVersion": types.Long(d.OSVersion), "age": types.NewDuration(d.Age)})
	}
	action := r.Method
	if _, ok := entities[uid("Action", action)]; !ok {
		action = "other"
	}
	decision, diag := cedar.Authorize(all, entities, cedar.Request{Principal: principal, Action: uid("Action", action), Resource: uid("Route", r.Route), Context: types.NewRecord(types.RecordMap{
		"http":    types.NewRecord(types.RecordMap{"method": types.String(r.Method), "host": types.String(r.Host), "path": types.String(r.Path), "under": types.NewSet(under...)}),
		"session": types.NewRecord(session),
		"time":    types.NewRecord(types.RecordMap{"now": types.NewDatetime(r.Now), "active": types.NewSet(active...)}),
	})})
	allow = decision == cedar.Allow
	for _, reason := range diag.Reasons {
		ids = append(ids, string(reason.PolicyID))
	}
	for _, e := range diag.Errors {
		if all.Get(e.PolicyID).Effect() == cedar.Permit {
			continue
		}
		failed = append(failed, string(e.PolicyID))
		if allow {
			allow, ids = false, nil
		}
	}
	ids = append(ids, failed...)
	slices.Sort(ids)
	return allow, ids, failed
}

func TestDecideAgreesWithCedar(t *testing.T) {
	t.Parallel()
	base := wiki(t, `[]`, `[]`, "")
	rapid.Check(t, func(t *rapid.T) {
		var text strings.Builder
		for i := range rapid.IntRange(1, 8).Draw(t, "policies") {
			text.WriteString(policyText(t, fmt.Sprintf("p%d", i)) + "\n")
		}
		src := base
		src.Policies = []policy.CedarPolicy{{Name: "text", Cedar: text.String()}}
		s, err := policy.Compile(src)
		if err != nil { // such as a condition that no principal of the scope can meet
			t.Skip(err)
		}
		list, err := cedar.NewPolicyListFromBytes("", []byte(text.String()))
		if err != nil {
			t.Fatal(err)
		}
		all := cedar.NewPolicySet()
		for _, p := range list {
			all.Add(cedar.PolicyID(p.Annotations()["id"]), p)
		}
		for range 4 {
			r := anaReads()
			r.Route = rapid.SampledFrom([]string{"wiki", "other"}).Draw(t, "route")
			r.Method = rapid.SampledFrom([]string{"GET", "HEAD", "POST", "PROPFIND"}).Draw(t, "method")
			r.Path = rapid.SampledFrom([]string{"/", "/api", "/api/x", "/apis"}).Draw(t, "path")
			r.Country = rapid.SampledFrom([]string{"", "FR", "DE"}).Draw(t, "country")
			r.SourceIP = netip.MustParseAddr(rapid.SampledFrom([]string{"10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1"}).Draw(t, "ip"))
			r.Region = rapid.SampledFrom([]string{"eu-west", "us-east"}).Draw(t, "region")
			r.MTLS = rapid.Bool().Draw(t, "mtls")
			r.Now = tuesday.Add(time.Duration(rapid.IntRange(-30, 30).Draw(t, "hours")) * time.Hour)
			r.Principal.AuthTime = r.Now.Add(-time.Duration(rapid.IntRange(0, 120).Draw(t, "auth")) * time.Minute)
			r.KeyringAge = time.Duration(rapid.IntRange(0, 20).Draw(t, "keyring")) * time.Minute
			if rapid.Bool().Draw(t, "no device") {
				r.Device = nil
			}
			if rapid.Bool().Draw(t, "no groups") {
				r.Principal.Groups, r.Principal.AMR, r.Principal.Email = nil, nil, "ana@a@b"
			}
			if rapid.IntRange(0, 4).Draw(t, "who") == 0 {
				anonymous(r)
			}
			allow, ids, failed := reference(all, r)
			got := s.Decide(r)
			if got.Allow != allow || !slices.Equal(got.Policies, ids) || (len(failed) > 0) != strings.HasPrefix(got.Reason, "policy error in") {
				t.Fatalf("%s\n%+v\ngot %+v\nwant %v by %v, failed %v\n%s", text.String(), r, got, allow, ids, failed, cmp.Diff(ids, got.Policies))
			}
		}
	})
}

func TestTheConditionsOfTheComparisonAreLegal(t *testing.T) {
	t.Parallel()
	for _, c := range conditions {
		if _, err := policy.Compile(wiki(t, `[]`, `[]`, `@id("a") permit (principal, action in Action::"http", resource) when { `+c+` };`)); err != nil {
			t.Errorf("%s: %v", c, err)
		}
	}
}
