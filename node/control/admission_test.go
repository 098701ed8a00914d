package control_test

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func TestJoinMakesANode(t *testing.T) {
	t.Parallel()
	w := start(t)
	j := newJoiner(t, w.boot, "web-1", "us-east")
	answer, err := w.Join(t.Context(), j.attempt())
	must(t, err)
	cert, err := x509.ParseCertificate(answer.Certificate)
	must(t, err)
	id, err := keyring.ParseID(cert)
	must(t, err)
	n := w.node(j)
	switch {
	case n == nil || n.State != keyring.NodeEnrolled || n.ProvisioningKey != w.boot.ID() || n.Name != "web-1":
		t.Errorf("node: %+v", n)
	case answer.NodeId != j.id() || id.Node != j.id() || id.Kind != keyring.KindNode || id.Region != "us-east":
		t.Errorf("answer for %s, certificate for %+v", answer.NodeId, id)
	case len(answer.Bundle) != 1 || len(answer.ControlNodes) != 1 || answer.MeshId != "m-1" || after(state.RevisionOf(answer.Revision), w.view().Revision):
		t.Errorf("answer: %+v", answer)
	case !w.opens(j, keyring.AudienceProxies) || !w.opens(j, keyring.AssertAudience("us-east", "")) || !w.opens(j, keyring.AudienceGossip) || w.opens(j, keyring.AudienceControl):
		t.Error("it opens other audiences than a proxy's")
	case w.view().Keyring.ActiveSessionKey(j.id()) == nil || w.view().Keyring.ActiveAssertionKey("us-east", "") == nil:
		t.Error("no first session key, or no assertion key for its region")
	case w.key(w.boot.ID()).Uses != 1:
		t.Errorf("%d uses", w.key(w.boot.ID()).Uses)
	}
	if rs := w.trail.with(audit.KindJoin, "node", j.id()); len(rs) != 1 || rs[0].Detail["decision"] != "admitted" || rs[0].Detail["source"] != "192.0.2.7" {
		t.Errorf("records: %+v", rs)
	}
}

// Until the provisioning key's signature has verified, every refusal reads the same; none writes anything.
func TestWhoCannotSignLearnsNothing(t *testing.T) {
	t.Parallel()
	w := start(t)
	strange, err := keyring.GenerateKey(w.pin, nil)
	must(t, err)
	before := w.view().Revision
	answers := map[string]bool{}
	for name, a := range map[string]func() control.JoinAttempt{
		"an unknown key":     func() control.JoinAttempt { return newJoiner(t, strange, "x", "eu-west").attempt() },
		"another connection": func() control.JoinAttempt { a := newJoiner(t, w.boot, "x", "eu-west").attempt(); a.EKM[0]++; return a },
		"another body": func() control.JoinAttempt {
			a := newJoiner(t, w.boot, "x", "eu-west").attempt()
			a.Request.Body = append(a.Request.Body, 0x52, 0)
			return a
		},
		"no signature": func() control.JoinAttempt {
			a := newJoiner(t, w.boot, "x", "eu-west").attempt()
			a.Request.ProvisioningSignature = nil
			return a
		},
		"the node's instead": func() control.JoinAttempt {
			a := newJoiner(t, w.boot, "x", "eu-west").attempt()
			a.Request.ProvisioningSignature = a.Request.NodeSignature
			return a
		},
		"no body": func() control.JoinAttempt { return control.JoinAttempt{} },
		"a body too large": func() control.JoinAttempt {
			return control.JoinAttempt{Request: &iapmeshv1.JoinRequest{Body: make([]byte, keyring.MaxJoinBody+1)}}
		},
		"garbage": func() control.JoinAttempt {
			return control.JoinAttempt{Request: &iapmeshv1.JoinRequest{Body: []byte{0xff}}}
		},
		"a version to come": func() control.JoinAttempt {
			j := newJoiner(t, w.boot, "x", "eu-west")
			j.body.Version = 2
			return j.attempt()
		},
		"no keying material": func() control.JoinAttempt {
			a := newJoiner(t, w.boot, "x", "eu-west").attempt()
			a.EKM = [32]byte{}
			return a
		},
		"a key that it names": func() control.JoinAttempt {
			j := newJoiner(t, strange, "x", "eu-west")
			j.body.KeyId = w.boot.ID()
			return j.attempt()
		},
	} {
		_, err := w.Join(t.Context(), a())
		wantKind(t, name, err, fault.Unauthenticated, "unauthenticated")
		answers[fmt.Sprint(err)] = true
	}
	if len(answers) != 1 {
		t.Errorf("%d different answers: %v", len(answers), answers)
	}
	if at := w.view().Revision; at != before || len(w.trail.with(audit.KindJoin, "decision", "refused")) != 0 {
		t.Errorf("revision %v, was %v: something was written, or the trail can be flooded", at, before)
	}
}

