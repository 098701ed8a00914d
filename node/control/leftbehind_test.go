package control_test

import (
	"crypto/ed25519"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Whoever joins by a stolen key may leave before he is found out, and keep his session key.
func TestAQuarantineReachesTheSessionsOfThoseWhoHaveLeft(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]iapmeshv1.Cascade{"at once": 0, "after a keep": iapmeshv1.Cascade_CASCADE_KEEP} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t)
			stolen := w.issue(nil)
			thief, honest, other := w.joined(stolen, "thief", "us-east"), w.joined(stolen, "honest", "eu-west"), w.joined(w.boot, "other", "us-east")
			if first != 0 {
				w.revokeKey(stolen.ID(), first)
			}
			must(t, second(w.Leave(t.Context(), thief.id())))
			must(t, second(w.Leave(t.Context(), other.id())))
			is := func(j *joiner) keyring.SigningState { return w.view().Keyring.SigningKeys[kidOf(j)].State }
			if is(thief) != keyring.SigningVerifyOnly {
				t.Fatalf("the session key of who left is %s", is(thief))
			}
			w.everybodyReports()
			w.sees(w.founder, w.of(thief, 3, "a@1", "b@2"), w.of(other, 5))

			for cascade, want := range map[iapmeshv1.Cascade]string{
				iapmeshv1.Cascade_CASCADE_KEEP:       "nodes [] keys 0 sessions 0 lost []",
				iapmeshv1.Cascade_CASCADE_QUARANTINE: "nodes [honest quarantined] keys 2 sessions 3 lost []",
			} {
				_, blast, err := w.PreviewKeyRevocation(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: stolen.ID(), Cascade: cascade})
				must(t, err)
				if got := blastText(blast); got != want {
					t.Errorf("the dry run of %s: %s, want %s", cascade, got, want)
				}
			}
			if is(thief) != keyring.SigningVerifyOnly {
				t.Errorf("the dry run changed the session key: it is %s", is(thief))
			}
			survey, err := w.Survey()
			must(t, err)
			quarantine := &iapmeshv1.RevokeKeyRequest{Key: stolen.ID(), Cascade: iapmeshv1.Cascade_CASCADE_QUARANTINE, Reason: "leaked"}
			key, affected, at, err := w.RevokeKey(t.Context(), "admin/ana", quarantine)
			must(t, err)
			if is(thief) != keyring.SigningRevoked || is(honest) != keyring.SigningRevoked || is(other) != keyring.SigningVerifyOnly || w.node(thief).State != keyring.NodeDeparted {
				t.Errorf("thief %s (%s), honest %s, other %s", is(thief), w.node(thief).State, is(honest), is(other))
			}
			if w.written(state.SigningKeyPath(kidOf(thief))) != at || w.written(state.KeyPath(stolen.ID())) != at {
				t.Error("it is not one commit")
			}
			if got, want := blastText(survey.KeyBlast(key, affected)), "nodes [honest quarantined] keys 2 sessions 3 lost []"; got != want {
				t.Errorf("what happened: %s, want %s", got, want)
			}
			if rs := w.trail.with(audit.KindRevocation, "session_keys", kidOf(thief)); len(rs) != 1 {
				t.Errorf("%d records name the session key", len(rs))
			}
		})
	}
}

func kidOf(j *joiner) string { return keyring.SigningKID(keyring.SigningSession, public(j.session)) }

