package control_test

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// proof is what a node asks to be bound with.
func (w *world) proof(j *joiner, from, to string) *iapmeshv1.RebindRequest {
	return &iapmeshv1.RebindRequest{FromKey: from, ToKey: to, Signature: ed25519.Sign(j.node, keyring.RebindMessage("m-1", j.id(), from, to))}
}

func (w *world) rebind(j *joiner, from, to string) error {
	_, err := w.Rebind(w.t.Context(), j.id(), j.source, w.proof(j, from, to))
	return err
}

// rotate gives a key a successor.
func (w *world) rotate(id string) string {
	w.t.Helper()
	secret, err := keyring.GenerateKey(w.pin, nil)
	must(w.t, err)
	_, _, _, err = w.RotateKey(w.t.Context(), "admin/ana", &iapmeshv1.RotateKeyRequest{Key: id, SuccessorPublicKey: secret.PublicKey()})
	must(w.t, err)
	return secret.ID()
}

func (w *world) revokeKey(id string, cascade iapmeshv1.Cascade) {
	w.t.Helper()
	_, _, _, err := w.RevokeKey(w.t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: id, Cascade: cascade, Reason: "leaked"})
	must(w.t, err)
}

func (w *world) allow(j *joiner, key string) error {
	_, _, err := w.AllowRebind(w.t.Context(), "admin/ana", &iapmeshv1.AllowRebindRequest{Node: j.id(), Key: key, Reason: "examined"})
	return err
}

func TestANodeBindsToASuccessorByProof(t *testing.T) {
	t.Parallel()
	w := start(t)
	first := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.MaxActive = 2 })
	a, b := w.joined(first, "a", "eu-west"), w.joined(first, "b", "eu-west")
	second := w.rotate(first.ID())
	third := w.rotate(second)

	forged := w.proof(b, first.ID(), second) // by another node's key
	for name, req := range map[string]*iapmeshv1.RebindRequest{
		"signed by another": forged,
		"for another step":  {FromKey: first.ID(), ToKey: second, Signature: w.proof(a, second, third).Signature},
		"unsigned":          {FromKey: first.ID(), ToKey: second},
	} {
		_, err := w.Rebind(t.Context(), a.id(), a.source, req)
		wantKind(t, name, err, fault.Denied, "proof")
	}
	wantKind(t, "two steps at once", w.rebind(a, first.ID(), third), fault.Conflict, "does not succeed")
	wantKind(t, "from a key that it is not bound to", w.rebind(a, second, third), fault.Conflict, "it is bound to")
	wantKind(t, "to a key that is not there", w.rebind(a, first.ID(), "abcdefghijklmnop"), fault.NotFound, "no provisioning key")
	if n := w.node(a); n.BoundKey != first.ID() {
		t.Fatalf("it is bound to %s", n.BoundKey)
	}

	must(t, w.rebind(a, first.ID(), second))
	written := w.written(state.NodePath(a.id()))
	must(t, w.rebind(a, first.ID(), second)) // the answer was lost
	if w.written(state.NodePath(a.id())) != written || len(w.trail.with(audit.KindRotation, "to", second)) != 1 {
		t.Error("the same again is written or recorded again")
	}
	must(t, w.rebind(a, second, third))
	if n := w.node(a); n.BoundKey != third || n.ProvisioningKey != first.ID() {
		t.Errorf("bound to %s, joined under %s", n.BoundKey, n.ProvisioningKey)
	}
	records := w.trail.with(audit.KindRotation, "to", third)
	if len(records) != 1 || records[0].Detail["parent"] != first.ID() || records[0].Detail["signature"] != hex.EncodeToString(w.proof(a, second, third).Signature) {
		t.Errorf("records of the step: %v", records)
	}

	// A place under max_active goes with the node.
	must(t, w.rebind(b, first.ID(), second))
	must(t, w.rebind(b, second, third))
	if have := w.view().Keyring.CountActive(third, ""); have != 2 {
		t.Errorf("%d nodes take a place under the last key", have)
	}
}

