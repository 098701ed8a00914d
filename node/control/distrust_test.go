package control_test

import (
	"fmt"
	"testing"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// A node that was quarantined before it is revoked could open the assertion key of its region as well: it does not outlive the revocation,
// by whichever way that comes.
func TestRevokingAQuarantinedNodeTakesItsAssertionKey(t *testing.T) {
	t.Parallel()
	for name, revoke := range map[string]func(w *world, key string) error{
		"the node": func(w *world, _ string) error {
			blast, err := w.PreviewNodeRevocation(w.t.Context(), "web-1")
			if err == nil && len(blast.SigningKeys) == 0 {
				w.t.Error("the preview does not say that the assertion key goes")
			}
			_, _, reallyErr := w.Revoke(w.t.Context(), "admin/ana", &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE, Value: "web-1"})
			must(w.t, reallyErr)
			return err
		},
		"its key": func(w *world, key string) error {
			return fourth(w.RevokeKey(w.t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: key, Cascade: iapmeshv1.Cascade_CASCADE_KILL}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t)
			secret := w.issue(nil)
			w.joined(w.boot, "bystander", "eu-west")
			j, second := w.joined(secret, "web-1", "eu-west"), w.joined(secret, "web-2", "eu-west")
			first := w.view().Keyring.ActiveAssertionKey("eu-west", "")
			must(t, fourth(w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: secret.ID(), Cascade: iapmeshv1.Cascade_CASCADE_QUARANTINE})))
			w.eventually("the audience without them", func() bool {
				audience := keyring.AssertAudience("eu-west", "")
				return !w.opens(j, audience) && !w.opens(second, audience)
			})
			if now := w.view().Keyring.ActiveAssertionKey("eu-west", ""); now == nil || now.KID != first.KID {
				t.Fatalf("a quarantine alone took the assertion key: %v", now)
			}
			must(t, revoke(w, secret.ID()))
			if k := w.view().Keyring.SigningKeys[first.KID]; k.Verifies() {
				t.Errorf("the assertion key that a revoked node could open is %s", k.State)
			}
			w.eventually("another assertion key that signs", func() bool {
				now := w.view().Keyring.ActiveAssertionKey("eu-west", "")
				return now != nil && now.KID != first.KID && now.Verifies()
			})
		})
	}
}

// A control node could open the assertion keys of every region, however many: with more than a commit has room for, it is revoked once
// the rest is.
func TestRevokingAQuarantinedControlNodeTakesEveryAssertionKey(t *testing.T) {
	t.Parallel()
	for name, revoke := range map[string]func(w *world, key string) error{
		"the node": func(w *world, _ string) error {
			_, _, err := w.Revoke(w.t.Context(), "admin/ana", &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE, Value: "ctl-2"})
			return err
		},
		"its key": func(w *world, key string) error {
			return fourth(w.RevokeKey(w.t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: key, Cascade: iapmeshv1.Cascade_CASCADE_KILL}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t)
			proxies := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.MaxUses = new(uint32(store.MaxOps)) })
			for i := range store.MaxOps {
				w.joined(proxies, fmt.Sprintf("web-%d", i), fmt.Sprintf("region-%d", i))
			}
			secret := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.Grants = []iapmeshv1.Role{iapmeshv1.Role_ROLE_CONTROL} })
			ctl := w.joined(secret, "ctl-2", "us-east", iapmeshv1.Role_ROLE_CONTROL)
			audiences := func() (of []string) {
				for name, a := range w.view().Keyring.Audiences {
					if seal.IsMember(*a, ctl.id()) {
						of = append(of, name)
					}
				}
				return of
			}
			w.eventually("it to be a member of every audience", func() bool { return len(audiences()) > store.MaxOps })
			for _, name := range audiences() {
				if !w.opens(ctl, name) {
					t.Fatalf("it does not open %s", name)
				}
			}
			var known []string
			for _, k := range w.view().Keyring.VerifyingKeys(keyring.SigningAssertion) {
				known = append(known, k.KID)
			}
			_, _, err := w.QuarantineNode(t.Context(), "admin/ana", "ctl-2", "odd")
			must(t, err)
			w.eventually("it to be a member of none", func() bool { return len(audiences()) == 0 })
			must(t, revoke(w, secret.ID()))
			if n := w.node(ctl); n.State != keyring.NodeRevoked {
				t.Errorf("the node is %s", n.State)
			}
			for _, kid := range known {
				if k := w.view().Keyring.SigningKeys[kid]; k != nil && k.Verifies() {
					t.Fatalf("the assertion key of %s, which a revoked node could open, is %s", k.Region, k.State)
				}
			}
			w.eventually("another assertion key that signs in each region", func() bool {
				for i := range store.MaxOps {
					if w.view().Keyring.ActiveAssertionKey(fmt.Sprintf("region-%d", i), "") == nil {
						return false
					}
				}
				return true
			})
		})
	}
}
