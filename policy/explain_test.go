package policy_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/policy"
)

func TestExplainNamesTheClauseThatFailed(t *testing.T) {
	t.Parallel()
	s := compile(t, wiki(t, `[{groups: [okta/ops], methods: write, paths: [/b/]}, {groups: [okta/eng], methods: read, paths: [/api/], mfa: 10m}]`, `[{countries: [KP]}]`,
		`@id("overflow") permit (principal, action, resource) unless { resource.sensitivity * 9223372036854775807 > 0 };`))
	got, err := s.Explain(anaReads())
	if err != nil {
		t.Fatal(err)
	}
	if got.Decision.Reason != "default deny" {
		t.Errorf("decision %+v", got.Decision)
	}
	failed := map[string][]string{}
	var order []string
	for _, c := range got.Checks {
		order = append(order, c.Policy.ID)
		failed[c.Policy.ID] = c.Failed
	}
	if d := cmp.Diff([]string{"overflow", "wiki#1", "wiki#0", "wiki!0"}, order); d != "" {
		t.Error(d)
	}
	want := map[string][]string{
		"wiki#0": {"principal", "action"},
		"wiki#1": {`when { context.session has mfaAge && context.session.mfaAge <= duration("600000ms") }`},
		"wiki!0": {`when { if context.session has country then ["KP"].contains(context.session.country) else true }`},
	}
	if len(failed["overflow"]) != 1 {
		t.Errorf("overflow: %q", failed["overflow"])
	}
	delete(failed, "overflow")
	if d := cmp.Diff(want, failed); d != "" {
		t.Error(d)
	}
}

func TestExplainAgreesWithDecide(t *testing.T) {
	t.Parallel()
	s := compile(t, wiki(t, `[{groups: [okta/eng], methods: read}, {anyone: true}]`, `[{paths: [/admin/]}]`, ""))
	for _, r := range []edit{func(r *policy.Request) {}, path("/admin/x"), method("POST"), anonymous, tcp} {
		req := anaReads(r)
		got, err := s.Explain(req)
		if err != nil {
			t.Fatal(err)
		}
		var applied []string
		for _, c := range got.Checks {
			if c.Applies && c.Policy.Forbid != got.Decision.Allow {
				applied = append(applied, c.Policy.ID)
			}
		}
		if d := cmp.Diff(got.Decision.Policies, applied); d != "" {
			t.Errorf("%s %s: %s", req.Method, req.Path, d)
		}
	}
}