func TestMaxActiveHoldsForRebinding(t *testing.T) {
	t.Parallel()
	w := start(t)
	old := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.MaxActive = 1 })
	a := w.joined(old, "a", "eu-west")
	next, err := keyring.GenerateKey(w.pin, nil)
	must(t, err)
	_, _, _, err = w.RotateKey(t.Context(), "admin/ana", &iapmeshv1.RotateKeyRequest{Key: old.ID(), SuccessorPublicKey: next.PublicKey()})
	must(t, err)
	early := newJoiner(t, next, "b", "eu-west")
	_, err = w.Join(t.Context(), early.attempt())
	wantKind(t, "one more than both keys bear, faster than a", err, fault.Exhausted, "max_active")
	must(t, w.rebind(a, old.ID(), next.ID()))
	_, err = w.Join(t.Context(), early.attempt())
	wantKind(t, "one more than the key bears", err, fault.Exhausted, "max_active")
	_, _, err = w.RemoveNode(t.Context(), "admin/ana", "a", "scrapped")
	must(t, err)
	b := w.joined(next, "c", "eu-west")
	_, _, err = w.RemoveNode(t.Context(), "admin/ana", "c", "scrapped")
	must(t, err)
	if w.node(b).State != keyring.NodeDeparted || w.node(b).Reason != "scrapped" {
		t.Errorf("b is %s: %s", w.node(b).State, w.node(b).Reason)
	}
}

func TestUnderARevokedKeyNodesBindByWordAlone(t *testing.T) {
	t.Parallel()
	w := start(t)
	bad := w.issue(nil)
	a, b := w.joined(bad, "a", "eu-west"), w.joined(bad, "b", "eu-west")
	next := w.rotate(bad.ID())
	w.revokeKey(bad.ID(), iapmeshv1.Cascade_CASCADE_QUARANTINE)
	other := w.issue(nil).ID()
	wantKind(t, "a quarantined node", w.rebind(a, bad.ID(), next), fault.Conflict, "quarantined")
	_, _, err := w.ReleaseNode(t.Context(), "admin/ana", "a", "examined")
	must(t, err)
	wantKind(t, "without a word", w.rebind(a, bad.ID(), next), fault.Denied, "an operator's word only")
	must(t, w.allow(a, other))
	wantKind(t, "to another than the word says", w.rebind(a, bad.ID(), next), fault.Denied, "an operator's word only")
	must(t, w.rebind(a, bad.ID(), other))
	if n := w.node(a); n.BoundKey != other || n.RebindTo != "" || n.ProvisioningKey != bad.ID() {
		t.Errorf("bound to %s, word %q, joined under %s", n.BoundKey, n.RebindTo, n.ProvisioningKey)
	}
	if len(w.trail.with(audit.KindAdmin, "rebind_to", other)) != 1 || len(w.trail.with(audit.KindRotation, "by_word", "yes")) != 1 {
		t.Error("the word or its use is not on record")
	}

	// A word ends with its key, and with its node.
	must(t, w.allow(b, next))
	w.revokeKey(next, iapmeshv1.Cascade_CASCADE_KEEP)
	w.eventually("end of the word", func() bool { return w.node(b).RebindTo == "" })
	must(t, w.allow(b, other))
	_, _, err = w.Revoke(t.Context(), "admin/ana", &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE, Value: "b"})
	must(t, err)
	if n := w.node(b); n.RebindTo != "" {
		t.Errorf("the word for a revoked node stands: %s", n.RebindTo)
	}
	wantKind(t, "a word for a revoked node", w.allow(b, other), fault.Conflict, "revoked")
}