func TestWhoSignsIsToldTheRule(t *testing.T) {
	t.Parallel()
	w := start(t)
	other := w.joined(w.boot, "other", "eu-west")
	plain := w.issue(nil)
	change := func(secret keyring.ProvisioningSecret, to func(*joiner)) func() control.JoinAttempt {
		return func() control.JoinAttempt {
			j := newJoiner(t, secret, "fresh", "eu-west")
			to(j)
			return j.attempt()
		}
	}
	own := func(j *joiner, to func(*joiner)) func() control.JoinAttempt {
		return func() control.JoinAttempt { to(j); return j.attempt() }
	}
	nobody := func(*joiner) {}
	spoil := func(to func(*control.JoinAttempt)) func() control.JoinAttempt {
		return func() control.JoinAttempt { a := newJoiner(t, plain, "fresh", "eu-west").attempt(); to(&a); return a }
	}
	regional := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.Regions = []string{"us-east"} })
	nearby := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.SourceCidrs = []string{"10.0.0.0/8"} })
	later := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.NotBefore = state.Stamp(w.clock.now().Add(time.Hour)) })
	single := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.MaxActive = 1 })
	w.joined(single, "first-of-single", "eu-west")
	revoked := w.issue(nil)
	_, _, _, err := w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: revoked.ID(), Reason: "leaked"})
	must(t, err)
	rotated := w.issue(nil)
	successor := newKey(t)
	_, _, _, err = w.RotateKey(t.Context(), "admin/ana", &iapmeshv1.RotateKeyRequest{Key: rotated.ID(), SuccessorPublicKey: public(successor)})
	must(t, err)
	suspended := w.issue(nil)
	w.suspend(suspended.ID())

	for name, tc := range map[string]struct {
		attempt func() control.JoinAttempt
		kind    fault.Kind
		says    string
	}{
		"a role that is not granted":   {change(plain, func(j *joiner) { j.body.Roles = append(j.body.Roles, iapmeshv1.Role_ROLE_CONTROL) }), fault.Denied, "grants: role control"},
		"no role":                      {change(plain, func(j *joiner) { j.body.Roles = nil }), fault.Invalid, "roles"},
		"a role to come":               {change(plain, func(j *joiner) { j.body.Roles = []iapmeshv1.Role{99} }), fault.Invalid, "roles"},
		"another region":               {change(regional, nobody), fault.Denied, "regions: eu-west"},
		"another address":              {change(nearby, nobody), fault.Denied, "source_cidrs: 192.0.2.7"},
		"an address in IPv6 clothes":   {change(nearby, func(j *joiner) { j.source = netip.MustParseAddr("::ffff:192.0.2.7") }), fault.Denied, "source_cidrs: 192.0.2.7"},
		"too early":                    {change(later, nobody), fault.Denied, "not_before"},
		"too many at once":             {change(single, nobody), fault.Exhausted, "max_active: 1 nodes of 1"},
		"a revoked key":                {change(revoked, nobody), fault.Denied, "revoked at"},
		"a rotated key":                {change(rotated, nobody), fault.Denied, "use its successor"},
		"a suspended key":              {change(suspended, nobody), fault.Denied, "suspended"},
		"a name that is taken":         {change(plain, func(j *joiner) { j.body.Name = "other" }), fault.Conflict, `name "other" is node ` + other.id()},
		"a bad name":                   {change(plain, func(j *joiner) { j.body.Name = "Über" }), fault.Invalid, "node name"},
		"a bad region":                 {change(plain, func(j *joiner) { j.body.Region = "../.." }), fault.Invalid, "region"},
		"a short join id":              {change(plain, func(j *joiner) { j.body.JoinId = j.body.JoinId[:8] }), fault.Invalid, "join id"},
		"a short sealing key":          {change(plain, func(j *joiner) { j.body.SealingPublicKey = []byte{1} }), fault.Invalid, "sealing key"},
		"no request for a certificate": {change(plain, func(j *joiner) { j.body.Csr = nil }), fault.Invalid, "certificate request"},
		"somebody else's request":      {change(plain, func(j *joiner) { j.body.Csr = other.body.Csr }), fault.Unauthenticated, "node key"},
		"somebody else's session key":  {change(plain, func(j *joiner) { j.body.SessionPublicKey = other.body.SessionPublicKey }), fault.Unauthenticated, "session key"},
		"signatures swapped": {spoil(func(a *control.JoinAttempt) {
			a.Request.NodeSignature, a.Request.SessionSignature = a.Request.SessionSignature, a.Request.NodeSignature
		}), fault.Unauthenticated, "node key"},
		"no session signature":            {spoil(func(a *control.JoinAttempt) { a.Request.SessionSignature = nil }), fault.Unauthenticated, "session key"},
		"one key for two":                 {change(plain, func(j *joiner) { j.session = j.node; j.body.SessionPublicKey = public(j.node) }), fault.Invalid, "three different keys"},
		"the provisioning key's own":      {change(plain, func(j *joiner) { j.use(plain.PrivateKey()) }), fault.Conflict, "it is a provisioning key"},
		"a node's key, another join id":   {change(plain, func(j *joiner) { j.use(other.node) }), fault.Conflict, "begin anew"},
		"a node's key as session key":     {change(plain, func(j *joiner) { j.session = other.node; j.body.SessionPublicKey = public(other.node) }), fault.Conflict, "session key: it is a node's"},
		"a session key as node key":       {change(plain, func(j *joiner) { j.use(other.session) }), fault.Conflict, "node key: it is a session key"},
		"a session key for a second time": {change(plain, func(j *joiner) { j.session = other.session; j.body.SessionPublicKey = public(other.session) }), fault.Conflict, "session key: it is another node's"},
		"another node's join id":          {change(plain, func(j *joiner) { j.body.JoinId = other.body.JoinId }), fault.Conflict, "belongs to another join"},
		"its own id, another key":         {own(&joiner{t: t, secret: plain, node: other.node, session: other.session, body: other.body}, func(j *joiner) { j.body = proto.CloneOf(j.body); j.body.KeyId = plain.ID() }), fault.Conflict, "belongs to another join"},
		"its own id, another sealing key": {own(&joiner{t: t, secret: w.boot, node: other.node, session: other.session, body: other.body}, func(j *joiner) { j.body = proto.CloneOf(j.body); j.body.SealingPublicKey = make([]byte, 32) }), fault.Conflict, "sealing key"},
	} {
		before, uses := w.view().Revision, w.key(plain.ID()).Uses
		_, err := w.Join(t.Context(), tc.attempt())
		wantKind(t, name, err, tc.kind, tc.says)
		if at := w.view().Revision; at != before || w.key(plain.ID()).Uses != uses {
			t.Errorf("%s: something was written at %v", name, at)
		}
	}
	if rs := w.trail.with(audit.KindJoin, "decision", "refused"); len(rs) != 30 {
		t.Errorf("%d refusals recorded, want each", len(rs))
	}
}