// However many session keys somebody has left behind, all of them end.
func TestAQuarantineReachesMoreSessionKeysThanACommitHolds(t *testing.T) {
	t.Parallel()
	w := start(t)
	stolen := w.issue(nil)
	thief := w.joined(stolen, "thief", "us-east")
	must(t, second(w.Leave(t.Context(), thief.id())))
	for range store.MaxOps + 30 {
		public, _, err := ed25519.GenerateKey(nil)
		must(t, err)
		k := *w.view().Keyring.SigningKeys[kidOf(thief)]
		k.KID, k.PublicKey = keyring.SigningKID(keyring.SigningSession, public), public
		w.write(state.PutSigningKey(&k))
	}
	w.revokeKey(stolen.ID(), iapmeshv1.Cascade_CASCADE_QUARANTINE)
	for _, k := range w.view().Keyring.SigningKeysOf(thief.id()) {
		if k.State != keyring.SigningRevoked {
			t.Fatalf("session key %s is %s", k.KID, k.State)
		}
	}
	rs := w.trail.with(audit.KindRevocation, "action", "key.revoke")
	if len(rs) != 1 || len(strings.Fields(rs[0].Detail["session_keys"])) != store.MaxOps+31 {
		t.Errorf("records: %d", len(rs))
	}
	if all := w.receipts(); all[0].Action != "key.revoke" || all[0].More || all[1].Action == "key.revoke" {
		t.Errorf("its receipts: %+v", all)
	}
}

// A node that never came with its certificate has never been one: what its first key signed does not count.
func TestWhoNeverConfirmedHasSignedNothing(t *testing.T) {
	t.Parallel()
	w := start(t)
	never, left := newJoiner(t, w.issue(nil), "never", "us-east"), w.joined(w.boot, "left", "us-east")
	must(t, second(w.Join(t.Context(), never.attempt())))
	must(t, second(w.Leave(t.Context(), left.id())))
	w.clock.advance(keyring.UnconfirmedAfter)
	w.eventually("departure", func() bool { return w.node(never).State == keyring.NodeDeparted })
	for j, want := range map[*joiner]keyring.SigningState{never: keyring.SigningRevoked, left: keyring.SigningVerifyOnly} {
		if k := w.view().Keyring.SigningKeys[kidOf(j)]; k.State != want {
			t.Errorf("the session key of %s is %s, want %s", j.body.Name, k.State, want)
		}
	}
}

// What is revoked already is answered with how far that has come, and leaves no further receipt or record.
func TestRevokingWhatIsRevokedChangesNothing(t *testing.T) {
	t.Parallel()
	w := start(t)
	key := w.issue(nil)
	w.joined(key, "px", "us-east")
	j, kept := w.joined(w.boot, "web-1", "us-east"), w.joined(w.boot, "web-2", "us-east")
	for what, tc := range map[string]struct {
		revoke func() (store.Revision, error)
		path   string
	}{
		"a node":        {func() (store.Revision, error) { return w.revoke(onNode, j.id(), false) }, state.NodePath(j.id())},
		"a signing key": {func() (store.Revision, error) { return w.revoke(signing, kidOf(kept), false) }, state.SigningKeyPath(kidOf(kept))},
		"a key": {func() (store.Revision, error) {
			_, _, at, err := w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: key.ID(), Cascade: iapmeshv1.Cascade_CASCADE_QUARANTINE})
			return at, err
		}, state.KeyPath(key.ID())},
	} {
		first, err := tc.revoke()
		must(t, err)
		receipts, records := len(w.receipts()), len(w.trail.of(audit.KindRevocation))
		must(t, second(w.revoke(user, "okta/ana", false))) // something else, with a receipt of its own
		again, err := tc.revoke()
		must(t, err)
		if again != first || w.written(tc.path) != first || w.ReceiptID(again) != w.ReceiptID(first) || w.ReceiptID(first) == "" {
			t.Errorf("%s: at %s, again at %s, written at %s", what, first, again, w.written(tc.path))
		}
		if n, m := len(w.receipts())-1, len(w.trail.of(audit.KindRevocation))-1; n != receipts || m != records {
			t.Errorf("%s: %d receipts became %d, %d records %d", what, receipts, n, records, m)
		}
	}
	if blast, err := w.PreviewNodeRevocation(t.Context(), j.id()); err != nil || blast.Refusal != "" || len(blast.Nodes) != 0 {
		t.Errorf("its dry run: %v, %v", blast, err)
	}
}

// of returns the records of a kind.
func (tr *trail) of(kind audit.Kind) (out []*audit.Record) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for _, r := range tr.records {
		if r.Kind == kind && r.Detail["action"] != "receipt.complete" {
			out = append(out, r)
		}
	}
	return out
}
