package control_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/resource"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// What took two administrators to make takes two to succeed, whatever the Settings say then: else the first of them would rotate it alone.
func TestTheSuccessorOfAKeyThatTookTwoAdministratorsTakesTwo(t *testing.T) {
	t.Parallel()
	for name, issue := range map[string]func(w *world) keyring.ProvisioningSecret{
		"as was asked": func(w *world) keyring.ProvisioningSecret {
			return w.issue(func(r *iapmeshv1.IssueKeyRequest) { grantsControl(r); r.Name, r.NeedsApproval = "controls", true })
		},
		"as was asked, for proxies": func(w *world) keyring.ProvisioningSecret {
			return w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.Name, r.NeedsApproval = "controls", true })
		},
		"by Settings that are gone": func(w *world) keyring.ProvisioningSecret {
			must(w.t, second(w.Apply(w.t.Context(), "admin/ana", apply(w.t, fourEyes))))
			secret := w.issue(func(r *iapmeshv1.IssueKeyRequest) { grantsControl(r); r.Name = "controls" })
			must(w.t, second(w.Delete(w.t.Context(), "admin/ana", resource.Ref{Kind: "Settings", Name: "mesh"})))
			return secret
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t)
			key := issue(w)
			must(t, fourth(w.ApproveKey(t.Context(), "admin/ben", key.ID())))
			for range 2 { // the successor, and its own
				next, err := keyring.GenerateKey(w.pin, nil)
				must(t, err)
				before, after, _, err := w.RotateKey(t.Context(), "admin/ana", &iapmeshv1.RotateKeyRequest{Key: "controls", SuccessorPublicKey: next.PublicKey(), Grace: durationpb.New(time.Hour)})
				must(t, err)
				if !after.AwaitsApproval() || before.State != keyring.KeyActive || before.Successor != "" {
					t.Fatalf("%+v, then %+v", before, after)
				}
				_, err = w.Join(t.Context(), newJoiner(t, next, "early", "eu-west").attempt())
				wantKind(t, "join by the successor", err, fault.Denied, "awaits the approval of another administrator than admin/ana")
				wantKind(t, "by who asked for it", fourth(w.ApproveKey(t.Context(), "admin/ana", next.ID())), fault.Denied, "takes another administrator")
				must(t, fourth(w.ApproveKey(t.Context(), "admin/ben", next.ID())))
				if k := w.key(next.ID()); k.State != keyring.KeyActive || !k.NeedsApproval {
					t.Errorf("approved: %+v", k)
				}
			}
		})
	}
}

func TestARotatorsSuccessorOfSuchAKeyTakesTwo(t *testing.T) {
	t.Parallel()
	w := start(t)
	key := w.issue(func(r *iapmeshv1.IssueKeyRequest) {
		r.Name, r.NeedsApproval, r.Ttl = "edge", true, durationpb.New(60*24*time.Hour)
		r.RotateEvery, r.Rotator = durationpb.New(7*24*time.Hour), "founder"
	})
	must(t, fourth(w.ApproveKey(t.Context(), "admin/ben", key.ID())))
	w.ask("edge")
	next, err := w.propose(w.founder, key.ID())
	wantKind(t, "the proposal", err, fault.Denied, "the successor awaits an administrator: iapmesh key approve "+next.ID())
	wantKind(t, "completing it", w.complete(w.founder, key.ID(), next.ID()), fault.Denied, "awaits the approval")
	wantKind(t, "by who named the rotator", fourth(w.ApproveKey(t.Context(), "admin/ana", next.ID())), fault.Denied, "takes another administrator")
	must(t, fourth(w.ApproveKey(t.Context(), "admin/ben", next.ID())))
	must(t, w.complete(w.founder, key.ID(), next.ID()))
	if k := w.key(next.ID()); k.State != keyring.KeyActive || !k.NeedsApproval || w.key(key.ID()).Successor != next.ID() {
		t.Errorf("completed: %+v", k)
	}
}