func TestAWordCoversTheNode(t *testing.T) {
	t.Parallel()
	w := start(t)
	narrow := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.RouteSelector = "tag:team=web" })
	a := w.joined(narrow, "a", "eu-west")
	for name, tc := range map[string]struct {
		adjust func(*iapmeshv1.IssueKeyRequest)
		says   string
	}{
		"every route":    {nil, "route_selector"},
		"other routes":   {func(r *iapmeshv1.IssueKeyRequest) { r.RouteSelector = "tag:team=db" }, "route_selector"},
		"another region": {func(r *iapmeshv1.IssueKeyRequest) { r.RouteSelector, r.Regions = "tag:team=web", []string{"ap-south"} }, "regions"},
		"another role": {func(r *iapmeshv1.IssueKeyRequest) {
			r.RouteSelector, r.Grants = "tag:team=web", []iapmeshv1.Role{iapmeshv1.Role_ROLE_AGGREGATOR}
		}, "grants"},
	} {
		wantKind(t, name, w.allow(a, w.issue(tc.adjust).ID()), fault.Denied, tc.says)
	}
	elsewhere := w.issue(func(r *iapmeshv1.IssueKeyRequest) {
		r.RouteSelector, r.SourceCidrs = "tag:team=web", []string{"10.0.0.0/8"}
	}).ID()
	must(t, w.allow(a, elsewhere)) // the operator cannot know from where it comes
	wantKind(t, "from another network", w.rebind(a, narrow.ID(), elsewhere), fault.Denied, "source_cidrs")
	a.source = netip.MustParseAddr("10.1.1.1")
	must(t, w.rebind(a, narrow.ID(), elsewhere))
}

func TestQuarantineAndRelease(t *testing.T) {
	t.Parallel()
	w := start(t)
	a := w.joined(w.boot, "a", "us-east")
	w.eventually("membership", func() bool { return w.opens(a, keyring.AudienceProxies) })
	_, _, err := w.QuarantineNode(t.Context(), "admin/ana", "a", "odd")
	must(t, err)
	if n := w.node(a); n.State != keyring.NodeQuarantined || n.Reason != "odd" {
		t.Errorf("it is %s: %s", n.State, n.Reason)
	}
	for _, k := range w.view().Keyring.SigningKeysOf(a.id()) {
		if k.State != keyring.SigningRevoked {
			t.Errorf("its session key is %s", k.State)
		}
	}
	w.eventually("it opens nothing any more", func() bool { return !w.opens(a, keyring.AudienceProxies) && !w.opens(a, keyring.AudienceGossip) })
	if _, _, err := w.QuarantineNode(t.Context(), "admin/ana", "a", "again"); err != nil || len(w.trail.with(audit.KindRevocation, "action", "node.quarantine")) != 1 {
		t.Errorf("again: %v", err)
	}
	_, err = w.Renew(t.Context(), a.id(), a.body.Csr)
	wantKind(t, "renew", err, fault.Denied, "quarantined")

	taken := w.joined(w.boot, "b", "us-east")
	_, _, err = w.ReleaseNode(t.Context(), "admin/ana", a.id(), "examined")
	must(t, err)
	w.eventually("membership again", func() bool {
		return w.opens(a, keyring.AudienceProxies) && w.opens(a, keyring.AssertAudience("us-east", ""))
	})
	fresh := newKey(t)
	_, err = w.AnnounceSigningKey(t.Context(), a.id(), &iapmeshv1.AnnounceSigningKeyRequest{PublicKey: public(fresh), Proof: ed25519.Sign(fresh, keyring.AnnouncementMessage(a.id()))})
	must(t, err)
	if k := w.view().Keyring.ActiveSessionKey(a.id()); k == nil || !public(fresh).Equal(ed25519.PublicKey(k.PublicKey)) {
		t.Error("it does not sign by its new key at once")
	}

	// Its name may be another's by then.
	_, _, err = w.QuarantineNode(t.Context(), "admin/ana", "b", "odd")
	must(t, err)
	w.joined(w.boot, "b", "us-east")
	_, _, err = w.ReleaseNode(t.Context(), "admin/ana", taken.id(), "")
	wantKind(t, "release beside one of the same name", err, fault.Conflict, `name "b"`)
	for what, err := range map[string]error{
		"quarantine": errOf(w.QuarantineNode(t.Context(), "admin/ana", "founder", "odd")),
		"remove":     errOf(w.RemoveNode(t.Context(), "admin/ana", "founder", "")),
	} {
		wantKind(t, what+" the leader", err, fault.Denied, "leads")
	}
}

