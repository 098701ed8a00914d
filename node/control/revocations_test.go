package control_test

import (
	"crypto/ed25519"
	"fmt"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func sign(key []byte, node string) []byte {
	return ed25519.Sign(key, keyring.AnnouncementMessage(node))
}

func (w *world) revoke(target iapmeshv1.RevokeTarget, value string, block bool) (revision.Revision, error) {
	_, at, err := w.Revoke(w.t.Context(), "admin/ana", &iapmeshv1.RevokeRequest{Target: target, Value: value, Block: block, Reason: "test"})
	return at, err
}

const (
	user    = iapmeshv1.RevokeTarget_REVOKE_TARGET_USER
	session = iapmeshv1.RevokeTarget_REVOKE_TARGET_SESSION
	signing = iapmeshv1.RevokeTarget_REVOKE_TARGET_SIGNING_KEY
	onNode  = iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE
)

func TestRevocationsOfUsersAndSessions(t *testing.T) {
	t.Parallel()
	w := start(t)
	before := w.view().Revision
	at, err := w.revoke(user, "okta/ana", false)
	must(t, err)
	ring := func() *keyring.Snapshot { return w.view().Keyring }
	if ring().Revoked("s", "okta/ana", before) == nil || ring().Revoked("s", "okta/ana", at) != nil || ring().Blocked("okta/ana") != nil {
		t.Error("sessions from before are refused, later ones are not")
	}
	again, err := w.revoke(user, "okta/ana", true)
	must(t, err)
	if !after(again, at) || ring().Blocked("okta/ana") == nil {
		t.Error("block")
	}
	_, err = w.revoke(user, "okta/ana", false)
	must(t, err)
	if r := ring().Blocked("okta/ana"); r == nil || !r.ExpiresAt.IsZero() {
		t.Errorf("a later word without block lifted it: %+v", r)
	}
	_, err = w.revoke(session, "sid-1", false)
	must(t, err)
	w.clock.advance(keyring.MaxSession + 2*keyring.Skew)
	w.eventually("pruning", func() bool { return ring().Revocations[keyring.RevokeSession]["sid-1"] == nil })
	if ring().Blocked("okta/ana") == nil {
		t.Error("a block was pruned")
	}
	must(t, second(w.Lift(t.Context(), "admin/ana", keyring.RevokeSubject, "okta/ana")))
	if ring().Revoked("s", "okta/ana", before) != nil {
		t.Error("it still stands after it was lifted")
	}
	_, err = w.Lift(t.Context(), "admin/ana", keyring.RevokeSubject, "okta/ana")
	wantKind(t, "lift again", err, fault.NotFound, "no revocation")
	if n := len(w.trail.with(audit.KindRevocation, "value", "okta/ana")); n != 3 {
		t.Errorf("%d records of it", n)
	}
	if len(w.trail.with(audit.KindAdmin, "action", "revocation.lift")) != 1 {
		t.Error("the lift is not recorded")
	}
}

func TestRevokeRefuses(t *testing.T) {
	t.Parallel()
	w := start(t)
	for what, tc := range map[string]struct {
		target iapmeshv1.RevokeTarget
		value  string
		block  bool
		kind   fault.Kind
	}{
		"nothing":               {0, "x", false, fault.Invalid},
		"a session, blocked":    {session, "x", true, fault.Invalid},
		"no session's id":       {session, "a/b", false, fault.Invalid},
		"an e-mail":             {user, "ana@example.com", false, fault.Invalid},
		"an unknown node":       {onNode, "n-x", false, fault.NotFound},
		"an unknown key":        {signing, "s-x", false, fault.NotFound},
		"a user with a newline": {user, "okta/a\nb", false, fault.Invalid},
	} {
		before := w.view().Revision
		_, err := w.revoke(tc.target, tc.value, tc.block)
		wantKind(t, what, err, tc.kind, "")
		if w.view().Revision != before {
			t.Errorf("%s: something was written", what)
		}
	}
}

func TestRevokingANodeAndASigningKey(t *testing.T) {
	t.Parallel()
	w := start(t)
	j, kept := w.joined(w.boot, "web-1", "eu-west"), w.joined(w.boot, "web-2", "eu-west")
	kid := w.view().Keyring.ActiveSessionKey(kept.id()).KID
	_, err := w.revoke(onNode, "web-1", false)
	must(t, err)
	if n := w.node(j); n.State != keyring.NodeRevoked || n.Reason != "test" || w.view().Keyring.ActiveSessionKey(j.id()) != nil {
		t.Errorf("node: %+v", n)
	}
	_, err = w.Join(t.Context(), j.attempt())
	wantKind(t, "it joins again", err, fault.Denied, "begin anew")
	_, err = w.Renew(t.Context(), j.id(), j.body.Csr)
	wantKind(t, "it renews", err, fault.Denied, "revoked")
	_, err = w.Confirm(t.Context(), j.id())
	wantKind(t, "it confirms", err, fault.Conflict, "revoked")
	_, err = w.revoke(signing, kid, false)
	must(t, err)
	if k := w.view().Keyring.SigningKeys[kid]; k.State != keyring.SigningRevoked {
		t.Errorf("signing key: %s", k.State)
	}
	next := newKey(t) // its holder sees the slot empty
	must(t, second(w.AnnounceSigningKey(t.Context(), kept.id(), &iapmeshv1.AnnounceSigningKeyRequest{PublicKey: public(next), Proof: sign(next, kept.id())})))
	if k := w.view().Keyring.ActiveSessionKey(kept.id()); k == nil || k.KID == kid {
		t.Errorf("the next key does not sign at once: %+v", k)
	}
	_, err = w.AnnounceSigningKey(t.Context(), kept.id(), &iapmeshv1.AnnounceSigningKeyRequest{PublicKey: public(kept.session), Proof: sign(kept.session, kept.id())})
	wantKind(t, "the revoked key again", err, fault.Conflict, "revoked")
}

func TestANodeEndsItsUsersSessions(t *testing.T) {
	t.Parallel()
	w := start(t)
	collector := w.joined(w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.Grants = []iapmeshv1.Role{iapmeshv1.Role_ROLE_AGGREGATOR} }), "collector", "eu-west", iapmeshv1.Role_ROLE_AGGREGATOR)
	must(t, second(w.EndSession(t.Context(), w.founder.id(), "sid-1", "okta/ana")))
	if w.view().Keyring.Revoked("sid-1", "okta/ana", w.view().Revision) == nil {
		t.Error("the session goes on")
	}
	if rs := w.trail.with(audit.KindRevocation, "value", "sid-1"); len(rs) != 1 || rs[0].Actor.Subject != "node/"+w.founder.id() {
		t.Errorf("records: %+v", rs)
	}
	_, err := w.EndSession(t.Context(), collector.id(), "sid-2", "okta/ana")
	wantKind(t, "a node that is no proxy", err, fault.Denied, "no proxy")
	var last error
	for i := 0; last == nil && i < 500; i++ {
		_, last = w.EndSession(t.Context(), w.founder.id(), fmt.Sprintf("sid-%d", i), "")
	}
	wantKind(t, "a flood", last, fault.Unavailable, "too many")
	w.clock.advance(time.Minute)
	must(t, second(w.EndSession(t.Context(), w.founder.id(), "sid-x", "")))
}