// use makes the joiner's certificate key that one.
func (j *joiner) use(key []byte) {
	j.t.Helper()
	j.node = key
	var err error
	j.body.Csr, err = keyring.NewCSR(key)
	must(j.t, err)
}

// suspend writes what an operator's word would.
func (w *world) suspend(id string) {
	w.t.Helper()
	k, err := keyring.SuspendKey(*w.key(id), "while we look")
	must(w.t, err)
	w.write(state.PutKey(&k))
}

// write puts a record where it lies, past the controller.
func (w *world) write(e store.Entry) {
	w.t.Helper()
	at, err := w.engine.Commit(w.t.Context(), store.Txn{Puts: []store.Entry{e}})
	must(w.t, err)
	_, err = w.source.WaitRevision(w.t.Context(), at)
	must(w.t, err)
}

func TestAnAdministratorsKeyJoinsNothing(t *testing.T) {
	t.Parallel()
	w := start(t)
	key := newKey(t)
	admin, err := keyring.NewAdmin("bob", public(key), w.clock.now())
	must(t, err)
	w.write(state.PutAdmin(&admin))
	j := newJoiner(t, w.boot, "x", "eu-west")
	j.use(key)
	_, err = w.Join(t.Context(), j.attempt())
	wantKind(t, "an administrator's key", err, fault.Conflict, "it is an administrator's")
}

