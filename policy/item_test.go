package policy_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/iapmesh/iapmesh/policy"
)

// fullItem uses every key that can stand beside others.
const fullItem = `{groups: [okta/eng, okta/ops], methods: read, paths: [/api/, =/healthz], ips: [10.0.0.0/8, "2001:db8::/32"], countries: [NO, FR], countries_not: [KP],
 device: {managed: true, encrypted: false, posture: 3, os: linux, os_version: 6, max_age: 7d}, mfa: 1h, hours: office, until: 2026-12-31T00:00Z}`

func TestItemDecodes(t *testing.T) {
	t.Parallel()
	yes, no := true, false
	want := policy.Item{
		Groups: []string{"okta/eng", "okta/ops"}, Methods: []string{"read"}, Paths: []string{"/api/", "=/healthz"}, IPs: []string{"10.0.0.0/8", "2001:db8::/32"},
		Countries: []string{"NO", "FR"}, CountriesNot: []string{"KP"},
		Device: &policy.DeviceRule{Managed: &yes, Encrypted: &no, Posture: 3, OS: []string{"linux"}, OSVersion: 6, MaxAge: 7 * 24 * time.Hour},
		MFA:    time.Hour, Hours: []string{"office"}, Until: time.Date(2026, 12, 31, 0, 0, 0, 0, time.UTC),
	}
	got := items(t, "- "+fullItem)[0]
	if d := cmp.Diff(want, got, cmpopts.IgnoreFields(policy.Item{}, "Line")); d != "" {
		t.Error(d)
	}
}

func TestItemsLineIsTheDocuments(t *testing.T) {
	t.Parallel()
	var doc struct {
		Kind  string
		Allow []policy.Item
		Deny  []policy.Item
	}
	const text = "kind: Route\nallow:\n- groups: [okta/eng]\n  methods: read\n- {anyone: true}\ndeny:\n  - countries: [KP]\n"
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	if got := []int{doc.Allow[0].Line, doc.Allow[1].Line, doc.Deny[0].Line}; !cmp.Equal(got, []int{3, 5, 7}) {
		t.Errorf("lines %v", got)
	}
}

func TestItemSurvivesItsEncodings(t *testing.T) {
	t.Parallel()
	for _, text := range []string{fullItem, `{anyone: true}`, `{authenticated: true, methods: [GET, POST]}`, `{users: ["okta/<a>&\"b\"\\"], until: 2026-12-31T12:34:56+02:00}`, `{services: [ci]}`, `{emails: [a@b.c], device: {managed: false}}`} {
		want := items(t, "- "+text)[0]
		want.Line = 0
		asJSON, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got policy.Item
		if err := json.Unmarshal(asJSON, &got); err != nil {
			t.Errorf("%s: %v", asJSON, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("JSON: %s", d)
		}
		asYAML, err := yaml.Marshal([]policy.Item{want})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, items(t, string(asYAML))[0], cmpopts.IgnoreFields(policy.Item{}, "Line")); d != "" {
			t.Errorf("YAML: %s\n%s", asYAML, d)
		}
	}
}

func TestItemDecodesStrictly(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ text, want string }{
		"unknown key":              {"- groups: [okta/eng]\n  pathes: [/x/]", `line 2, column 3: item: unknown key "pathes": did you mean "paths"?`},
		"unknown key of a device":  {"- {anyone: true, device: {manged: true}}", `line 1, column 27: device: unknown key "manged": did you mean "managed"?`},
		"key twice":                {"- {\"methods\": read, 'methods': write}", `already defined`},
		"no mapping":               {"- anyone", "want a mapping, not a string"},
		"scalar for a list":        {"- {groups: okta/eng}", "want a list of strings, not a string"},
		"number in a list":         {"- {groups: [1]}", "want a string, not a whole number: put it in quotes"},
		"bool in a list":           {"- {countries: [true]}", "want a string, not true or false"},
		"null":                     {"- {groups: }", "not nothing"},
		"empty list":               {"- {groups: []}", "an empty list says nothing"},
		"empty string":             {`- {groups: [""]}`, "empty string"},
		"value twice":              {"- {groups: [okta/a, okta/a]}", `"okta/a" is there twice`},
		"anyone: false":            {"- {anyone: false}", "only true is legal"},
		"authenticated: yes":       {"- {authenticated: yes}", "only true is legal"},
		"duration":                 {"- {anyone: true, mfa: 1 hour}", "is no duration"},
		"negative duration":        {"- {anyone: true, mfa: -1h}", "must be positive"},
		"duration in microseconds": {"- {anyone: true, mfa: 5us}", "whole milliseconds"},
		"number as duration":       {"- {anyone: true, mfa: 60}", "want a string"},
		"date alone":               {"- {anyone: true, until: 2026-12-31}", "is no time"},
		"time without zone":        {`- {anyone: true, until: "2026-12-31T00:00"}`, "is no time"},
		"empty device":             {"- {anyone: true, device: {}}", "says nothing"},
		"posture as text":          {`- {anyone: true, device: {posture: "3"}}`, "whole number"},
		"merge key":                {"- &a {anyone: true}\n- {<<: *a}", "aliases and merge keys"},
		"nested":                   {"- {groups: [[[[okta/eng]]]]}", "nested too deep"},
	} {
		var out []policy.Item
		err := yaml.Unmarshal([]byte(tc.text), &out)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	for name, tc := range map[string]struct{ text, want string }{
		"unknown key": {"{\"anyone\": true,\n \"pathes\": []}", `line 2, column 2: item: unknown key "pathes": did you mean "paths"?`},
		"key twice":   {`{"methods": "read", "methods": ["write"]}`, `key "methods" is there twice`},
		"key by case": {`{"Anyone": true}`, `unknown key "Anyone"`},
		"null":        {`null`, "want a mapping"},
		"float":       {`{"anyone": true, "device": {"posture": 1.5}}`, "whole number"},
		"nested":      {`{"groups": [[[[["a"]]]]]}`, "nested too deep"},
		"long":        {`{"groups": ["` + strings.Repeat("a", 70_000) + `"]}`, "at most 65536"},
	} {
		var out policy.Item
		err := json.Unmarshal([]byte(tc.text), &out)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("JSON, %s: %v, want %q", name, err, tc.want)
		}
	}
}

func FuzzItem(f *testing.F) {
	for _, seed := range []string{fullItem, `{"groups": ["okta/eng"], "methods": ["GET"]}`, `{anyone: true, until: "2026-12-31T00:00:00.5Z"}`, `{"device": {"managed": null}}`, `&a [*a]`, `{<<: {}}`, `{"users":["\ud800"]}`, "{? a : b}", "!!map {anyone: !!bool true}"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var fromYAML, fromJSON policy.Item
		if len(text) < 4096 && yaml.Unmarshal([]byte(text), &fromYAML) == nil {
			survives(t, fromYAML)
		}
		if json.Unmarshal([]byte(text), &fromJSON) == nil {
			survives(t, fromJSON)
		}
	})
}

// survives checks that a decoded item encodes to itself, and that compiling it does not panic.
func survives(t *testing.T, it policy.Item) {
	t.Helper()
	it.Line = 0
	b, err := json.Marshal(it)
	if err != nil {
		t.Fatal(err)
	}
	var again policy.Item
	if err := json.Unmarshal(b, &again); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	if d := cmp.Diff(it, again); d != "" {
		t.Fatal(d)
	}
	s, err := policy.Compile(policy.Source{Routes: []policy.Route{{Name: "wiki", Allow: []policy.Item{it}}, {Name: "other", Deny: []policy.Item{it}}}})
	if err == nil {
		s.Decide(anaReads())
	}
}