func errOf[A, B any](_ A, _ B, err error) error { return err }

func TestASilentNodeFreesItsPlaceAndItsTokensCount(t *testing.T) {
	t.Parallel()
	w := start(t)
	key := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.MaxActive, r.Ttl = 1, durationpb.New(30*24*time.Hour) })
	a := w.joined(key, "a", "us-east")
	stays := w.joined(w.boot, "stays", "us-east")
	w.everybodyReports(a)
	w.pass(keyring.LapseAfter-time.Minute, a)
	_, err := w.Renew(t.Context(), stays.id(), stays.body.Csr) // a commit, at that time
	must(t, err)
	w.settled()
	if s := w.node(a).State; s != keyring.NodeActive {
		t.Fatalf("it is %s before a day has passed", s)
	}
	w.pass(time.Minute, a)
	w.eventually("lapse", func() bool { return w.node(a).State == keyring.NodeLapsed })
	_, err = w.Join(t.Context(), newJoiner(t, key, "early", "us-east").attempt())
	wantKind(t, "its place while it is lapsed", err, fault.Exhausted, "max_active")
	w.pass(6*24*time.Hour, a)
	w.eventually("departure", func() bool { return w.node(a).State == keyring.NodeDeparted })
	if n := w.node(stays); n.State != keyring.NodeActive {
		t.Errorf("the one that reports is %s", n.State)
	}
	if n := w.node(a); !n.TokensCount() {
		t.Error("its tokens count no more")
	}
	for _, k := range w.view().Keyring.SigningKeysOf(a.id()) {
		if k.State != keyring.SigningVerifyOnly && k.State != keyring.SigningRetired {
			t.Errorf("its session key is %s", k.State)
		}
	}
	w.joined(key, "late", "us-east")
	_, err = w.Renew(t.Context(), a.id(), a.body.Csr)
	wantKind(t, "a departed node", err, fault.Denied, "departed")
	if have := w.view().Keyring.CountActive(key.ID(), ""); have != 1 {
		t.Errorf("%d nodes take a place under its key", have)
	}
}

