package control_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// byHolder is what a control node relays of a key's holder.
func byHolder(t testing.TB, secret keyring.ProvisioningSecret, reason string) *iapmeshv1.RelayRevokeByHolderRequest {
	t.Helper()
	body, err := keyring.HolderRevocation{Key: secret.ID(), Reason: reason}.Body()
	must(t, err)
	var ekm [32]byte
	rand.Read(ekm[:])
	sig, err := keyring.SignRevocation(secret.PrivateKey(), ekm, body)
	must(t, err)
	return &iapmeshv1.RelayRevokeByHolderRequest{
		Revocation:             &iapmeshv1.RevokeByHolderRequest{Body: body, Signature: sig},
		ExportedKeyingMaterial: ekm[:], SourceAddress: "192.0.2.7",
	}
}

func TestWhoeverHoldsAKeyMayRevokeIt(t *testing.T) {
	t.Parallel()
	w := start(t)
	secret := w.issue(nil)
	j := w.joined(secret, "web-1", "eu-west")
	resp, err := w.RevokeByHolder(t.Context(), byHolder(t, secret, "found in a build log"))
	must(t, err)
	k := w.key(secret.ID())
	if resp.Already || resp.KeyId != secret.ID() || !resp.RevokedAt.AsTime().Equal(k.RevokedAt) || k.State != keyring.KeyRevoked ||
		k.Cascade != keyring.CascadeKeep || k.Reason != "found in a build log" || k.RevokedBy != "key/"+secret.ID() {
		t.Errorf("%v, %+v", resp, k)
	}
	if w.node(j).State != keyring.NodeActive {
		t.Errorf("its node is %s", w.node(j).State)
	}
	_, err = w.Join(t.Context(), newJoiner(t, secret, "web-2", "eu-west").attempt())
	wantKind(t, "join", err, fault.Denied, "revoked")
	records := func() []*audit.Record { return w.trail.with(audit.KindRevocation, "key", secret.ID()) }
	if rs := records(); len(rs) != 1 || rs[0].Actor.Subject != "key/"+secret.ID() || rs[0].Detail["source"] != "192.0.2.7" || rs[0].Detail["reason"] != "found in a build log" {
		t.Errorf("records: %+v", rs)
	}

	// Again, as after a lost answer: nothing more happens.
	before := w.written(state.KeyPath(secret.ID()))
	w.clock.advance(time.Minute)
	again, err := w.RevokeByHolder(t.Context(), byHolder(t, secret, "another reason"))
	must(t, err)
	if !again.Already || !again.RevokedAt.AsTime().Equal(resp.RevokedAt.AsTime()) || w.key(secret.ID()).Reason != k.Reason || w.written(state.KeyPath(secret.ID())) != before || len(records()) != 1 {
		t.Errorf("again: %v", again)
	}

	// What an administrator did weighs more, and stays.
	must(t, fourth(w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: secret.ID(), Cascade: iapmeshv1.Cascade_CASCADE_KILL})))
	again, err = w.RevokeByHolder(t.Context(), byHolder(t, secret, ""))
	must(t, err)
	if !again.Already || w.key(secret.ID()).Cascade != keyring.CascadeKill {
		t.Errorf("after an administrator: %v, %+v", again, w.key(secret.ID()))
	}
}

// In whatever state it is, a key that was found becomes worthless.
func TestAHolderRevokesFromAnyState(t *testing.T) {
	t.Parallel()
	w := start(t)
	for name, prepare := range map[string]func(secret keyring.ProvisioningSecret) error{
		"suspended": func(s keyring.ProvisioningSecret) error {
			return third(w.SuspendKey(t.Context(), "admin/ana", s.ID(), ""))
		},
		"rotated": func(s keyring.ProvisioningSecret) error {
			return fourth(w.RotateKey(t.Context(), "admin/ana", &iapmeshv1.RotateKeyRequest{Key: s.ID(), SuccessorPublicKey: public(newKey(t))}))
		},
		"active": func(keyring.ProvisioningSecret) error { return nil },
	} {
		secret := w.issue(nil)
		must(t, prepare(secret))
		if resp, err := w.RevokeByHolder(t.Context(), byHolder(t, secret, "")); err != nil || resp.Already || w.key(secret.ID()).State != keyring.KeyRevoked {
			t.Errorf("%s: %v, %v", name, resp, err)
		}
	}
	pending := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.NeedsApproval = true })
	must(t, second(w.RevokeByHolder(t.Context(), byHolder(t, pending, ""))))
	_, _, _, err := w.ApproveKey(t.Context(), "admin/ben", pending.ID())
	wantKind(t, "approve", err, fault.Conflict, "awaits no approval")
}

