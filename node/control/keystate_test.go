package control_test

import (
	"crypto/ed25519"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

const fourEyes = "kind: Settings\nname: mesh\nissuer: https://auth.example.com\nsign_in_host: auth.example.com\ncontrol_key_approval: true\n"

func grantsControl(r *iapmeshv1.IssueKeyRequest) {
	r.Grants = []iapmeshv1.Role{iapmeshv1.Role_ROLE_CONTROL, iapmeshv1.Role_ROLE_PROXY}
}

func TestASuspendedKeyAdmitsNobodyUntilItIsResumed(t *testing.T) {
	t.Parallel()
	w := start(t)
	secret := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.Name = "fleet" })
	before := w.joined(secret, "before", "eu-west")
	k, at, err := w.SuspendKey(t.Context(), "admin/ana", "fleet", "under investigation")
	must(t, err)
	if k.State != keyring.KeySuspended || at.IsZero() || w.key(secret.ID()).Reason != "under investigation" {
		t.Errorf("%+v at %v", k, at)
	}
	_, err = w.Join(t.Context(), newJoiner(t, secret, "meanwhile", "eu-west").attempt())
	wantKind(t, "join", err, fault.Denied, "suspended by an operator")
	if _, err := w.Confirm(t.Context(), before.id()); err != nil || w.node(before).State != keyring.NodeActive {
		t.Errorf("who had joined: %v, %v", w.node(before).State, err)
	}
	_, _, err = w.SuspendKey(t.Context(), "admin/ana", secret.ID(), "")
	wantKind(t, "again", err, fault.Conflict, "it is suspended")
	k, _, err = w.ResumeKey(t.Context(), "admin/ben", secret.ID())
	must(t, err)
	if k.State != keyring.KeyActive || k.Reason != "" {
		t.Errorf("resumed: %+v", k)
	}
	w.joined(secret, "after", "eu-west")

	// Its time runs on while it is suspended.
	must(t, third(w.SuspendKey(t.Context(), "admin/ana", "fleet", "")))
	w.clock.advance(48 * time.Hour)
	k, _, err = w.ResumeKey(t.Context(), "admin/ana", "fleet")
	must(t, err)
	if k.State != keyring.KeyExpired {
		t.Errorf("resumed after its time: %s", k.State)
	}
	for action, by := range map[string]string{"key.suspend": "admin/ana", "key.resume": "admin/ben"} {
		if rs := w.trail.with(audit.KindAdmin, "action", action); len(rs) != 2 || rs[0].Actor.Subject != by || rs[0].Detail["key"] != secret.ID() {
			t.Errorf("%s: records %+v", action, rs)
		}
	}
	if rs := w.trail.with(audit.KindAdmin, "reason", "under investigation"); len(rs) != 1 {
		t.Errorf("%d records have the reason", len(rs))
	}
	_, _, err = w.ResumeKey(t.Context(), "admin/ana", "nine")
	wantKind(t, "an unknown one", err, fault.NotFound, "nine")
}

func third[A, B any](_ A, _ B, err error) error { return err }

func TestAKeyThatGrantsControlTakesTwoAdministrators(t *testing.T) {
	t.Parallel()
	w := start(t)
	early := w.issue(grantsControl)
	if s := w.key(early.ID()).State; s != keyring.KeyActive {
		t.Errorf("without the setting: %s", s)
	}
	must(t, second(w.Apply(t.Context(), "admin/ana", apply(t, fourEyes))))
	if s := w.key(w.issue(nil).ID()).State; s != keyring.KeyActive {
		t.Errorf("a key for proxies: %s", s)
	}
	secret := w.issue(grantsControl)
	if k := w.key(secret.ID()); !k.AwaitsApproval() || w.key(early.ID()).State != keyring.KeyActive {
		t.Errorf("%+v", k)
	}
	_, err := w.Join(t.Context(), newJoiner(t, secret, "web-1", "eu-west").attempt())
	wantKind(t, "join", err, fault.Denied, "awaits the approval of another administrator than admin/ana")
	_, _, _, err = w.ApproveKey(t.Context(), "admin/ana", secret.ID())
	wantKind(t, "by who asked for it", err, fault.Denied, "takes another administrator")
	approved, predecessor, _, err := w.ApproveKey(t.Context(), "admin/ben", secret.ID())
	must(t, err)
	if approved.State != keyring.KeyActive || approved.ApprovedBy != "admin/ben" || approved.ApprovedAt.IsZero() || predecessor != nil {
		t.Errorf("approved: %+v, %+v", approved, predecessor)
	}
	w.joined(secret, "web-1", "eu-west")
	_, _, _, err = w.ApproveKey(t.Context(), "admin/ben", secret.ID())
	wantKind(t, "again", err, fault.Conflict, "awaits no approval")
	if rs := w.trail.with(audit.KindAdmin, "action", "key.approve"); len(rs) != 1 || rs[0].Actor.Subject != "admin/ben" || rs[0].Detail["issued_by"] != "admin/ana" {
		t.Errorf("records: %+v", rs)
	}

	// What was asked for under the setting needs it also when the setting is gone.
	waiting := w.issue(grantsControl)
	must(t, second(w.Delete(t.Context(), "admin/ana", resource.Ref{Kind: "Settings", Name: "mesh"})))
	if s := w.key(w.issue(grantsControl).ID()).State; s != keyring.KeyActive {
		t.Errorf("after the setting: %s", s)
	}
	_, err = w.Join(t.Context(), newJoiner(t, waiting, "web-2", "eu-west").attempt())
	wantKind(t, "join", err, fault.Denied, "awaits the approval")
	asked := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.NeedsApproval = true })
	if k := w.key(asked.ID()); !k.AwaitsApproval() {
		t.Errorf("asked for by the request: %+v", k)
	}
}

