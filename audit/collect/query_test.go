package collect_test

import (
	"slices"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/collect"
	"github.com/iapmesh/iapmesh/internal/fault"
)

func TestQueryFilters(t *testing.T) {
	t.Parallel()
	a := open(t, t.TempDir())
	defer a.Close()
	at := func(s int64) time.Time { return time.Unix(1_800_000_000+s, 0).UTC() }
	records := map[string][]audit.Record{
		"n1": {
			{Kind: audit.KindDecision, Time: at(1), RequestID: "1", Route: "billing", Decision: audit.Allow, Actor: audit.Actor{Subject: "okta/1", Email: "ana@example.com", ProvisioningKey: "k1"}},
			{Kind: audit.KindOutcome, Time: at(3), RequestID: "1", Route: "billing"},
			{Kind: audit.KindDecision, Time: at(5), RequestID: "3", Route: `a"b`, Decision: audit.Deny, Actor: audit.Actor{Subject: "okta/2", MintingProvisioningKey: "k1"}},
		},
		"n2": {
			{Kind: audit.KindDecision, Time: at(2), RequestID: "2", Route: "echo", Decision: audit.Allow, Actor: audit.Actor{Email: "ana@example.com", ProvisioningKey: "k2"}},
			{Kind: audit.KindSignIn, Time: at(4), RequestID: "4", Reason: "billing"},
		},
	}
	for node, all := range records {
		var bodies []string
		for _, r := range all {
			bodies = append(bodies, string(r.AppendJSON(nil)))
		}
		h := newHistory(node, bodies...)
		if _, answers, err := say(a, node, h.framesMessage(), h.note(t, node)); len(answers) != 1 || answers[0].GetAck() == nil {
			t.Fatalf("%v, %v", answers, err)
		}
	}
	n1, n2 := "n1/"+run.String()+"/", "n2/"+run.String()+"/"
	for name, tc := range map[string]struct {
		filter collect.Filter
		want   []string
	}{
		"all, by time":      {collect.Filter{}, []string{n1 + "0", n2 + "0", n1 + "1", n2 + "1", n1 + "2"}},
		"user by e-mail":    {collect.Filter{User: "ana@example.com"}, []string{n1 + "0", n2 + "0"}},
		"user by subject":   {collect.Filter{User: "okta/2"}, []string{n1 + "2"}},
		"route":             {collect.Filter{Route: "billing"}, []string{n1 + "0", n1 + "1"}},
		"route with quotes": {collect.Filter{Route: `a"b`}, []string{n1 + "2"}},
		"decision":          {collect.Filter{Decision: audit.Deny}, []string{n1 + "2"}},
		"times":             {collect.Filter{From: at(2), To: at(4)}, []string{n2 + "0", n1 + "1"}},
		"key":               {collect.Filter{ProvisioningKey: "k1"}, []string{n1 + "0", n1 + "2"}},
		"node":              {collect.Filter{Node: "n2"}, []string{n2 + "0", n2 + "1"}},
		"unknown node":      {collect.Filter{Node: "n3"}, nil},
		"kind":              {collect.Filter{Kind: audit.KindSignIn}, []string{n2 + "1"}},
		"request":           {collect.Filter{RequestID: "1"}, []string{n1 + "0", n1 + "1"}},
		"limit":             {collect.Filter{Limit: 2}, []string{n1 + "0", n2 + "0"}},
		"newest":            {collect.Filter{Limit: 2, Newest: true}, []string{n2 + "1", n1 + "2"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for e, err := range a.Records(t.Context(), tc.filter) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, e.ID.String())
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("%v, want %v", got, tc.want)
			}
		})
	}
	for _, err := range a.Records(t.Context(), collect.Filter{Node: "../n1"}) {
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("a path for a node: %v", err)
		}
	}
}
