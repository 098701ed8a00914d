package control_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// saved is a snapshot as its owner holds it.
func (w *world) saved() control.RestoreInput {
	w.t.Helper()
	opening, err := seal.GenerateSealingKey()
	must(w.t, err)
	var header *iapmeshv1.SnapshotHeader
	var entries []store.Entry
	w.eventually("a snapshot", func() bool { // an audience may just be about to be aligned
		header, entries, err = w.Save(w.t.Context(), "admin/ana", opening.PublicKey())
		return err == nil
	})
	private, err := opening.Bytes()
	must(w.t, err)
	return control.RestoreInput{Revision: state.RevisionOf(header.Revision), Audiences: header.Audiences, OpeningKey: private, Entries: entries}
}

// signed is the input with ana's word for it, from the epoch of now.
func (w *world) signed(in control.RestoreInput) control.RestoreInput {
	digest := sha256.Sum256([]byte(in.Revision.String()))
	epoch := w.view().Revision.Epoch
	in.Statement = keyring.RestorationStatement{
		Mesh: "m-1", Kind: keyring.RestoreSnapshot, OldEpoch: epoch, NewEpoch: epoch + 1, Digest: digest[:], SnapshotRevision: in.Revision,
		SnapshotTime: w.clock.now(), Time: w.clock.now(), Nonce: make([]byte, 16),
	}
	if r := w.view().Keyring.Unconfirmed(); r != nil {
		in.Statement.OldEpoch, in.Statement.NewEpoch = r.Statement.OldEpoch, r.Statement.NewEpoch
	}
	in.Signature = ed25519.Sign(w.admin, in.Statement.Message())
	return in
}

func (w *world) confirm(except ...string) {
	w.t.Helper()
	_, err := w.ConfirmRestoration(w.t.Context(), "admin/ana", control.RestorationStatus(w.view()).ListDigest, except, false)
	must(w.t, err)
}

const restoredYAML = `
kind: Settings
name: mesh
issuer: https://auth.example.com
sign_in_host: auth.example.com
---
kind: Route
name: echo
hosts: [echo.example.com]
upstreams: [{url: "http://127.0.0.1:1"}]
allow: [{authenticated: true}]
`

func TestACrashInTheMiddleOfARestoreIsResumed(t *testing.T) {
	t.Parallel()
	w := start(t)
	for i := range 250 {
		w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.Name = fmt.Sprintf("key-%03d", i) })
	}
	thief := w.issue(nil)
	saved := w.saved()
	_, _, _, err := w.RevokeKey(t.Context(), "admin/ana", revokeKey(thief.ID()))
	must(t, err)

	// The engine fails at each commit of the restoration once, before or after it was applied.
	commits, after := 0, false
	for attempt := range 40 {
		failAt, seen := attempt/2+1, 0
		after = attempt%2 == 1
		w.engine.setSpoil(func(txn store.Txn) (bool, error) {
			if len(txn.Puts) == 0 || !strings.Contains(txn.Puts[0].Key, "/") || attempt == 39 {
				return false, nil
			}
			if seen++; seen == failAt {
				commits++
				return after, fmt.Errorf("%w: the test has pulled the plug", store.ErrInDoubt)
			}
			return false, nil
		})
		_, _, err := w.Restore(t.Context(), "admin/ana", w.signed(saved))
		if err == nil {
			break
		}
		if r := w.view().Keyring.Restoration; r != nil {
			if w.view().Keyring.Closed() == nil {
				t.Fatalf("attempt %d: the mesh is open after a restore that ended with %v", attempt, err)
			}
			other := w.signed(saved)
			other.Statement.Digest = bytes.Repeat([]byte{1}, 32)
			other.Signature = ed25519.Sign(w.admin, other.Statement.Message())
			w.engine.setSpoil(nil)
			_, _, err := w.Restore(t.Context(), "admin/ana", other)
			wantKind(t, "another snapshot in the middle", err, fault.Conflict, "another snapshot")
			_, err = w.ConfirmRestoration(t.Context(), "admin/ana", nil, nil, false)
			wantKind(t, "confirmed in the middle", err, fault.Conflict, "not yet restored")
		}
	}
	w.engine.setSpoil(nil)
	if commits < 4 {
		t.Errorf("%d commits failed: too few for a restoration of 250 keys", commits)
	}
	status := control.RestorationStatus(w.view())
	if status.Restoration.Phase != iapmeshv1.RestorationPhase_RESTORATION_PHASE_AWAITING_CONFIRMATION || status.Revision.Epoch != 2 || len(status.Keys) != 251 {
		t.Fatalf("phase %s in epoch %d with %d keys", status.Restoration.Phase, status.Revision.Epoch, len(status.Keys))
	}
	w.confirm("key-007")
	active, held := 0, 0
	for _, k := range w.view().Keyring.Keys {
		switch {
		case k.State == keyring.KeyActive:
			active++
		case k.State == keyring.KeySuspended && k.Name == "key-007":
			held++
		}
	}
	if active != 250 || held != 1 || w.key(thief.ID()).State != keyring.KeyRevoked {
		t.Errorf("%d keys active, %d held back, the thief's %s", active, held, w.key(thief.ID()).State)
	}
	if n := len(w.trail.with(audit.KindAdmin, "action", "snapshot.restore")); n == 0 {
		t.Error("no record of the restoration")
	}
}