func TestASuccessorThatAwaitsApprovalTakesNothingOver(t *testing.T) {
	t.Parallel()
	w := start(t)
	secret := w.issue(func(r *iapmeshv1.IssueKeyRequest) { grantsControl(r); r.Name = "controls" })
	must(t, second(w.Apply(t.Context(), "admin/ana", apply(t, fourEyes))))
	next, err := keyring.GenerateKey(w.pin, nil)
	must(t, err)
	rotate := func(by string, pub ed25519.PublicKey) (*keyring.Key, *keyring.Key, error) {
		before, after, _, err := w.RotateKey(t.Context(), by, &iapmeshv1.RotateKeyRequest{Key: "controls", SuccessorPublicKey: pub, Grace: durationpb.New(time.Hour)})
		return before, after, err
	}
	before, after, err := rotate("admin/ana", next.PublicKey())
	must(t, err)
	if before.State != keyring.KeyActive || before.Successor != "" || !after.AwaitsApproval() || after.Predecessor != secret.ID() {
		t.Errorf("%+v, then %+v", before, after)
	}
	w.joined(secret, "meanwhile", "eu-west")
	_, err = w.Join(t.Context(), newJoiner(t, next, "early", "eu-west").attempt())
	wantKind(t, "join by the successor", err, fault.Denied, "awaits the approval")
	_, _, err = rotate("admin/ben", public(newKey(t)))
	wantKind(t, "another rotation", err, fault.Conflict, next.ID()+" awaits approval")
	_, _, _, err = w.ApproveKey(t.Context(), "admin/ana", "controls")
	wantKind(t, "by who asked for it", err, fault.Denied, "takes another administrator")

	w.clock.advance(2 * time.Hour)
	approved, old, _, err := w.ApproveKey(t.Context(), "admin/ben", "controls")
	must(t, err)
	if approved.ID != next.ID() || approved.State != keyring.KeyActive || old.State != keyring.KeyRetiring || old.GraceUntil != approved.ApprovedAt.Add(time.Hour) {
		t.Errorf("%+v after %+v", approved, old)
	}
	w.joined(secret, "in-grace", "eu-west")
	w.joined(next, "by-successor", "eu-west")
	w.clock.advance(time.Hour + 2*keyring.Skew)
	w.eventually("retirement", func() bool { return w.key(secret.ID()).State == keyring.KeyRetired })

	// A successor whose predecessor was revoked meanwhile has nothing to take over; it can be revoked in its turn.
	last := newKey(t)
	_, _, err = rotate("admin/ben", public(last))
	must(t, err)
	must(t, fourth(w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: next.ID()})))
	_, _, _, err = w.ApproveKey(t.Context(), "admin/ana", keyring.KeyID(public(last)))
	wantKind(t, "approve", err, fault.Conflict, "is revoked meanwhile")
	must(t, fourth(w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: keyring.KeyID(public(last))})))
}

func fourth[A, B, C any](_ A, _ B, _ C, err error) error { return err }

// A leader that does not understand the configuration cannot say whether it asks for an approval, and issues nothing that might need one.
func TestWithoutAConfigurationNoKeyGrantsControl(t *testing.T) {
	t.Parallel()
	w := start(t)
	m := &iapmeshv1.Manifest{Entries: []*iapmeshv1.ManifestEntry{{Kind: "Settings", Name: "mesh", Hash: make([]byte, 32)}}}
	at, err := w.engine.Commit(t.Context(), store.Txn{Puts: []store.Entry{state.PutManifest(m)}})
	must(t, err)
	w.eventually("the manifest", func() bool { return !w.view().Revision.Before(at) })
	req := &iapmeshv1.IssueKeyRequest{PublicKey: public(newKey(t)), Name: "controls"}
	grantsControl(req)
	_, _, err = w.IssueKey(t.Context(), "admin/ana", req)
	wantKind(t, "issue", err, fault.Unavailable, "the configuration is not in force")
	if k := w.key(w.issue(nil).ID()); k.State != keyring.KeyActive {
		t.Errorf("a key for proxies: %s", k.State)
	}
}

// Whose public half comes from elsewhere is nobody else of the mesh.
func TestAKeyIsNobodyElse(t *testing.T) {
	t.Parallel()
	w := start(t)
	node := w.joined(w.boot, "web-1", "eu-west")
	for what, pub := range map[string]ed25519.PublicKey{
		"is there already": w.boot.PublicKey(), "a node's": public(node.node), "a session key": public(node.session), "an administrator's": public(w.admin),
	} {
		_, _, err := w.IssueKey(t.Context(), "admin/ana", &iapmeshv1.IssueKeyRequest{PublicKey: pub, Name: "x", Grants: []iapmeshv1.Role{2}})
		wantKind(t, what, err, fault.Conflict, what)
		_, _, _, err = w.RotateKey(t.Context(), "admin/ana", &iapmeshv1.RotateKeyRequest{Key: "bootstrap", SuccessorPublicKey: pub})
		if what == "is there already" { // itself
			wantKind(t, what, err, fault.Invalid, "cannot succeed itself")
			continue
		}
		wantKind(t, what, err, fault.Conflict, what)
	}
}
