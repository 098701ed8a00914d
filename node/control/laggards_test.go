package control_test

import (
	"strings"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

const staleRoutes = `
kind: Route
name: billing
hosts: [billing.example.com]
upstreams: [{url: 'http://127.0.0.1:1'}]
max_staleness: 30s
allow: [{anyone: true}]
---
kind: Route
name: payroll
hosts: [payroll.example.com]
upstreams: [{url: 'http://127.0.0.1:1'}]
max_staleness: 5m
allow: [{anyone: true}]
---
kind: Route
name: status
hosts: [status.example.com]
upstreams: [{url: 'http://127.0.0.1:1'}]
max_staleness: 30s
on_stale: allow
allow: [{anyone: true}]
---
kind: Route
name: wiki
hosts: [wiki.example.com]
upstreams: [{url: 'http://127.0.0.1:1'}]
allow: [{anyone: true}]
`

func TestALaggardIsToldWhenItsRoutesStop(t *testing.T) {
	t.Parallel()
	w := start(t)
	must(t, second(w.Apply(t.Context(), "admin/ana", apply(t, staleRoutes))))
	ctl := w.joined(w.boot, "ctl-2", "us-east", iapmeshv1.Role_ROLE_CONTROL, iapmeshv1.Role_ROLE_PROXY)
	px := w.joined(w.boot, "px-1", "us-east")
	collector := w.joined(w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.Grants = []iapmeshv1.Role{iapmeshv1.Role_ROLE_AGGREGATOR} }), "logs", "us-east", iapmeshv1.Role_ROLE_AGGREGATOR)
	w.clock.advance(keyring.LiveWithin + time.Second)
	w.everybodyReports()
	heard := w.clock.now()
	w.clock.advance(keyring.LiveWithin + time.Second)
	committed := w.clock.now()
	at, err := w.revoke(user, "okta/ana", false)
	must(t, err)
	w.clock.advance(10 * time.Second) // asked later, the bounds stay
	w.says(w.founder, at)
	w.eventuallyReceipt(at, keyring.ReceiptLive)
	laggards := func() map[string]*iapmeshv1.Laggard {
		_, now, err := w.GetReceipt(t.Context(), w.ReceiptID(at))
		must(t, err)
		out := map[string]*iapmeshv1.Laggard{}
		for _, l := range now.Lagging {
			out[l.NodeId] = l
		}
		return out
	}
	for name, tc := range map[string]struct {
		node   *joiner
		asOf   time.Time
		serves bool
	}{
		"a control node: as of when it was last heard":    {ctl, heard, true},
		"a follower, which any control node may have fed": {px, committed, true},
		"one that is no proxy has no routes to speak of":  {collector, committed, false},
	} {
		l := laggards()[tc.node.id()]
		if l == nil || !l.AsOf.AsTime().Equal(tc.asOf) {
			t.Errorf("%s: %+v, want as of %v", name, l, tc.asOf)
			continue
		}
		stops, goOn := strings.Join(l.RoutesThatStop, " "), strings.Join(l.RoutesThatGoOn, " ")
		if tc.serves && (stops != "billing payroll" || goOn != "status wiki" || !l.StopsBy.AsTime().Equal(tc.asOf.Add(5*time.Minute))) {
			t.Errorf("%s: stops %q by %v, goes on %q", name, stops, l.StopsBy.AsTime(), goOn)
		}
		if !tc.serves && (stops+goOn != "" || l.StopsBy != nil) {
			t.Errorf("%s: %+v", name, l)
		}
	}
	// After an apply nobody knows here which routes the laggards have.
	must(t, second(w.Apply(t.Context(), "admin/ana", apply(t, zones("inner")))))
	if l := laggards()[px.id()]; !l.OlderConfiguration || l.StopsBy != nil || len(l.RoutesThatStop)+len(l.RoutesThatGoOn) != 0 {
		t.Errorf("with an older configuration: %+v", l)
	}
}
