package control_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// What a restoration suspended is resumed to where it was, and no further: else resuming stood for the second administrator's word, for
// the rotator's that the secret is stored, and for a key's that had given its place up.
func TestAKeyThatARestorationSuspendedResumesToWhatItWas(t *testing.T) {
	t.Parallel()
	w := start(t)
	must(t, second(w.Apply(t.Context(), "admin/ana", apply(t, fourEyes))))
	listed := w.issue(func(r *iapmeshv1.IssueKeyRequest) { grantsControl(r); r.Name = "listed" })
	saved := w.saved()
	unlisted := w.issue(func(r *iapmeshv1.IssueKeyRequest) { grantsControl(r); r.Name = "unlisted" })
	scheduled := w.scheduled("edge")
	w.ask("edge")
	proposal, err := w.propose(w.founder, scheduled.ID())
	must(t, err)
	rotated := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.Name = "rotated" })
	_, _, _, err = w.RotateKey(t.Context(), "admin/ana", &iapmeshv1.RotateKeyRequest{Key: "rotated", SuccessorPublicKey: public(newKey(t)), Grace: durationpb.New(time.Hour)})
	must(t, err)

	_, _, err = w.Restore(t.Context(), "admin/ana", w.signed(saved))
	must(t, err)
	w.confirm(listed.ID())
	for _, id := range []string{listed.ID(), unlisted.ID(), scheduled.ID(), proposal.ID(), rotated.ID()} {
		if k := w.key(id); k.State != keyring.KeySuspended {
			t.Fatalf("key %s is %s after the confirmation", k.Name, k.State)
		}
		_, _, err := w.ResumeKey(t.Context(), "admin/ana", id)
		must(t, err)
	}
	for _, secret := range []keyring.ProvisioningSecret{listed, unlisted} {
		if k := w.key(secret.ID()); !k.AwaitsApproval() {
			t.Errorf("key %s, which nobody approved, is %s", k.Name, k.State)
		}
		_, err := w.Join(t.Context(), newJoiner(t, secret, "alone", "eu-west", iapmeshv1.Role_ROLE_CONTROL).attempt())
		wantKind(t, "join", err, fault.Denied, "awaits the approval")
		_, _, _, err = w.ApproveKey(t.Context(), "admin/ana", secret.ID())
		wantKind(t, "approve", err, fault.Denied, "takes another administrator")
	}
	if k := w.key(proposal.ID()); !k.Proposed() {
		t.Errorf("the proposal is %s", k.State)
	}
	if k := w.key(rotated.ID()); k.State != keyring.KeyRetiring {
		t.Errorf("the rotated key is %s", k.State)
	}
	must(t, w.complete(w.founder, scheduled.ID(), proposal.ID()))
	for id, want := range map[string]keyring.KeyState{scheduled.ID(): keyring.KeyRetiring, proposal.ID(): keyring.KeyActive} {
		if k := w.key(id); k.State != want {
			t.Errorf("after the completion: %s, want %s", k.State, want)
		}
	}
	// A key that a rotator made, and completed, is resumed to active.
	_, _, err = w.SuspendKey(t.Context(), "admin/ana", proposal.ID(), "")
	must(t, err)
	k, _, err := w.ResumeKey(t.Context(), "admin/ana", proposal.ID())
	if err != nil || k.State != keyring.KeyActive {
		t.Errorf("resumed: %v, %v", k, err)
	}
}

