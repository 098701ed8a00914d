package main

import (
	"testing"

	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// What did not come about is said of those who were waited for.
func TestAwaitedNamesWhoIsWaitedFor(t *testing.T) {
	t.Parallel()
	laggard := func(name string, live bool) *iapmeshv1.Laggard {
		return &iapmeshv1.Laggard{Name: name, Region: "eu", Live: live}
	}
	mixed := []*iapmeshv1.Laggard{laggard("ctl-3", false), laggard("px-1", true)}
	var many []*iapmeshv1.Laggard
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		many = append(many, laggard(name, true))
	}
	for name, tc := range map[string]struct {
		receipt *iapmeshv1.Receipt
		wait    waitFor
		want    string
	}{
		"a live and a silent one":        {&iapmeshv1.Receipt{Lagging: mixed}, waitLive, ": px-1 (eu)"},
		"where all are waited for":       {&iapmeshv1.Receipt{Lagging: mixed}, waitAll, ": px-1 (eu), ctl-3 (eu, silent)"},
		"a silent one that may be heard": {&iapmeshv1.Receipt{Lagging: mixed[:1]}, waitLive, ", as far as is known; those that lag may be gone: ctl-3 (eu, silent)"},
		"many":                           {&iapmeshv1.Receipt{Lagging: many}, waitLive, ": a (eu), b (eu), c (eu), d (eu), e (eu), and 2 more"},
		"half a change":                  {&iapmeshv1.Receipt{Unfinished: true}, waitLive, ": part of the change is still to be made: do it again"},
		"nobody":                         {nil, waitLive, ""},
	} {
		if got := awaited(tc.receipt, tc.wait); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}
