package control_test

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/control"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func TestNothingIsLetInBehindTheListOfARestoration(t *testing.T) {
	t.Parallel()
	w := start(t)
	held, suspended, used := w.issue(nil), w.issue(nil), w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.MaxUses = proto.Uint32(1) })
	awaiting := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.NeedsApproval = true })
	px, free := w.joined(held, "px", "eu-west"), w.joined(used, "free", "eu-west")
	_, _, err := w.ScheduleKey(t.Context(), "admin/ana", &iapmeshv1.ScheduleKeyRequest{
		Key: used.ID(), RotateEvery: durationpb.New(keyring.MinRotateEvery), RotateGrace: durationpb.New(0), Rotator: w.founder.id(),
	})
	must(t, err)
	_, _, err = w.SuspendKey(t.Context(), "admin/ana", suspended.ID(), "odd")
	must(t, err)
	_, _, err = w.QuarantineNode(t.Context(), "admin/ana", "px", "odd")
	must(t, err)
	saved := w.saved()
	late := w.issue(nil)
	_, _, err = w.Revoke(t.Context(), "admin/ana", &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_USER, Value: "dev/eve", Block: true})
	must(t, err)
	_, _, err = w.Restore(t.Context(), "admin/ana", w.signed(saved))
	must(t, err)
	fresh := w.issue(nil) // is the word of an administrator of now

	w.clock.advance(keyring.MinRotateEvery)
	next, err := keyring.GenerateKey(w.pin, nil)
	must(t, err)
	_, err = w.ProposeSuccessor(t.Context(), w.founder.id(), &iapmeshv1.ProposeSuccessorRequest{KeyId: used.ID(), SuccessorPublicKey: next.PublicKey()})
	wantKind(t, "a rotator makes a key", err, fault.Conflict, "awaits an operator")
	acts := map[string]func() error{
		"resume a key that is held back":           func() error { _, _, err := w.ResumeKey(t.Context(), "admin/ana", held.ID()); return err },
		"resume a key that the snapshot knows not": func() error { _, _, err := w.ResumeKey(t.Context(), "admin/ana", late.ID()); return err },
		"resume a key that was suspended":          func() error { _, _, err := w.ResumeKey(t.Context(), "admin/ana", suspended.ID()); return err },
		"release a node that was quarantined":      func() error { _, _, err := w.ReleaseNode(t.Context(), "admin/ana", px.id(), ""); return err },
		"release a node that is held back":         func() error { _, _, err := w.ReleaseNode(t.Context(), "admin/ana", free.id(), ""); return err },
		"let a node re-bind": func() error {
			_, _, err := w.AllowRebind(t.Context(), "admin/ana", &iapmeshv1.AllowRebindRequest{Node: px.id(), Key: fresh.ID()})
			return err
		},
		"rotate a key that is used up": func() error {
			_, _, _, err := w.RotateKey(t.Context(), "admin/ana", &iapmeshv1.RotateKeyRequest{Key: used.ID(), SuccessorPublicKey: newSecret(t, w).PublicKey()})
			return err
		},
		"lift a revocation": func() error { _, err := w.Lift(t.Context(), "admin/ana", keyring.RevokeSubject, "dev/eve"); return err },
		"join": func() error {
			_, err := w.Join(t.Context(), newJoiner(t, fresh, "new", "eu-west").attempt())
			return err
		},
	}
	digest := control.RestorationStatus(w.view()).ListDigest
	for name, act := range acts {
		kind := fault.Conflict
		if name == "join" {
			kind = fault.Unavailable // a joiner waits
		}
		wantKind(t, name, act(), kind, "iapmesh snapshot pending, then confirm")
	}
	if _, _, _, err := w.ApproveKey(t.Context(), "admin/bob", awaiting.ID()); err == nil {
		t.Error("a key that is held back was approved")
	}
	for _, id := range []string{held.ID(), late.ID(), suspended.ID(), awaiting.ID()} {
		if got := w.key(id).State; got != keyring.KeySuspended {
			t.Errorf("key %s is %s", id, got)
		}
	}

	// What refuses more goes on, and the list alone gives back.
	_, _, err = w.SuspendKey(t.Context(), "admin/ana", fresh.ID(), "odd")
	must(t, err)
	_, _, err = w.Revoke(t.Context(), "admin/ana", &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE, Value: px.id()})
	must(t, err)
	_, _, _, err = w.RevokeKey(t.Context(), "admin/ana", revokeKey(late.ID()))
	must(t, err)
	if string(digest) != string(control.RestorationStatus(w.view()).ListDigest) {
		t.Error("acts on what is not on the list changed it")
	}
	w.confirm()
	if w.key(held.ID()).State != keyring.KeyActive || w.node(free).State != keyring.NodeActive || w.node(px).State != keyring.NodeRevoked || w.key(late.ID()).State != keyring.KeyRevoked {
		t.Errorf("confirmed: %s, %s, %s, %s", w.key(held.ID()).State, w.node(free).State, w.node(px).State, w.key(late.ID()).State)
	}
	for _, name := range []string{"resume a key that was suspended", "lift a revocation"} {
		if err := acts[name](); err != nil {
			t.Errorf("%s, once the restoration is confirmed: %v", name, err)
		}
	}
	if _, _, _, err := w.ApproveKey(t.Context(), "admin/bob", awaiting.ID()); err != nil {
		t.Errorf("approve, once the restoration is confirmed: %v", err)
	}
}

func newSecret(t *testing.T, w *world) keyring.ProvisioningSecret {
	t.Helper()
	secret, err := keyring.GenerateKey(w.pin, nil)
	must(t, err)
	return secret
}