// One administrator alone makes no key that grants control, nor by way of a node: the rotator is who makes the secret, and who named it
// does not approve what it made.
func TestWhoNamedTheRotatorDoesNotApproveItsProposal(t *testing.T) {
	t.Parallel()
	w := start(t)
	secret := w.issue(func(r *iapmeshv1.IssueKeyRequest) { grantsControl(r); r.Name = "controls" })
	must(t, second(w.Apply(t.Context(), "admin/ana", apply(t, fourEyes))))
	w.joined(w.boot, "other", "eu-west")
	schedule := func(by, rotator string, every time.Duration) {
		t.Helper()
		must(t, second2(w.ScheduleKey(t.Context(), by, &iapmeshv1.ScheduleKeyRequest{Key: secret.ID(), RotateEvery: durationpb.New(every), Rotator: rotator})))
	}
	schedule("admin/ben", "other", 7*24*time.Hour)
	schedule("admin/ana", "founder", 7*24*time.Hour)
	schedule("admin/ben", "founder", 14*24*time.Hour) // how often is no matter of whom
	w.ask("controls")
	next, err := w.propose(w.founder, secret.ID())
	wantKind(t, "propose", err, fault.Denied, "awaits an administrator")
	_, _, _, err = w.ApproveKey(t.Context(), "admin/ana", next.ID())
	wantKind(t, "approve", err, fault.Denied, "admin/ana named node "+w.founder.id())
	wantKind(t, "complete", w.complete(w.founder, secret.ID(), next.ID()), fault.Denied, "awaits the approval")
	_, _, _, err = w.ApproveKey(t.Context(), "admin/ben", next.ID())
	must(t, err)
	must(t, w.complete(w.founder, secret.ID(), next.ID()))
	if k := w.key(next.ID()); k.State != keyring.KeyActive || k.ScheduledBy != "admin/ana" {
		t.Errorf("completed: %+v", k)
	}
}

// While a restoration awaits its confirmation no rotator makes a key, not even of one that is used up and so is not held back.
func TestNobodyRotatesWhileARestorationIsUnconfirmed(t *testing.T) {
	t.Parallel()
	w := start(t)
	scheduled := func(name string) keyring.ProvisioningSecret {
		return w.issue(func(r *iapmeshv1.IssueKeyRequest) {
			r.Name, r.MaxUses, r.Ttl = name, proto.Uint32(1), durationpb.New(60*24*time.Hour)
			r.RotateEvery, r.Rotator = durationpb.New(7*24*time.Hour), "founder"
		})
	}
	usedUp := scheduled("edge")
	w.joined(usedUp, "px", "eu-west")
	saved := w.saved()
	later := scheduled("later")
	w.joined(later, "py", "eu-west")
	_, _, err := w.Restore(t.Context(), "admin/ana", w.signed(saved))
	must(t, err)
	if k := w.key(later.ID()); k.State != keyring.KeySuspended {
		t.Errorf("a used-up key that the snapshot does not know, and that would be rotated, is %s", k.State)
	}
	w.ask(usedUp.ID())
	_, err = w.propose(w.founder, usedUp.ID())
	wantKind(t, "propose", err, fault.Conflict, "awaits an operator")
	wantKind(t, "complete", w.complete(w.founder, usedUp.ID(), later.ID()), fault.Conflict, "awaits an operator")
	w.confirm()
	next, err := w.propose(w.founder, usedUp.ID())
	must(t, err)
	must(t, w.complete(w.founder, usedUp.ID(), next.ID()))
	k, _, err := w.ResumeKey(t.Context(), "admin/ana", later.ID())
	if err != nil || k.State != keyring.KeyExhausted {
		t.Errorf("resumed: %v, %v", k, err)
	}
}

// A proposal that a restoration suspended does not come back beside the one that its rotator has made instead.
func TestOnlyOneProposalIsOpen(t *testing.T) {
	t.Parallel()
	w := start(t)
	scheduled := w.scheduled("edge")
	saved := w.saved()
	w.ask("edge")
	lost, err := w.propose(w.founder, scheduled.ID())
	must(t, err)
	_, _, err = w.Restore(t.Context(), "admin/ana", w.signed(saved))
	must(t, err)
	w.confirm()
	next, err := w.propose(w.founder, scheduled.ID())
	must(t, err)
	_, _, err = w.ResumeKey(t.Context(), "admin/ana", lost.ID())
	wantKind(t, "resume", err, fault.Conflict, "has proposed "+next.ID())
	must(t, w.complete(w.founder, scheduled.ID(), next.ID()))
}