func TestALostAnswerIsAskedForAgain(t *testing.T) {
	t.Parallel()
	w := start(t)
	secret := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.MaxUses = proto.Uint32(1) })
	j := newJoiner(t, secret, "web-1", "eu-west")
	first, err := w.Join(t.Context(), j.attempt())
	must(t, err)
	again, err := w.Join(t.Context(), j.attempt())
	must(t, err)
	if again.NodeId != first.NodeId || w.key(secret.ID()).Uses != 1 || w.key(secret.ID()).State != keyring.KeyExhausted {
		t.Errorf("second answer for %s, key %+v", again.NodeId, w.key(secret.ID()))
	}
	_, err = w.Join(t.Context(), newJoiner(t, secret, "web-2", "eu-west").attempt())
	wantKind(t, "another one", err, fault.Exhausted, "1 of 1 uses, last by "+j.id()+" (web-1) at")
	w.clock.advance(48 * time.Hour)
	w.eventually("its departure, unconfirmed", func() bool { return w.node(j).State == keyring.NodeDeparted })
	_, err = w.Join(t.Context(), j.attempt())
	wantKind(t, "two days later", err, fault.Denied, "begin anew")

	// An expired key still answers a node that has confirmed; a revoked one answers nobody.
	secret = w.issue(nil)
	k := w.joined(secret, "web-3", "eu-west")
	w.clock.advance(25 * time.Hour)
	w.eventually("expiry", func() bool { return w.key(secret.ID()).State == keyring.KeyExpired })
	if _, err := w.Join(t.Context(), k.attempt()); err != nil {
		t.Errorf("expired key, same join: %v", err)
	}
	_, _, _, err = w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: secret.ID()})
	must(t, err)
	_, err = w.Join(t.Context(), k.attempt())
	wantKind(t, "revoked key, same join", err, fault.Denied, "revoked")
}

// The commit came through, its answer did not: the same join gets the same node.
func TestACommitInDoubtBurnsNothing(t *testing.T) {
	t.Parallel()
	w := start(t)
	secret := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.MaxUses = proto.Uint32(1) })
	j := newJoiner(t, secret, "web-1", "eu-west")
	w.engine.setSpoil(func(txn store.Txn) (bool, error) {
		if slices.ContainsFunc(txn.Puts, func(e store.Entry) bool { return e.Key == state.NodePath(j.id()) }) {
			return true, fmt.Errorf("the connection broke: %w", store.ErrInDoubt)
		}
		return false, nil
	})
	_, err := w.Join(t.Context(), j.attempt())
	if !errors.Is(err, store.ErrInDoubt) {
		t.Fatalf("%v, want in doubt", err)
	}
	w.engine.setSpoil(nil)
	answer, err := w.Join(t.Context(), j.attempt())
	must(t, err)
	if answer.NodeId != j.id() || w.key(secret.ID()).Uses != 1 {
		t.Errorf("answer for %s, %d uses", answer.NodeId, w.key(secret.ID()).Uses)
	}
}

func TestTenRaceForThreeUses(t *testing.T) {
	t.Parallel()
	w := start(t)
	secret := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.MaxUses = proto.Uint32(3) })
	var mu sync.Mutex
	results := map[fault.Kind]int{}
	admitted := 0
	var racers sync.WaitGroup
	for i := range 10 {
		j := newJoiner(t, secret, fmt.Sprintf("racer-%d", i), "eu-west")
		racers.Go(func() {
			_, err := w.Join(t.Context(), j.attempt())
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				admitted++
				return
			}
			results[fault.KindOf(err)]++
		})
	}
	racers.Wait()
	if admitted != 3 || results[fault.Exhausted] != 7 || w.key(secret.ID()).Uses != 3 || len(w.view().Keyring.NodesUnder(secret.ID())) != 3 {
		t.Errorf("%d admitted, refusals %v, %d uses", admitted, results, w.key(secret.ID()).Uses)
	}
}

