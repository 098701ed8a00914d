package control_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// scheduled is a key that the founder rotates each week.
func (w *world) scheduled(name string) keyring.ProvisioningSecret {
	w.t.Helper()
	return w.issue(func(r *iapmeshv1.IssueKeyRequest) {
		r.Name, r.Ttl = name, durationpb.New(60*24*time.Hour)
		r.RotateEvery, r.RotateGrace, r.Rotator = durationpb.New(7*24*time.Hour), durationpb.New(24*time.Hour), "founder"
	})
}

// ask asks for a rotation now.
func (w *world) ask(key string) {
	w.t.Helper()
	must(w.t, second2(w.RequestKeyRotation(w.t.Context(), "admin/ana", &iapmeshv1.RequestKeyRotationRequest{Key: key})))
}

func (w *world) propose(by *joiner, key string) (keyring.ProvisioningSecret, error) {
	w.t.Helper()
	next, err := keyring.GenerateKey(w.pin, nil)
	must(w.t, err)
	_, err = w.ProposeSuccessor(w.t.Context(), by.id(), &iapmeshv1.ProposeSuccessorRequest{KeyId: key, SuccessorPublicKey: next.PublicKey()})
	return next, err
}

func (w *world) complete(by *joiner, key, successor string) error {
	_, err := w.CompleteRotation(w.t.Context(), by.id(), &iapmeshv1.CompleteRotationRequest{KeyId: key, SuccessorId: successor})
	return err
}

// trailer is what a call answers with, beside its message.
type trailer struct {
	grpc.ServerTransportStream
	md metadata.MD
}

func (t *trailer) SetTrailer(md metadata.MD) error { t.md = metadata.Join(t.md, md); return nil }

func TestARotatorRotatesItsKeyInTwoPhases(t *testing.T) {
	t.Parallel()
	w := start(t)
	secret := w.scheduled("edge")
	id := secret.ID()
	if k := w.key(id); k.Rotator != w.founder.id() || k.RotateEvery != 7*24*time.Hour || k.RotateGrace != 24*time.Hour {
		t.Fatalf("issued: %+v", k)
	}
	other := w.joined(w.boot, "other", "eu-west", iapmeshv1.Role_ROLE_CONTROL, iapmeshv1.Role_ROLE_PROXY)
	_, err := w.propose(w.founder, id)
	wantKind(t, "before its time", err, fault.Conflict, "not before")
	w.ask("edge")
	_, err = w.propose(other, id)
	wantKind(t, "another control node", err, fault.Denied, "not its rotator")

	next, err := w.propose(w.founder, id)
	must(t, err)
	if k := w.key(next.ID()); !k.Proposed() || k.CreatedBy != "node/"+w.founder.id() {
		t.Fatalf("proposal: %+v", k)
	}
	if k := w.key(id); k.State != keyring.KeyActive || k.Successor != "" {
		t.Errorf("the predecessor changed: %+v", k)
	}
	early := newJoiner(t, next, "early", "eu-west")
	_, err = w.Join(t.Context(), early.attempt())
	wantKind(t, "join before it is active", err, fault.Unavailable, "about to become active")
	attempt, answer := early.attempt(), &trailer{}
	relay := &control.MeshServer{Controller: w.Controller, Caller: func(context.Context) (string, error) { return w.founder.id(), nil }}
	_, err = relay.RelayJoin(grpc.NewContextWithServerTransportStream(t.Context(), answer), &iapmeshv1.RelayJoinRequest{
		Join: attempt.Request, ExportedKeyingMaterial: attempt.EKM[:], SourceAddress: attempt.Source.String(),
	})
	wantKind(t, "the same, relayed", err, fault.Unavailable, "about to become active")
	if len(answer.md.Get(control.DecidedTrailer)) == 0 {
		t.Error("the answer does not say that it is the leader's own: it would be asked again and again")
	}
	w.joined(secret, "by-predecessor", "eu-west")
	wantKind(t, "another node completes", w.complete(other, id, next.ID()), fault.Denied, "not its rotator")

	written := [2]store.Revision{w.written(state.KeyPath(id)), w.written(state.KeyPath(next.ID()))}
	must(t, second(w.ProposeSuccessor(t.Context(), w.founder.id(), &iapmeshv1.ProposeSuccessorRequest{KeyId: id, SuccessorPublicKey: next.PublicKey()})))
	if again := [2]store.Revision{w.written(state.KeyPath(id)), w.written(state.KeyPath(next.ID()))}; again != written {
		t.Error("the same proposal again wrote something")
	}
	must(t, w.complete(w.founder, id, next.ID()))
	must(t, w.complete(w.founder, id, next.ID())) // the answer may have been lost
	before, after := w.key(id), w.key(next.ID())
	if before.State != keyring.KeyRetiring || before.Successor != after.ID || before.RotateRequested || after.State != keyring.KeyActive || after.Rotator != w.founder.id() {
		t.Errorf("completed: %+v then %+v", before, after)
	}
	if _, err := w.Join(t.Context(), early.attempt()); err != nil {
		t.Errorf("the early joiner comes again: %v", err)
	}
	for action, want := range map[string]int{"key.rotate-request": 1, "key.propose": 1, "key.rotate": 1} {
		if got := w.trail.with(audit.KindRotation, "action", action); len(got) != want {
			t.Errorf("%d records of %s, want %d", len(got), action, want)
		}
	}
}