func TestNodesComeBackWithinAQuota(t *testing.T) {
	t.Parallel()
	w := start(t)
	key, other := w.issue(nil), w.issue(nil)
	var stack []*joiner
	for i := range control.RecoveriesPerHour + 2 {
		stack = append(stack, w.joined(key, fmt.Sprint("n", i), "us-east"))
	}
	elsewhere := w.joined(other, "elsewhere", "us-east")
	ctl := w.joined(w.boot, "ctl", "us-east", iapmeshv1.Role_ROLE_CONTROL)
	w.clock.advance(keyring.LapseAfter)
	w.eventually("lapse", func() bool {
		return !slices.ContainsFunc(append(stack, elsewhere, ctl), func(j *joiner) bool { return w.node(j).State != keyring.NodeLapsed })
	})
	renew := func(j *joiner) error {
		_, err := w.Renew(t.Context(), j.id(), j.body.Csr)
		return err
	}
	// Before it is back, a node gets neither the state nor a say.
	_, err := w.server(as(stack[0]), nil).AnnounceSigningKey(t.Context(), &iapmeshv1.AnnounceSigningKeyRequest{})
	wantKind(t, "a lapsed node announces", err, fault.Denied, "has lapsed")
	_, err = w.server(as(stack[0]), nil).EndSession(t.Context(), &iapmeshv1.EndSessionRequest{SessionId: "4f1c0000"})
	wantKind(t, "a lapsed node ends a session", err, fault.Denied, "has lapsed")
	// Its report is heard, and the answer tells it so: its own view may not.
	told := func(j *joiner) bool {
		s := &reports{ctx: t.Context(), in: []*iapmeshv1.ReportRequest{{Report: &iapmeshv1.NodeReport{}}}}
		must(t, w.server(as(j), nil).Report(s))
		return s.out[0].Lapsed
	}
	if !told(stack[0]) {
		t.Error("a lapsed node that reports is not told that it has lapsed")
	}
	for _, j := range stack[:control.RecoveriesPerHour] {
		must(t, renew(j))
	}
	if told(stack[0]) {
		t.Error("a node that is back is told that it has lapsed")
	}
	must(t, renew(stack[0])) // it is back: that is no recovery
	err = renew(stack[control.RecoveriesPerHour])
	wantKind(t, "one more", err, fault.Unavailable, "20 nodes of key "+key.ID()+" have come back within the hour")
	var put *control.PutOffError
	if !errors.As(err, &put) || put.After <= 0 || put.After > time.Hour {
		t.Errorf("put off: %v", err)
	}
	if s := w.node(stack[control.RecoveriesPerHour]).State; s != keyring.NodeLapsed {
		t.Errorf("the one that was put off is %s", s)
	}
	must(t, renew(elsewhere)) // each key has its own quota
	must(t, renew(ctl))
	if len(w.trail.with(audit.KindAdmin, "action", "node.recover")) != control.RecoveriesPerHour+2 {
		t.Errorf("%d recoveries on record", len(w.trail.with(audit.KindAdmin, "action", "node.recover")))
	}
	w.clock.advance(time.Hour)
	must(t, renew(stack[control.RecoveriesPerHour]))
	if s := w.node(stack[control.RecoveriesPerHour]).State; s != keyring.NodeActive {
		t.Errorf("an hour later it is %s", s)
	}
}

// What a stolen disk of a narrow node opens and signs: its own slot's, and nothing else.
func TestANarrowNodeOpensItsOwnAudienceAlone(t *testing.T) {
	t.Parallel()
	w := start(t)
	narrow := w.joined(w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.RouteSelector = "tag:team=web" }), "narrow", "us-east")
	other := w.joined(w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.RouteSelector = "tag:team=db" }), "other", "us-east")
	wide := w.joined(w.boot, "wide", "us-east")
	own, foreign := keyring.AssertAudience("us-east", "tag:team=web"), []string{
		keyring.AssertAudience("us-east", ""), keyring.AssertAudience("us-east", "tag:team=db"), keyring.AssertAudience("eu-west", ""), keyring.AudienceControl,
	}
	w.eventually("audiences", func() bool {
		return w.opens(narrow, own) && w.opens(other, foreign[1]) && w.opens(wide, foreign[0]) && w.opens(w.founder, foreign[2])
	})
	for _, audience := range foreign {
		if w.opens(narrow, audience) {
			t.Errorf("it opens %s", audience)
		}
	}
	// Its selector comes from its key, not from what it says, at each announcement.
	fresh := newKey(t)
	_, err := w.AnnounceSigningKey(t.Context(), narrow.id(), &iapmeshv1.AnnounceSigningKeyRequest{PublicKey: public(fresh), Proof: ed25519.Sign(fresh, keyring.AnnouncementMessage(narrow.id()))})
	must(t, err)
	for _, k := range w.view().Keyring.SigningKeysOf(narrow.id()) {
		if k.RouteSelector != "tag:team=web" || k.Region != "us-east" {
			t.Errorf("its session key is for %q in %s", k.RouteSelector, k.Region)
		}
	}
	// Nor does renewing change region or selector: the certificate is by the record.
	answer, err := w.Renew(t.Context(), narrow.id(), narrow.body.Csr)
	must(t, err)
	if got := spiffeID(t, answer.Certificate); got.Region != "us-east" || got.Node != narrow.id() {
		t.Errorf("its certificate is of %v", got)
	}
}

func spiffeID(t *testing.T, der []byte) keyring.ID {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	id, err := keyring.ParseID(cert)
	must(t, err)
	return id
}