func TestWhatRevokesDuringARestoreStands(t *testing.T) {
	t.Parallel()
	w := start(t)
	secret := w.issue(nil)
	proxy := w.joined(w.issue(nil), "px", "eu-west")
	saved := w.saved()
	var once bool
	w.engine.setSpoil(func(txn store.Txn) (bool, error) { // just when the records are about to be written
		for _, p := range txn.Puts {
			if strings.HasPrefix(p.Key, state.PrefixKey) && !once {
				once = true
				k := *w.key(secret.ID())
				revoked, _, err := keyring.RevokeKey(k, nil, keyring.RevokeRequest{Cascade: keyring.CascadeKeep, Now: w.clock.now()})
				must(t, err)
				_, err = w.engine.Store.Commit(t.Context(), store.Txn{Puts: []store.Entry{state.PutKey(&revoked)}})
				must(t, err)
			}
		}
		return false, nil
	})
	_, _, err := w.Restore(t.Context(), "admin/ana", w.signed(saved))
	must(t, err)
	w.engine.setSpoil(nil)
	if !once || w.key(secret.ID()).State != keyring.KeyRevoked {
		t.Fatalf("a key that was revoked meanwhile is %s", w.key(secret.ID()).State)
	}
	if w.node(proxy).State != keyring.NodeQuarantined || w.node(w.founder).State != keyring.NodeActive {
		t.Errorf("the proxy is %s, the leader %s", w.node(proxy).State, w.node(w.founder).State)
	}
	// Also between the list that was read and its confirmation.
	list := control.RestorationStatus(w.view())
	_, _, err = w.Revoke(t.Context(), "admin/ana", &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE, Value: "px"})
	must(t, err)
	_, err = w.ConfirmRestoration(t.Context(), "admin/ana", list.ListDigest, nil, false)
	wantKind(t, "a list that has changed", err, fault.Conflict, "read it again")
	_, err = w.ConfirmRestoration(t.Context(), "admin/ana", control.RestorationStatus(w.view()).ListDigest, []string{"px"}, false)
	wantKind(t, "an exception that is not on the list", err, fault.Invalid, "no key and no node")
	w.confirm()
	if w.node(proxy).State != keyring.NodeRevoked {
		t.Errorf("a node that was revoked meanwhile is %s", w.node(proxy).State)
	}
	_, err = w.ConfirmRestoration(t.Context(), "admin/ana", list.ListDigest, nil, false)
	wantKind(t, "confirmed twice", err, fault.Conflict, "confirmed already")
}

func TestWhoMayRestoreWhat(t *testing.T) {
	t.Parallel()
	w := start(t)
	saved := w.saved()
	stranger := newKey(t)
	for name, tc := range map[string]struct {
		change func(*control.RestoreInput)
		kind   fault.Kind
		says   string
	}{
		"signed by a stranger": {func(in *control.RestoreInput) { in.Signature = ed25519.Sign(stranger, in.Statement.Message()) }, fault.Denied, "nobody whom"},
		"signed for another":   {func(in *control.RestoreInput) { in.Statement.Digest = make([]byte, 32) }, fault.Denied, "nobody whom"},
		"another mesh's":       {func(in *control.RestoreInput) { in.Statement.Mesh = "m-2" }, fault.Conflict, "m-2"},
		"no state":             {func(in *control.RestoreInput) { in.Entries = nil }, fault.Conflict, "of mesh"},
		"a record of nonsense": {func(in *control.RestoreInput) {
			in.Entries = append(in.Entries, store.Entry{Key: "node/n-x", Value: []byte{0xff}})
		}, fault.Invalid, "not understood"},
		"no opening key":         {func(in *control.RestoreInput) { in.OpeningKey = nil }, fault.Invalid, "opening key"},
		"to recover":             {func(in *control.RestoreInput) { in.Statement.Kind = keyring.RestoreSurvivor }, fault.Invalid, "recover"},
		"too much is remembered": {func(in *control.RestoreInput) { in.Remembered = make([]keyring.Denial, 100_001) }, fault.Invalid, "at most"},
		"the signer is remembered as revoked": {func(in *control.RestoreInput) {
			in.Remembered = []keyring.Denial{{Kind: keyring.DenyAdmin, Value: keyring.AdminID(public(w.admin))}}
		}, fault.Denied, "you would be refused"},
	} {
		in := w.signed(saved)
		tc.change(&in)
		_, _, err := w.Restore(t.Context(), "admin/ana", in)
		wantKind(t, name, err, tc.kind, tc.says)
	}
	if _, _, err := w.Restore(t.Context(), "admin/bob", w.signed(saved)); !fault.Is(err, fault.Denied) {
		t.Errorf("called by another than signed: %v", err)
	}
	dry := w.signed(saved)
	dry.DryRun = true
	w.issue(nil)
	status, _, err := w.Restore(t.Context(), "admin/ana", dry)
	if err != nil || status.Writes == 0 || status.Restoration == nil {
		t.Errorf("dry run: %v, %v", status, err)
	}
	if w.view().Keyring.Restoration != nil || w.view().Keyring.Closed() != nil || w.view().Revision.Epoch != 1 {
		t.Error("a dry run has written something")
	}
	_, err = w.ConfirmRestoration(t.Context(), "admin/ana", nil, nil, false)
	wantKind(t, "nothing to confirm", err, fault.Conflict, "never restored")
}

