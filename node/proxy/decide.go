package proxy

import (
	"fmt"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/session"
	"github.com/iapmesh/iapmesh/node/state"
	"github.com/iapmesh/iapmesh/policy"
)

// What authorize and redecide return beside a record's failure.
var (
	errNobody  = fault.New(fault.Unauthenticated, "nobody is signed in")
	errStale   = fault.New(fault.Unavailable, "the view is older than the route allows")
	errDenied  = fault.New(fault.Denied, "denied by policy")
	errForeign = fault.New(fault.Denied, "signed in by another identity provider")
)

// judgement is a decision and what it was made on.
type judgement struct {
	policy.Decision
	age   time.Duration
	known bool
	stale bool // it would be an allow, but the route denies on an old view
}

// judge decides by one view. It records nothing: authorize does, and redecide only ends.
func (x *exchange) judge(view *state.View, route *resource.Route, now time.Time) judgement {
	var j judgement
	j.age, j.known = x.p.cfg.Age()
	late := route.MaxStaleness > 0 && (!j.known || j.age > time.Duration(route.MaxStaleness))
	r := policy.Request{
		Anonymous: x.session == nil, Route: route.Name, Method: x.in.Method, Host: x.host, Path: x.target.path,
		SourceIP: x.source.client, Region: x.p.cfg.Region, Now: now, KeyringAge: j.age, DirectoryAge: -1,
	}
	if !j.known {
		r.KeyringAge = -1
	}
	if x.session != nil {
		r.Principal = x.session.Identity
	}
	j.Decision = view.Config.Policy.Decide(&r)
	if x.target.literal != "" && j.Allow { // both readings must be allowed
		r.Path = x.target.literal
		j.Decision = view.Config.Policy.Decide(&r)
	}
	switch {
	case !late || !j.Allow:
	case route.DenyStale():
		j.Allow, j.stale, j.Reason = false, true, "stale: "+j.ageText()
	default:
		j.Reason += "; stale, which the route allows: " + j.ageText()
	}
	return j
}

func (j *judgement) ageText() string {
	if !j.known {
		return "the view's age is not known"
	}
	return fmt.Sprintf("the view is %s old", j.age.Round(time.Millisecond))
}

// authorize decides and records, together: nil is an allow whose record has its place in the spool, or was counted as a gap
// where the route serves without one. Others are errNobody (counted, not recorded), errStale, errForeign, errDenied, or why there is no record.
func (x *exchange) authorize() error {
	now := x.p.cfg.Now()
	j := x.judge(x.view, x.route.route, now)
	foreign := false
	if x.session == nil && !j.Allow && !j.stale {
		if x.foreign == nil || len(x.route.route.IdentityProviders) == 0 {
			return errNobody
		}
		foreign = true
		j.Reason = "the session is of identity provider " + x.foreign.Identity.Provider() + ", which the route does not name"
	}
	x.decision = decisionDeny
	if j.Allow {
		x.decision = decisionAllow
	}
	record := x.record(&j, now)
	ticket, err := x.p.cfg.Spool.Append(&record)
	x.p.metrics.decide.Observe(x.p.cfg.Now().Sub(now).Seconds())
	switch {
	case err == nil:
		x.ticket, x.recorded = ticket, true
	case x.route.route.ServeUnrecorded():
		x.p.cfg.Spool.Gap(x.route.route.Name, fault.KindOf(err).String())
	default:
		x.decision = decisionNone
		return fmt.Errorf("record a decision: %w", fault.Wrap(fault.Unavailable, err))
	}
	switch {
	case j.stale:
		return errStale
	case foreign:
		return errForeign
	case !j.Allow:
		return errDenied
	}
	return nil
}

// record is the decision's leaf.
func (x *exchange) record(j *judgement, now time.Time) audit.Record {
	r := audit.Record{
		Kind: audit.KindDecision, Time: now, RequestID: x.id, TraceID: traceID(x.in.Header.Get("Traceparent")),
		Route: x.route.route.Name, Method: x.in.Method, Host: x.host, Path: x.target.path, SourceIP: x.source.clientText(),
		Destination: x.upstream.text, Decision: x.decision, Reason: j.Reason, Policies: j.Policies,
		Manifest: x.plan.manifest, Revision: audit.Revision(x.view.Revision), ViewAgeMS: -1, Region: x.p.cfg.Region,
	}
	if j.known {
		r.ViewAgeMS = j.age.Milliseconds()
	}
	if len(j.Errors) > 0 {
		r.Detail = map[string]string{"policy_errors": strings.Join(j.Errors, "; ")}
	}
	r.Actor.ProvisioningKey = x.key
	s := x.session
	if s == nil && !j.Allow {
		s = x.foreign
	}
	if s != nil {
		r.Actor = audit.Actor{
			Subject: s.Identity.Subject, Email: s.Identity.Email, SessionID: s.ID, ProvisioningKey: x.key,
			MintingProvisioningKey: s.MintingKey, MintingNode: s.MintingNode, SigningKID: s.KID,
		}
	}
	return r
}

// durable waits until the decision is on disk. Nil too where the route serves all the same, with a counted gap.
func (x *exchange) durable() error {
	if !x.recorded || x.synced {
		return nil
	}
	err := x.wait()
	if err == nil {
		x.synced = true
		return nil
	}
	if x.route.route.ServeUnrecorded() {
		x.p.cfg.Spool.Gap(x.route.route.Name, "not_durable")
		x.synced = true
		return nil
	}
	return fmt.Errorf("record a decision: %w", err)
}

func (x *exchange) wait() error {
	select {
	case <-x.ticket.Done():
		return x.ticket.Err()
	default:
	}
	// Not until the exchange's context ends: what ended early is answered too, and not before its record is there.
	late := time.NewTimer(x.p.cfg.RecordWait)
	defer late.Stop()
	select {
	case <-x.ticket.Done():
		return x.ticket.Err()
	case <-late.C:
		return fault.New(fault.Unavailable, "audit record %s is not on disk after %s", x.ticket.ID(), x.p.cfg.RecordWait)
	}
}

// redecide is asked by session.Live when the configuration has changed, and each minute; an error ends the exchange.
func (x *exchange) redecide(view *state.View) error {
	r := x.still(view)
	if r == nil {
		return session.ErrRouteGone
	}
	switch j := x.judge(view, r, x.p.cfg.Now()); {
	case j.stale:
		return errStale
	case !j.Allow:
		return errDenied
	}
	return nil
}

// traceID takes the trace id of a W3C traceparent; empty if it is none.
func traceID(parent string) string {
	if len(parent) != 55 || parent[2] != '-' || parent[35] != '-' || parent[52] != '-' {
		return ""
	}
	id := parent[3:35]
	for i := range len(id) {
		if !hexDigit(id[i]) {
			return ""
		}
	}
	return id
}