// Names and places are rules over many records: they hold when many come at once.
func TestRacersShareNoNameAndNoPlace(t *testing.T) {
	t.Parallel()
	w := start(t)
	secret := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.MaxActive = 2 })
	other := w.issue(nil)
	var racers sync.WaitGroup
	for i := range 8 {
		a, b := newJoiner(t, secret, fmt.Sprintf("place-%d", i), "eu-west"), newJoiner(t, other, "the-same", "eu-west")
		racers.Go(func() { _, _ = w.Join(t.Context(), a.attempt()) })
		racers.Go(func() { _, _ = w.Join(t.Context(), b.attempt()) })
	}
	racers.Wait()
	if n := len(w.view().Keyring.NodesUnder(secret.ID())); n != 2 {
		t.Errorf("%d nodes on 2 places", n)
	}
	if n := len(w.view().Keyring.NodesUnder(other.ID())); n != 1 {
		t.Errorf("%d nodes of one name", n)
	}
}

func TestAnUnconfirmedJoinReturnsItsUse(t *testing.T) {
	t.Parallel()
	w := start(t)
	secret := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.MaxUses = proto.Uint32(1) })
	j := newJoiner(t, secret, "web-1", "eu-west")
	_, err := w.Join(t.Context(), j.attempt())
	must(t, err)
	w.clock.advance(keyring.UnconfirmedAfter)
	w.eventually("departure", func() bool { return w.node(j).State == keyring.NodeDeparted })
	if k := w.key(secret.ID()); k.Uses != 0 || k.State != keyring.KeyActive || len(k.RecentUses) != 0 {
		t.Errorf("key: %+v", k)
	}
	if k := w.view().Keyring.ActiveSessionKey(j.id()); k != nil {
		t.Errorf("its session key still signs: %+v", k)
	}
	_, err = w.Confirm(t.Context(), j.id())
	wantKind(t, "confirm too late", err, fault.Conflict, "departed")
	w.eventually("its leaving the audiences", func() bool { return !w.opens(j, keyring.AudienceProxies) && !w.opens(j, keyring.AudienceGossip) })
	w.joined(secret, "web-1", "eu-west") // the use and the name are free again
}

func TestConfirmRenewLeave(t *testing.T) {
	t.Parallel()
	w := start(t)
	j := w.joined(w.boot, "web-1", "eu-west")
	before := w.view().Revision
	if _, err := w.Confirm(t.Context(), j.id()); err != nil || w.view().Revision != before {
		t.Errorf("confirm again: %v, revision %v, was %v", err, w.view().Revision, before)
	}
	_, err := w.Confirm(t.Context(), "n-nobody")
	wantKind(t, "confirm nobody", err, fault.NotFound, "n-nobody")

	w.clock.advance(16 * time.Hour)
	renewed, err := w.Renew(t.Context(), j.id(), j.body.Csr)
	must(t, err)
	cert, err := x509.ParseCertificate(renewed.Certificate)
	must(t, err)
	if want := w.clock.now().Add(keyring.NodeCertLife); !cert.NotAfter.Equal(want) || !w.node(j).CertExpiresAt.Equal(want) {
		t.Errorf("until %v, record %v, want %v", cert.NotAfter, w.node(j).CertExpiresAt, want)
	}
	_, err = w.Renew(t.Context(), j.id(), w.founder.body.Csr)
	wantKind(t, "renew for another key", err, fault.Denied, "another key than its own")
	_, err = w.Renew(t.Context(), j.id(), []byte("x"))
	wantKind(t, "renew for garbage", err, fault.Invalid, "certificate request")

	_, err = w.Leave(t.Context(), j.id())
	must(t, err)
	must(t, second(w.Leave(t.Context(), j.id()))) // the answer was lost
	if n := w.node(j); n.State != keyring.NodeDeparted || n.Reason != "left" {
		t.Errorf("node: %+v", n)
	}
	if records := w.trail.with(audit.KindAdmin, "action", "node.leave"); len(records) != 1 || records[0].Detail["node"] != j.id() {
		t.Errorf("records: %v", records)
	}
	for _, k := range w.view().Keyring.SigningKeysOf(j.id()) {
		if k.State != keyring.SigningVerifyOnly {
			t.Errorf("session key %s is %s: what it signed counts until it is over", k.KID, k.State)
		}
	}
	_, err = w.Renew(t.Context(), j.id(), j.body.Csr)
	wantKind(t, "renew after leaving", err, fault.Denied, "departed")
	_, err = w.Leave(t.Context(), w.founder.id())
	wantKind(t, "the last control node leaves", err, fault.Denied, "add control nodes first")
}