func TestReceipts(t *testing.T) {
	t.Parallel()
	w := start(t)
	live, dead := w.joined(w.boot, "live", "eu-west"), w.joined(w.boot, "dead", "us-east")
	w.everybodyReports()
	w.clock.advance(keyring.LiveWithin + time.Second)
	w.everybodyReports(dead)
	at, err := w.revoke(session, "sid-1", false)
	must(t, err)
	first, done := make(chan *iapmeshv1.Receipt, 1), make(chan error, 1)
	var last *iapmeshv1.Receipt // once it is done
	go func() {
		done <- w.WatchReceipt(t.Context(), at, func(r *iapmeshv1.Receipt) error {
			if last == nil {
				first <- r // the others come for as long as nobody reports
			}
			last = r
			return nil
		})
	}()
	if r := <-first; r.Complete || len(r.Acknowledged) != 0 || len(r.Lagging) != 3 {
		t.Errorf("before anybody reports: %+v", r)
	}
	w.Reports.Set(live.id(), &iapmeshv1.NodeReport{Revision: state.RevisionProto(at)})
	w.Reports.Set(w.founder.id(), &iapmeshv1.NodeReport{Revision: state.RevisionProto(at)})
	must(t, <-done)
	if !last.Complete || len(last.Acknowledged) != 2 || len(last.Lagging) != 1 || last.Lagging[0].NodeId != dead.id() || last.Lagging[0].Live {
		t.Errorf("the last: %+v", last)
	}
	w.eventuallyReceipt(at, keyring.ReceiptLive) // a commit of its own, which raises the revision
	w.everybodyReports(dead)
	status, err := w.Status(t.Context())
	must(t, err)
	lags := map[string]uint64{}
	for _, n := range status.Nodes {
		lags[n.Node.Id] = n.Lag
		if n.Live == (n.Node.Id == dead.id()) || n.Leader != (n.Node.Id == w.founder.id()) {
			t.Errorf("status of %s: live %v, leader %v", n.Node.Name, n.Live, n.Leader)
		}
	}
	if status.Leader != w.founder.id() || status.Term == 0 || lags[dead.id()] == 0 || lags[live.id()] != 0 {
		t.Errorf("status: term %d, lags %v", status.Term, lags)
	}
}

// A report is what a node says: nothing in it takes the leader down.
func TestEmptyReports(t *testing.T) {
	t.Parallel()
	w := start(t)
	for range 3 {
		w.Reports.Set(w.founder.id(), nil)
	}
	must(t, second(w.Status(t.Context())))
	if r := w.Reports.Receipt(w.view().Revision, w.view()); r.Complete {
		t.Errorf("receipt: %+v", r)
	}
	if id, err := control.FindNode(w.view(), "founder"); err != nil || id != w.founder.id() {
		t.Errorf("%s, %v", id, err)
	}
}
