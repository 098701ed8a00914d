package proxy_test

import (
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/audit"
)

func TestARequestIsDecidedRecordedAndForwarded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	cookie, sid := w.signInAs("okta/finance", "okta/staff")
	r := w.request(http.MethodGet, "Billing.Example.com:8443", "/invoices/7?year=2026", cookie)
	r.AddCookie(&http.Cookie{Name: "theme", Value: "dark"})
	res := w.do(r)
	saw := res.echo(t)

	if saw.RequestURI != "/invoices/7?year=2026" || saw.Host != w.app.Listener.Addr().String() {
		t.Errorf("the application saw %s of %s", saw.RequestURI, saw.Host)
	}
	id := res.Header.Get("X-Request-Id")
	assertion := saw.Headers.Get("X-Iapmesh-Jwt-Assertion")
	if assertion == "" || id == "" {
		t.Fatalf("assertion %q, request id %q", assertion, id)
	}
	delete(saw.Headers, "X-Iapmesh-Jwt-Assertion")
	if diff := cmp.Diff(http.Header{
		"Accept-Encoding": {"gzip"}, "Cookie": {"theme=dark"}, "User-Agent": {"Go-http-client/1.1"},
		"Cf-Access-Jwt-Assertion": {assertion}, "X-Forwarded-User": {"ana@example.com"}, "X-Forwarded-Email": {"ana@example.com"},
		"X-Forwarded-Groups": {"okta/finance,okta/staff"}, "X-Acme-Subject": {"okta/00u1"}, "Remote-Name": {"Ana"},
		"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Host": {"Billing.Example.com:8443"}, "X-Forwarded-Proto": {"http"},
		"X-Request-Id": {id}, "X-Iapmesh-Region": {"eu-west"},
	}, saw.Headers); diff != "" {
		t.Error(diff)
	}
	if got := res.Header.Get("X-Iapmesh-Region"); got != "eu-west" {
		t.Errorf("answered by region %q", got)
	}

	decision := w.kind(audit.KindDecision, 1)[0]
	outcome := w.kind(audit.KindOutcome, 1)[0]
	if decision.Time.IsZero() || len(decision.Policies) != 1 || decision.Manifest == "" || decision.Actor.SigningKID == "" {
		t.Errorf("decision %+v", decision)
	}
	want := audit.Record{
		Kind: audit.KindDecision, Time: decision.Time, RequestID: id, Route: "billing", Method: "GET", Host: "billing.example.com", Path: "/invoices/7",
		SourceIP: "127.0.0.1", Destination: "http://" + w.app.Listener.Addr().String(), Decision: audit.Allow, Reason: decision.Reason,
		Policies: decision.Policies, Manifest: decision.Manifest, Revision: audit.Revision(w.at), ViewAgeMS: 10, Region: "eu-west", Node: decision.Node,
		Actor: audit.Actor{
			Subject: "okta/00u1", Email: "ana@example.com", SessionID: sid, ProvisioningKey: "key-of-eu",
			MintingProvisioningKey: "key-of-eu", MintingNode: "eu", SigningKID: decision.Actor.SigningKID,
		},
	}
	if diff := cmp.Diff(want, decision); diff != "" {
		t.Error(diff)
	}
	if outcome.RequestID != id || outcome.Status != 200 || outcome.BytesOut != int64(len(res.body)) || outcome.DecisionID.Node != "eu" {
		t.Errorf("outcome %+v", outcome)
	}
}
