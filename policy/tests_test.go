package policy_test

import (
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/policy"
)

const wikiTests = `
users:
  ana: {groups: [okta/eng], email: ana@example.com, amr: [pwd, mfa]}
  bob: {subject: okta/00u2}
tests:
- name: ana reads in office hours
  request: {user: ana, GET: https://wiki/api/x, ip: 10.1.2.3, at: "2026-11-24T09:00 Europe/Paris", region: eu-west, keyring_age: 5m}
  expect: allow
  by: [wiki#0]
- name: ana reads at night
  request: {user: ana, GET: https://wiki/api/x, at: "2026-11-24T02:00 Europe/Paris"}
  expect: deny
- name: bob does not
  request: {user: bob, GET: https://wiki.example.com/api/x, route: wiki}
  expect: deny
- name: nobody opens a tunnel
  request: {anonymous: true, tcp: "wiki:5432"}
  expect: deny
`

func parseTests(t *testing.T, text string) policy.Tests {
	t.Helper()
	out, err := policy.ParseTests([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRunTests(t *testing.T) {
	t.Parallel()
	const allow = `[{groups: [okta/eng], methods: read, hours: office}]`
	for name, tc := range map[string]struct {
		tests  string
		cedar  string
		failed string // "name: problem"; empty: none
	}{
		"all pass":         {wikiTests, "", ""},
		"wrong answer":     {strings.Replace(wikiTests, "expect: allow", "expect: deny", 1), "", "ana reads in office hours: want deny, got allow: allowed by wiki#0"},
		"wrong policy":     {strings.Replace(wikiTests, "[wiki#0]", "[wiki#1]", 1), "", "ana reads in office hours: want allow by [wiki#1], got it by [wiki#0]"},
		"unknown user":     {strings.Replace(wikiTests, "user: bob,", "user: bobb,", 1), "", `bob does not: no user "bobb": did you mean "bob"?`},
		"unknown route":    {strings.Replace(wikiTests, "route: wiki}", "route: wikki}", 1), "", `bob does not: no route "wikki"`},
		"never held":       {wikiTests + "never:\n- {allow: true, keyring_age: \">24h\"}\n", `@id("stale") forbid (principal, action, resource) when { context.session.keyringAge > duration("24h") };`, ""},
		"never broken":     {wikiTests + "never:\n- {allow: true, keyring_age: \">24h\"}\n", "", "never[0] keyring_age >24h: allowed for okta/ana at route wiki (GET /api/x): allowed by wiki#0"},
		"never off by one": {wikiTests + "never:\n- {allow: true, keyring_age: \">24h\"}\n", `@id("stale") forbid (principal, action, resource) when { context.session.keyringAge > duration("25h") };`, "never[0] keyring_age >24h: allowed"},
		"never writes":     {wikiTests + "never:\n- {allow: true, user: bob, methods: write}\n", `@id("put") permit (principal == User::"okta/00u2", action == Action::"PUT", resource);`, "never[0] user bob, methods write: allowed for okta/00u2"},
		"never anonymous":  {wikiTests + "never:\n- {allow: true, anonymous: true, route: other}\n", `@id("open") permit (principal, action, resource == Route::"other");`, "never[0] route other: allowed for nobody at route other"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var failed []string
			for _, r := range compile(t, wiki(t, allow, `[]`, tc.cedar)).RunTests(parseTests(t, tc.tests)) {
				if !r.Pass {
					failed = append(failed, strings.TrimSpace(r.Name)+": "+r.Problem)
				}
			}
			got := strings.Join(failed, "\n")
			if !strings.HasPrefix(got, tc.failed) || tc.failed == "" && got != "" || tc.failed != "" && len(failed) != 1 {
				t.Errorf("got %q, want %q", got, tc.failed)
			}
		})
	}
}

func TestParseTestsIsStrict(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ text, want string }{
		"unknown key":        {"tests:\n- name: a\n  reqest: {}", `line 3, column 3: test: unknown key "reqest": did you mean "request"?`},
		"unknown request":    {"tests:\n- name: a\n  request: {GTE: https://wiki/}", `unknown key "GTE": did you mean "GET"?`},
		"two verbs":          {"tests:\n- name: a\n  request: {GET: https://wiki/, PUT: https://wiki/}", "one a request"},
		"no verb":            {"tests:\n- name: a\n  request: {user: ana}\n  expect: deny", "GET: https://ROUTE/path"},
		"no name":            {"tests:\n- request: {tcp: 'a:1'}\n  expect: deny", "no name"},
		"expectation":        {"tests:\n- name: a\n  request: {tcp: 'a:1'}\n  expect: maybe", "expect: allow or expect: deny"},
		"never without what": {"never:\n- {keyring_age: '>24h'}", "say allow: true"},
		"never everything":   {"never:\n- {allow: true}", "no condition"},
		"never a typo":       {"never:\n- {allow: true, methods: [raed]}", `method "raed" is not known: did you mean "read"?`},
		"never younger":      {"never:\n- {allow: true, keyring_age: 24h}", "write >24h"},
		"deep":               {strings.Repeat("[", 100), "nested deeper"},
		"long":               {strings.Repeat(" ", 2<<20), "at most"},
	} {
		if _, err := policy.ParseTests([]byte(tc.text)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

func FuzzParseTests(f *testing.F) {
	f.Add(wikiTests)
	f.Add("never:\n- {allow: true, keyring_age: \">24h\", methods: [write, GET], path: /x, ip: 10.0.0.1}\n")
	s := compile(f, wiki(f, `[{anyone: true}]`, `[]`, ""))
	f.Fuzz(func(t *testing.T, text string) {
		tests, err := policy.ParseTests([]byte(text))
		if err != nil {
			return
		}
		if got := len(s.RunTests(tests)); got != len(tests.Tests)+len(tests.Never) {
			t.Fatalf("%d results", got)
		}
	})
}
