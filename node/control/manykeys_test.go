package control_test

import (
	"testing"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Whoever took a node over could make it sign by so many keys that no commit has room to revoke them all.
func TestANodeWithManySessionKeysIsPutOutAtOnce(t *testing.T) {
	t.Parallel()
	w := start(t)
	stolen, held := w.joined(w.boot, "stolen", "eu-west"), w.joined(w.boot, "held", "eu-west")
	announce := func(j *joiner) error {
		key := newKey(t)
		_, err := w.AnnounceSigningKey(t.Context(), j.id(), &iapmeshv1.AnnounceSigningKeyRequest{PublicKey: public(key), Proof: sign(key, j.id())})
		return err
	}
	verify := func(j *joiner) (keys int, announced bool) {
		for _, k := range w.view().Keyring.SigningKeysOf(j.id()) {
			if k.Verifies() {
				keys++
			}
			announced = announced || k.State == keyring.SigningAnnounced
		}
		return keys, announced
	}
	for _, j := range []*joiner{stolen, held} {
		for n, _ := verify(j); n < keyring.MaxSessionKeys; n, _ = verify(j) {
			must(t, announce(j))
			w.eventually("it signs", func() bool {
				w.everybodyReports()
				_, announced := verify(j)
				return !announced
			})
		}
		wantKind(t, "one more", announce(j), fault.Exhausted, "session keys that verify")
	}
	must(t, second2(w.Revoke(t.Context(), "admin/ana", &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE, Value: "stolen"})))
	_, _, err := w.QuarantineNode(t.Context(), "admin/ana", "held", "odd")
	must(t, err)
	if w.node(stolen).State != keyring.NodeRevoked || w.node(held).State != keyring.NodeQuarantined {
		t.Fatalf("they are %s and %s", w.node(stolen).State, w.node(held).State)
	}
	for _, j := range []*joiner{stolen, held} {
		w.eventually("none of its keys verifies", func() bool { n, _ := verify(j); return n == 0 })
	}
	_, _, err = w.ReleaseNode(t.Context(), "admin/ana", "held", "fine")
	must(t, err)
}

// The nodes of one key may have more session keys than one commit has room for.
func TestACascadeReachesNodesWithManySessionKeys(t *testing.T) {
	t.Parallel()
	for name, cascade := range map[keyring.NodeState]iapmeshv1.Cascade{
		keyring.NodeQuarantined: iapmeshv1.Cascade_CASCADE_QUARANTINE, keyring.NodeRevoked: iapmeshv1.Cascade_CASCADE_KILL,
	} {
		t.Run(string(name), func(t *testing.T) {
			t.Parallel()
			w := start(t)
			key := w.issue(nil)
			var under []*joiner
			for _, n := range []string{"a", "b", "c", "d", "e", "f"} {
				under = append(under, w.joined(key, n, "eu-west"))
			}
			for range 30 {
				for _, j := range under {
					next := newKey(t)
					_, err := w.AnnounceSigningKey(t.Context(), j.id(), &iapmeshv1.AnnounceSigningKeyRequest{PublicKey: public(next), Proof: sign(next, j.id())})
					must(t, err)
				}
				w.eventually("they sign", func() bool {
					w.everybodyReports()
					for _, j := range under {
						for _, k := range w.view().Keyring.SigningKeysOf(j.id()) {
							if k.State == keyring.SigningAnnounced {
								return false
							}
						}
					}
					return true
				})
			}
			_, _, _, err := w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: key.ID(), Cascade: cascade, Reason: "leaked"})
			must(t, err)
			for _, j := range under {
				if got := w.node(j).State; got != name {
					t.Errorf("%s is %s", j.body.Name, got)
				}
			}
			w.eventually("no session key of theirs verifies", func() bool {
				for _, j := range under {
					for _, k := range w.view().Keyring.SigningKeysOf(j.id()) {
						if k.Verifies() {
							return false
						}
					}
				}
				return true
			})
		})
	}
}