func TestASilentNodeLapsesDepartsAndComesBack(t *testing.T) {
	t.Parallel()
	w := start(t)
	j, gone := w.joined(w.boot, "web-1", "eu-west"), w.joined(w.boot, "web-2", "eu-west")
	w.pass(keyring.LapseAfter, j, gone)
	w.eventually("lapse", func() bool { return w.node(j).State == keyring.NodeLapsed && w.node(gone).State == keyring.NodeLapsed })
	_, err := w.Renew(t.Context(), j.id(), j.body.Csr)
	must(t, err)
	if w.node(j).State != keyring.NodeActive {
		t.Errorf("its key did not bring it back: %s", w.node(j).State)
	}
	w.pass(keyring.DepartAfter, gone)
	w.eventually("departure, which is recorded", func() bool {
		records := w.trail.with(audit.KindAdmin, "action", "node.depart")
		return w.node(gone).State == keyring.NodeDeparted && len(records) == 1 && records[0].Detail["node"] == gone.id()
	})
	if n := w.node(w.founder); n.State != keyring.NodeActive {
		t.Errorf("the founder is %s", n.State)
	}
}

func TestOnlyTheLeaderWrites(t *testing.T) {
	t.Parallel()
	w := newWorld(t) // does not lead
	w.eventually("a view", func() bool { return w.view() != nil })
	before := w.view().Revision
	for what, call := range map[string]func() error{
		"join": func() error {
			_, err := w.Join(t.Context(), newJoiner(t, w.boot, "x", "eu-west").attempt())
			return err
		},
		"confirm": func() error { _, err := w.Confirm(t.Context(), w.founder.id()); return err },
		"revoke": func() error {
			_, _, err := w.Revoke(t.Context(), "admin/ana", &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_USER, Value: "okta/x"})
			return err
		},
		"apply":  func() error { _, err := w.Apply(t.Context(), "admin/ana", &iapmeshv1.ApplyRequest{}); return err },
		"status": func() error { _, err := w.Status(t.Context()); return err },
		"issue": func() error {
			_, _, err := w.IssueKey(t.Context(), "admin/ana", &iapmeshv1.IssueKeyRequest{PublicKey: public(newKey(t)), Name: "k", Grants: []iapmeshv1.Role{2}, Ttl: durationpb.New(time.Hour)})
			return err
		},
	} {
		err := call()
		var elsewhere *control.NotLeadingError
		if !errors.As(err, &elsewhere) || elsewhere.ID != "n-other" || elsewhere.Address != "127.0.0.1:2" || !fault.Is(err, fault.Unavailable) {
			t.Errorf("%s: %v, want the leader's name and address", what, err)
		}
	}
	if w.view().Revision != before || !strings.Contains(w.NotLeading().Error(), "n-other") {
		t.Errorf("something was written, or %v", w.NotLeading())
	}
}

// A new leader whose clock is behind writes no earlier time than the one before it.
func TestTimesNeverGoBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	founded := w.clock.now()
	w.clock.advance(-time.Hour)
	w.start()
	j := newJoiner(t, w.boot, "x", "eu-west")
	_, err := w.Join(t.Context(), j.attempt())
	must(t, err)
	if at := w.node(j).EnrolledAt; at.Before(founded) {
		t.Errorf("enrolled at %v, before the mesh was founded at %v", at, founded)
	}
}
