package resource_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/resource"
)

// everything holds one good resource of each kind.
const everything = `
kind: Settings
name: mesh
issuer: https://auth.example.com
sign_in_host: auth.example.com
session_lifetime: 30m
regions: [eu-west, us-east]
trusted_proxies: [10.0.0.0/8]
---
kind: IdentityProvider
name: okta
oidc:
  issuer: https://example.okta.com
  client_id: iapmesh
  client_secret: {secret: okta-client}
  groups_claim: groups
---
kind: Zone
name: finance
---
kind: Schedule
name: office
time_zone: Europe/Paris
days: [mon, tue, wed, thu, fri]
from: "09:00"
to: "18:00"
---
kind: Service
name: reports
spiffe: spiffe://mesh.example.com/reports
region: eu-west
---
kind: Policy
name: contractors
cedar: |
  @id("no-contractors")
  forbid (principal in Group::"okta/contractors", action, resource);
---
kind: Route
name: billing
hosts: [billing.example.com]
path: /
zone: finance
upstreams: [{url: "http://10.0.0.5:8080", region: eu-west}]
identity_providers: [okta]
allow: [{groups: [okta/finance]}]
max_staleness: 30s
audit: {durable: before_forward, on_failure: serve}
assertion: {headers: [X-Goog-Iap-Jwt-Assertion], claim_headers: {X-Forwarded-Email: email}}
allow_paths: [semicolon]
`

func TestEveryKindParsesAndCompiles(t *testing.T) {
	t.Parallel()
	docs, err := resource.Parse("mesh.yaml", []byte(everything))
	if err != nil {
		t.Fatal(err)
	}
	if len(docs) != len(resource.Kinds()) {
		t.Fatalf("%d documents, want one of each of %d kinds", len(docs), len(resource.Kinds()))
	}
	c, err := resource.Compile(docs, []string{"eu-west"})
	if err != nil {
		t.Fatal(err)
	}
	r := c.Route("billing")
	if r == nil || r.Source() != "mesh.yaml:39" || !r.DenyStale() || !r.BeforeForward() || !r.ServeUnrecorded() || !r.Permits("semicolon") || r.Permits("double_slash") {
		t.Errorf("route: %+v", r)
	}
	if p, err := c.Provider(r); err != nil || p.Name != "okta" {
		t.Errorf("provider: %v, %v", p, err)
	}
	if c.Settings.AssertionKeyRotation != resource.Duration(resource.DefaultKeyRotation) || c.Digest == [32]byte{} {
		t.Errorf("settings: %+v", c.Settings)
	}
}

func TestCanonicalJSONComesBackTheSame(t *testing.T) {
	t.Parallel()
	docs, err := resource.Parse("mesh.yaml", []byte(everything))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range docs {
		again, err := resource.FromJSON(d.Ref(), d.JSON, d.Source)
		if err != nil {
			t.Errorf("%s: %v", d.Ref(), err)
			continue
		}
		if again.Hash != d.Hash || again.Source != d.Source || !cmp.Equal(again.JSON, d.JSON) {
			t.Errorf("%s: %s came back as %s", d.Ref(), d.JSON, again.JSON)
		}
	}
}