func TestAProposalThatNobodyCanCompleteIsRevoked(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(w *world, key string) error{
		"the key is revoked": func(w *world, key string) error {
			_, _, _, err := w.RevokeKey(context.Background(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: key, Cascade: iapmeshv1.Cascade_CASCADE_KEEP})
			return err
		},
		"an operator rotates it": func(w *world, key string) error {
			_, _, _, err := w.RotateKey(context.Background(), "admin/ana", &iapmeshv1.RotateKeyRequest{Key: key, SuccessorPublicKey: public(newKey(w.t))})
			return err
		},
		"its schedule is taken away": func(w *world, key string) error {
			return second2(w.ScheduleKey(context.Background(), "admin/ana", &iapmeshv1.ScheduleKeyRequest{Key: key}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t)
			id := w.scheduled("edge").ID()
			w.ask("edge")
			next, err := w.propose(w.founder, id)
			must(t, err)
			if found, err := w.view().Keyring.FindKey("edge"); err != nil || found.ID != id {
				t.Errorf("while it is proposed, the name means %v (%v)", found, err)
			}
			must(t, end(w, id))
			if err := w.complete(w.founder, id, next.ID()); err == nil {
				t.Error("it was completed all the same")
			}
			w.eventually("end of the proposal", func() bool { return w.key(next.ID()).State == keyring.KeyRevoked })
			if k := w.key(next.ID()); k.Reason == "" {
				t.Error("it was revoked without a reason")
			}
			_, err = w.Join(t.Context(), newJoiner(t, next, "late", "eu-west").attempt())
			wantKind(t, "join by it", err, fault.Denied, "revoked")
		})
	}
}

func TestAnotherProposalReplacesTheFirst(t *testing.T) {
	t.Parallel()
	w := start(t)
	id := w.scheduled("edge").ID()
	w.ask("edge")
	lost, err := w.propose(w.founder, id)
	must(t, err)
	next, err := w.propose(w.founder, id)
	must(t, err)
	if k := w.key(lost.ID()); k.State != keyring.KeyRevoked || k.Reason != "replaced by proposal "+next.ID() {
		t.Errorf("the first: %s, %q", k.State, k.Reason)
	}
	wantKind(t, "complete the first", w.complete(w.founder, id, lost.ID()), fault.Conflict, "revoked")
	must(t, w.complete(w.founder, id, next.ID()))
	w.ask("edge")
	_, err = w.ProposeSuccessor(t.Context(), w.founder.id(), &iapmeshv1.ProposeSuccessorRequest{KeyId: next.ID(), SuccessorPublicKey: lost.PublicKey()})
	wantKind(t, "a key that was revoked proposed again", err, fault.Conflict, "is there already")
}

func TestSchedulesThatAreRefused(t *testing.T) {
	t.Parallel()
	w := start(t)
	id := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.Name = "edge" }).ID()
	week := durationpb.New(7 * 24 * time.Hour)
	gone := w.joined(w.boot, "gone", "eu-west")
	must(t, second2(w.Revoke(t.Context(), "admin/ana", &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE, Value: "gone"})))
	for name, tc := range map[string]struct {
		req  *iapmeshv1.ScheduleKeyRequest
		kind fault.Kind
		says string
	}{
		"an unknown key":  {&iapmeshv1.ScheduleKeyRequest{Key: "none", RotateEvery: week, Rotator: "founder"}, fault.NotFound, "no key"},
		"an unknown node": {&iapmeshv1.ScheduleKeyRequest{Key: id, RotateEvery: week, Rotator: "none"}, fault.NotFound, "no node"},
		"no node":         {&iapmeshv1.ScheduleKeyRequest{Key: id, RotateEvery: week}, fault.Invalid, "rotator"},
		"no period":       {&iapmeshv1.ScheduleKeyRequest{Key: id, Rotator: "founder"}, fault.Invalid, "rotate_every"},
		"a revoked node":  {&iapmeshv1.ScheduleKeyRequest{Key: id, RotateEvery: week, Rotator: gone.id()}, fault.Conflict, "revoked"},
	} {
		_, _, err := w.ScheduleKey(t.Context(), "admin/ana", tc.req)
		wantKind(t, name, err, tc.kind, tc.says)
	}
	_, _, err := w.RequestKeyRotation(t.Context(), "admin/ana", &iapmeshv1.RequestKeyRotationRequest{Key: id})
	wantKind(t, "ask without a schedule", err, fault.Conflict, "no schedule")
	if k := w.key(id); k.Scheduled() || k.RotateRequested {
		t.Errorf("it has a schedule all the same: %+v", k)
	}
	_, _, err = w.IssueKey(t.Context(), "admin/ana", &iapmeshv1.IssueKeyRequest{
		PublicKey: public(newKey(t)), Name: "x", Grants: []iapmeshv1.Role{iapmeshv1.Role_ROLE_PROXY}, RotateEvery: week, Rotator: "none",
	})
	wantKind(t, "issue with an unknown rotator", err, fault.NotFound, "no node")
	if got := control.Keys(w.view()); len(got) != 2 {
		t.Errorf("%d keys: a refused one was issued", len(got))
	}
}