// Who cannot sign learns nothing, not even whether there is such a key; and nothing is written.
func TestWhoDoesNotHoldAKeyRevokesNothing(t *testing.T) {
	t.Parallel()
	w := start(t)
	secret, other := w.issue(nil), w.issue(nil)
	strange, err := keyring.GenerateKey(w.pin, nil)
	must(t, err)
	type request = iapmeshv1.RelayRevokeByHolderRequest
	change := func(to func(*request)) func() *request {
		return func() *request { r := byHolder(t, secret, "leaked"); to(r); return r }
	}
	before, answers := [2]store.Revision{w.written(state.KeyPath(secret.ID())), w.written(state.KeyPath(other.ID()))}, map[string]bool{}
	for name, r := range map[string]func() *request{
		"an unknown key":        func() *request { return byHolder(t, strange, "") },
		"another connection":    change(func(r *request) { r.ExportedKeyingMaterial[0]++ }),
		"no keying material":    change(func(r *request) { clear(r.ExportedKeyingMaterial) }),
		"another reason":        change(func(r *request) { r.Revocation.Body[20]++ }),
		"no signature":          change(func(r *request) { r.Revocation.Signature = nil }),
		"nothing":               change(func(r *request) { r.Revocation = nil }),
		"a version to come":     change(func(r *request) { r.Revocation.Body[0] = 2 }),
		"another key's request": change(func(r *request) { copy(r.Revocation.Body[1:], other.ID()) }),
		"a signature to join": change(func(r *request) {
			r.Revocation.Signature, err = keyring.SignJoin(keyring.SignerProvisioning, secret.PrivateKey(), [32]byte(r.ExportedKeyingMaterial), r.Revocation.Body)
			must(t, err)
		}),
	} {
		_, err := w.RevokeByHolder(t.Context(), r())
		wantKind(t, name, err, fault.Unauthenticated, "unauthenticated")
		answers[fmt.Sprint(err)] = true
	}
	if len(answers) != 1 {
		t.Errorf("%d different answers: %v", len(answers), answers)
	}
	if at := [2]store.Revision{w.written(state.KeyPath(secret.ID())), w.written(state.KeyPath(other.ID()))}; at != before || len(w.trail.with(audit.KindRevocation, "action", "key.revoke")) != 0 {
		t.Errorf("revision %v, was %v: something was written, or the trail can be flooded", at, before)
	}
}

// What a holder signed to revoke lets nobody in, though it is signed by the right key for the right connection.
func TestARevocationIsNoJoin(t *testing.T) {
	t.Parallel()
	w := start(t)
	a := newJoiner(t, w.boot, "web-1", "eu-west").attempt()
	digest := keyring.JoinDigest(a.EKM, a.Request.Body)
	a.Request.ProvisioningSignature = ed25519.Sign(w.boot.PrivateKey(), append([]byte("iapmesh/revoke/v1"), digest[:]...))
	_, err := w.Join(t.Context(), a)
	wantKind(t, "join", err, fault.Unauthenticated, "unauthenticated")
}

func TestHoldersRaceForOneRecord(t *testing.T) {
	t.Parallel()
	w := start(t)
	secret := w.issue(nil)
	var racers sync.WaitGroup
	for range 8 {
		r := byHolder(t, secret, "leaked")
		racers.Go(func() {
			if _, err := w.RevokeByHolder(context.WithoutCancel(t.Context()), r); err != nil {
				t.Error(err)
			}
		})
	}
	racers.Wait()
	if rs := w.trail.with(audit.KindRevocation, "key", secret.ID()); len(rs) != 1 {
		t.Errorf("%d records", len(rs))
	}
}

func TestOnlyControlNodesRelayRevocations(t *testing.T) {
	t.Parallel()
	w := start(t)
	proxy, secret := w.joined(w.boot, "web-1", "eu-west"), w.issue(nil)
	_, err := w.server(as(proxy), nil).RelayRevokeByHolder(t.Context(), byHolder(t, secret, ""))
	wantKind(t, "by a proxy", err, fault.Denied, "no control node")
	stranger := errors.New("who are you")
	_, err = w.server(func() (string, error) { return "", stranger }, nil).RelayRevokeByHolder(t.Context(), byHolder(t, secret, ""))
	if !errors.Is(err, stranger) {
		t.Errorf("by nobody: %v", err)
	}
	for what, spoil := range map[string]func(*iapmeshv1.RelayRevokeByHolderRequest){
		"no address": func(r *iapmeshv1.RelayRevokeByHolderRequest) { r.SourceAddress = "" },
		"short keying": func(r *iapmeshv1.RelayRevokeByHolderRequest) {
			r.ExportedKeyingMaterial = r.ExportedKeyingMaterial[:31]
		},
		"nothing in it": func(r *iapmeshv1.RelayRevokeByHolderRequest) { proto.Reset(r) },
	} {
		r := byHolder(t, secret, "")
		spoil(r)
		_, err := w.server(as(w.founder), nil).RelayRevokeByHolder(t.Context(), r)
		wantKind(t, what, err, fault.Invalid, "want a source address")
	}
	if resp, err := w.server(as(w.founder), nil).RelayRevokeByHolder(t.Context(), byHolder(t, secret, "")); err != nil || resp.KeyId != secret.ID() {
		t.Errorf("by a control node: %v, %v", resp, err)
	}
}