func TestFromJSONRefuses(t *testing.T) {
	t.Parallel()
	zone := resource.Ref{Kind: "Zone", Name: "z"}
	for name, tc := range map[string]struct {
		ref  resource.Ref
		spec string
	}{
		"unknown field":        {zone, `{"kind":"Zone","name":"z","nam":"y"}`},
		"another name":         {zone, `{"kind":"Zone","name":"y"}`},
		"another kind inside":  {zone, `{"kind":"Route","name":"z"}`},
		"no kind inside":       {zone, `{"name":"z"}`},
		"something behind":     {zone, `{"kind":"Zone","name":"z"}{}`},
		"a closing brace more": {zone, `{"kind":"Zone","name":"z"}}`},
		"cut off":              {zone, `{"kind":"Zone","name":"z"`},
		"nothing":              {zone, ``},
		"null":                 {zone, `null`},
		"too large":            {zone, `{"kind":"Zone","name":"z"` + strings.Repeat(" ", resource.MaxSpec) + `}`},
		"deep":                 {zone, `{"kind":"Zone","name":"z","parents":` + strings.Repeat("[", 100_000)},
		"unknown kind":         {resource.Ref{Kind: "Rout", Name: "z"}, `{"kind":"Rout","name":"z"}`},
	} {
		if d, err := resource.FromJSON(tc.ref, []byte(tc.spec), "x:1"); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %+v, %v, want invalid", name, d.JSON, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	var indented strings.Builder
	for i := range 100 {
		fmt.Fprintf(&indented, "%sa:\n", strings.Repeat(" ", i))
	}
	bomb := "kind: Zone\nname: z\nparents: [&a x, *a]\n"
	for name, tc := range map[string]struct{ yaml, want string }{
		"unknown field":         {"kind: Zone\nname: z\nparent: [y]\n", `[3:1] unknown field "parent"`},
		"unknown nested field":  {"kind: Route\nname: r\nupstreams: [{ur: x}]\n", "[3:14]"},
		"no kind":               {"name: z\n", "kind is missing"},
		"near kind":             {"kind: Rout\nname: r\n", `did you mean "Route"?`},
		"the same twice":        {"kind: Zone\nname: z\n---\nkind: Zone\nname: z\n", "m.yaml:4: Zone/z stands already at m.yaml:1"},
		"a key twice":           {"kind: Zone\nname: z\nname: y\n", "[3:1]"},
		"nothing":               {"# only a comment\n---\n", "holds no resource"},
		"a list":                {"- kind: Zone\n", "m.yaml:1"},
		"a word":                {"hello\n", "m.yaml:1"},
		"wrong type":            {"kind: Route\nname: r\nhosts: {a: b}\n", "[3:"},
		"no YAML":               {"kind: [Zone\n", "m.yaml"},
		"no UTF-8":              {"kind: Zone\nname: \xff\n", "not UTF-8"},
		"alias":                 {bomb, "m.yaml:3:11: anchors, aliases"},
		"merge key":             {"kind: Zone\nname: z\n<<: {parents: [a]}\n", "anchors, aliases and merge keys"},
		"0.4 MB of (":           {"a: " + strings.Repeat("(", 400_000), "nested 400000 deep"},
		"0.4 MB of [":           {"a: " + strings.Repeat("[", 400_000), "nested 400000 deep"},
		"0.4 MB of {":           {strings.Repeat("{", 400_000), "nested 400000 deep"},
		"0.4 MB of - ":          {strings.Repeat("- ", 200_000) + "x", "nested 200000 deep"},
		"0.4 MB of ? ":          {strings.Repeat("? ", 200_000) + "x", "nested 200000 deep"},
		"0.4 MB of tags":        {"a: " + strings.Repeat("!!a ", 100_000) + "x", "nested 100000 deep"},
		"anchors on lines":      {"a:\n" + strings.Repeat("  &a\n", 1000) + " x", "nested 1000 deep"},
		"100 levels of indents": {indented.String(), "nested 100 deep"},
		"too large":             {strings.Repeat("#", resource.MaxFile+1), "at most 8388608"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := resource.Parse("m.yaml", []byte(tc.yaml))
			if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%.300v, want invalid, with %q", err, tc.want)
			}
		})
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	t.Parallel()
	_, err := resource.Parse("m.yaml", []byte("kind: Zone\nname: Z\n---\nkind: Service\nname: s\nspiffe: x\n---\nkind: Zone\nname: ok\n---\nkind: Nope\n"))
	for _, want := range []string{`m.yaml:1: Zone/Z: name "Z"`, "m.yaml:4: Service/s: spiffe", "m.yaml:11: kind"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
}

func TestCanonicalKind(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"route": "Route", "Routes": "Route", "policies": "Policy", "identityproviders": "IdentityProvider"} {
		if got, err := resource.CanonicalKind(in); err != nil || got != want {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
	if _, err := resource.CanonicalKind("rout"); err == nil || !strings.Contains(err.Error(), `did you mean "Route"`) {
		t.Errorf("rout: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(everything))
	f.Add([]byte("kind: Zone\nname: z\nparents: [&a x, *a]\n"))
	f.Add([]byte("a: {b: [!!str c, \"d\"]}\n---\n? - x\n: |\n  y\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, err := resource.Parse("f.yaml", data)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("%v is no Invalid", err)
			}
			return
		}
		for _, d := range docs { // what was accepted is accepted by the state, too, and has one hash
			again, err := resource.FromJSON(d.Ref(), d.JSON, d.Source)
			if err != nil || again.Hash != d.Hash {
				t.Fatalf("%s: %s: %v", d.Ref(), d.JSON, err)
			}
		}
	})
}

func FuzzFromJSON(f *testing.F) {
	docs, err := resource.Parse("mesh.yaml", []byte(everything))
	if err != nil {
		f.Fatal(err)
	}
	for _, d := range docs {
		f.Add(d.Ref().Kind, d.Ref().Name, d.JSON)
	}
	f.Fuzz(func(t *testing.T, kind, name string, spec []byte) {
		d, err := resource.FromJSON(resource.Ref{Kind: kind, Name: name}, spec, "f:1")
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("%v is no Invalid", err)
			}
			return
		}
		again, err := resource.FromJSON(d.Ref(), d.JSON, "f:1")
		if err != nil || again.Hash != d.Hash {
			t.Fatalf("%s came back as %s: %v", d.JSON, again.JSON, err)
		}
		_, _ = resource.Compile([]resource.Document{d}, nil) // it may refuse, not die
	})
}