func TestARestoreBringsConfigurationAndSecretsBack(t *testing.T) {
	t.Parallel()
	w := start(t)
	must(t, second(w.Apply(t.Context(), "admin/ana", apply(t, restoredYAML))))
	for _, name := range []string{"lost", "changed"} {
		_, err := w.SetSecret(t.Context(), "admin/ana", name, []byte("old "+name))
		must(t, err)
	}
	proxy := w.joined(w.issue(nil), "px", "eu-west")
	saved := w.saved()
	want := w.view().Config.Digest
	must(t, second(w.Apply(t.Context(), "admin/ana", apply(t, strings.ReplaceAll(restoredYAML, "echo", "other")))))
	_, err := w.SetSecret(t.Context(), "admin/ana", "changed", []byte("new changed"))
	must(t, err)
	// The audience rotates, and a secret is lost.
	_, _, err = w.Revoke(t.Context(), "admin/ana", &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE, Value: "px"})
	must(t, err)
	w.eventually("proxies' next key", func() bool { return !seal.IsMember(*w.view().Keyring.Audiences[keyring.AudienceProxies], proxy.id()) })
	_, err = w.engine.Store.Commit(context.Background(), store.Txn{Deletes: []string{state.SecretPath(keyring.AudienceProxies, keyring.UserSecret("lost"))}})
	must(t, err)

	_, _, err = w.Restore(t.Context(), "admin/ana", w.signed(saved))
	must(t, err)
	if got := w.view().Config.Digest; got != want {
		t.Errorf("configuration %x, want the snapshot's %x", got, want)
	}
	member := seal.Member{Node: w.founder.id(), Key: w.founder.sealing}
	for name, want := range map[string]string{"lost": "old lost", "changed": "new changed"} {
		if got, err := member.Open(w.view().Keyring, keyring.AudienceProxies, keyring.UserSecret(name)); err != nil || string(got) != want {
			t.Errorf("secret %s: %q, %v; want %q", name, got, err, want)
		}
	}
	w.confirm()
	if w.node(proxy).State != keyring.NodeRevoked {
		t.Errorf("px is %s", w.node(proxy).State)
	}
	if _, err := w.Join(t.Context(), newJoiner(t, w.boot, "again", "eu-west").attempt()); err != nil {
		t.Errorf("after the confirmation nobody joins: %v", err)
	}
}

func revokeKey(id string) *iapmeshv1.RevokeKeyRequest {
	return &iapmeshv1.RevokeKeyRequest{Key: id, Reason: "stolen"}
}

// While a restoration awaits its confirmation, an operator's quarantine of what it holds back is his own, and outlasts it.
func TestAQuarantineBeforeTheConfirmationOutlastsIt(t *testing.T) {
	t.Parallel()
	w := start(t)
	one, other := w.issue(nil), w.issue(nil)
	alone, under, free := w.joined(one, "alone", "eu-west"), w.joined(other, "under", "eu-west"), w.joined(w.boot, "free", "eu-west")
	saved := w.saved()
	_, _, err := w.Restore(t.Context(), "admin/ana", w.signed(saved))
	must(t, err)
	_, _, err = w.QuarantineNode(t.Context(), "admin/ana", "alone", "its disk is elsewhere")
	must(t, err)
	if n := len(w.trail.with(audit.KindRevocation, "action", "node.quarantine")); n != 1 {
		t.Errorf("%d records of the quarantine", n)
	}
	_, changed, _, err := w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: other.ID(), Cascade: iapmeshv1.Cascade_CASCADE_QUARANTINE})
	if err != nil || len(changed) != 1 {
		t.Fatalf("cascade: %v, %v", changed, err)
	}
	w.confirm()
	for j, want := range map[*joiner]keyring.NodeState{alone: keyring.NodeQuarantined, under: keyring.NodeQuarantined, free: keyring.NodeActive} {
		if n := w.node(j); n.State != want {
			t.Errorf("node %s is %s after the confirmation, want %s", n.Name, n.State, want)
		}
	}
}
