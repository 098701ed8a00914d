package control_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/control"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func TestAKeyIsIssuedOnceAndRotated(t *testing.T) {
	t.Parallel()
	w := start(t)
	secret := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.Name = "fleet" })
	_, _, err := w.IssueKey(t.Context(), "admin/ana", &iapmeshv1.IssueKeyRequest{PublicKey: secret.PublicKey(), Name: "again", Grants: []iapmeshv1.Role{2}})
	wantKind(t, "the same key again", err, fault.Conflict, "is there already")
	_, _, err = w.IssueKey(t.Context(), "admin/ana", &iapmeshv1.IssueKeyRequest{PublicKey: public(newKey(t)), Name: "x", Grants: []iapmeshv1.Role{2}, SourceCidrs: []string{"10.0.0.1"}})
	wantKind(t, "no CIDR", err, fault.Invalid, "source_cidrs")

	old := w.joined(secret, "web-1", "eu-west")
	next, err := keyring.GenerateKey(w.pin, nil)
	must(t, err)
	w.clock.advance(time.Second)
	before, after, _, err := w.RotateKey(t.Context(), "admin/ana", &iapmeshv1.RotateKeyRequest{Key: "fleet", SuccessorPublicKey: next.PublicKey(), Grace: durationpb.New(time.Hour)})
	must(t, err)
	if before.State != keyring.KeyRetiring || before.Successor != next.ID() || after.Predecessor != secret.ID() || after.Name != "fleet" {
		t.Errorf("rotated %+v to %+v", before, after)
	}
	w.joined(secret, "in-grace", "eu-west")
	w.joined(next, "by-successor", "eu-west")
	w.clock.advance(time.Hour + 2*keyring.Skew)
	w.eventually("retirement", func() bool { return w.key(secret.ID()).State == keyring.KeyRetired })
	_, err = w.Join(t.Context(), newJoiner(t, secret, "too-late", "eu-west").attempt())
	wantKind(t, "after the grace", err, fault.Denied, "use its successor "+next.ID())
	if w.node(old).State != keyring.NodeActive {
		t.Errorf("a node of the rotated key is %s", w.node(old).State)
	}
	_, _, _, err = w.RotateKey(t.Context(), "admin/ana", &iapmeshv1.RotateKeyRequest{Key: secret.ID(), SuccessorPublicKey: public(newKey(t))})
	wantKind(t, "rotate what is retired", err, fault.Conflict, "retired")
	if rs := w.trail.with(audit.KindRotation, "action", "key.rotate"); len(rs) != 1 || rs[0].Detail["successor"] != next.ID() || rs[0].Actor.Subject != "admin/ana" {
		t.Errorf("records: %+v", rs)
	}
	if got := control.Keys(w.view()); len(got) != 3 || got[0].ID != next.ID() {
		t.Errorf("%d keys, want the newest first", len(got))
	}
}

// A name that a key has which admits nodes, or may come to, means that key: no second one gets it. A successor has its predecessor's.
func TestANameMeansOneKey(t *testing.T) {
	t.Parallel()
	w := start(t)
	named := func(r *iapmeshv1.IssueKeyRequest) { r.Name = "fleet" }
	again := func() error {
		return second2(w.IssueKey(t.Context(), "admin/ana", &iapmeshv1.IssueKeyRequest{PublicKey: public(newKey(t)), Name: "fleet", Grants: []iapmeshv1.Role{iapmeshv1.Role_ROLE_PROXY}}))
	}
	first := w.issue(named)
	wantKind(t, "beside an active one", again(), fault.Conflict, "key "+first.ID()+` has the name "fleet", and is active: rotate or revoke that one`)
	must(t, errOf(w.SuspendKey(t.Context(), "admin/ana", "fleet", "")))
	wantKind(t, "beside a suspended one", again(), fault.Conflict, first.ID()+` has the name "fleet", and is suspended`)
	must(t, errOf(w.ResumeKey(t.Context(), "admin/ana", "fleet")))

	next, err := keyring.GenerateKey(w.pin, nil)
	must(t, err)
	_, after, _, err := w.RotateKey(t.Context(), "admin/ana", &iapmeshv1.RotateKeyRequest{Key: "fleet", SuccessorPublicKey: next.PublicKey(), Grace: durationpb.New(time.Hour)})
	must(t, err)
	if after.Name != "fleet" {
		t.Errorf("the successor is called %s", after.Name)
	}
	wantKind(t, "beside a rotated one", again(), fault.Conflict, next.ID()+` has the name "fleet", and is active`)
	must(t, fourth(w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: next.ID(), Cascade: iapmeshv1.Cascade_CASCADE_KEEP})))
	must(t, again()) // its time is over in 24 hours, and with it its claim to the name
	w.clock.advance(keyring.DefaultKeyTTL + 2*keyring.Skew)
	must(t, again())
}

func TestRevokingAKeyTakesWhatItsCascadeSays(t *testing.T) {
	t.Parallel()
	for cascade, want := range map[iapmeshv1.Cascade]keyring.NodeState{
		iapmeshv1.Cascade_CASCADE_UNSPECIFIED: keyring.NodeActive,
		iapmeshv1.Cascade_CASCADE_KEEP:        keyring.NodeActive,
		iapmeshv1.Cascade_CASCADE_QUARANTINE:  keyring.NodeQuarantined,
		iapmeshv1.Cascade_CASCADE_KILL:        keyring.NodeRevoked,
	} {
		t.Run(cascade.String(), func(t *testing.T) {
			t.Parallel()
			w := start(t)
			secret := w.issue(nil)
			bystander, j := w.joined(w.boot, "bystander", "eu-west"), w.joined(secret, "web-1", "eu-west")
			must(t, second(w.SetSecret(t.Context(), "admin/ana", "okta", []byte("s3cret"))))
			assertion := w.view().Keyring.ActiveAssertionKey("eu-west", "")
			before, held := w.view().Revision, *w.view().Keyring.Audiences[keyring.AudienceProxies]

			_, blast, _, err := w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: secret.ID(), Cascade: cascade, DryRun: true})
			must(t, err)
			if w.view().Revision != before || len(w.trail.with(audit.KindRevocation, "action", "key.revoke")) != 0 {
				t.Error("a dry run wrote something")
			}
			_, affected, _, err := w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: secret.ID(), Cascade: cascade, Reason: "leaked"})
			must(t, err)
			if len(blast) != len(affected) || (len(affected) == 1) != (want != keyring.NodeActive) {
				t.Errorf("the dry run said %d nodes, it was %d", len(blast), len(affected))
			}
			if w.key(secret.ID()).State != keyring.KeyRevoked || w.node(j).State != want || w.node(bystander).State != keyring.NodeActive {
				t.Errorf("key %s, node %s, bystander %s", w.key(secret.ID()).State, w.node(j).State, w.node(bystander).State)
			}
			if rs := w.trail.with(audit.KindRevocation, "action", "key.revoke"); len(rs) != 1 || rs[0].Detail["reason"] != "leaked" {
				t.Errorf("records: %+v", rs)
			}
			if want == keyring.NodeActive {
				return
			}
			for _, k := range w.view().Keyring.SigningKeysOf(j.id()) {
				if k.Verifies() {
					t.Errorf("its session key is %s: what it signed still counts", k.State)
				}
			}
			for _, audience := range []string{keyring.AudienceProxies, keyring.AudienceGossip, keyring.AssertAudience("eu-west", "")} {
				w.eventually(audience+" under a new key", func() bool {
					return !w.opens(j, audience) && w.opens(bystander, audience) && w.opens(w.founder, audience)
				})
			}
			// What it could open before opens nothing that is there now.
			key, err := seal.OpenAudience(held, j.id(), j.sealing)
			must(t, err)
			for name, s := range w.view().Keyring.Secrets {
				if _, err := seal.OpenSecret(key, *s); err == nil {
					t.Errorf("the old key opens %s", name)
				}
			}
			got, err := (seal.Member{Node: bystander.id(), Key: bystander.sealing}).Open(w.view().Keyring, keyring.AudienceProxies, keyring.UserSecret("okta"))
			if err != nil || string(got) != "s3cret" {
				t.Errorf("a member that stayed opens %q, %v", got, err)
			}
			now := w.view().Keyring.ActiveAssertionKey("eu-west", "")
			switch first := w.view().Keyring.SigningKeys[assertion.KID]; want {
			case keyring.NodeQuarantined: // a successor in the ordinary way, which breaks nothing
				if now == nil || now.KID != assertion.KID || !now.RotateRequested {
					t.Errorf("assertion key: %+v, want a successor asked for", now)
				}
			case keyring.NodeRevoked: // not trusted for a moment longer
				if now == nil || now.KID == assertion.KID || first.State != keyring.SigningRevoked {
					t.Errorf("assertion key %+v, before it %+v: want the key that the node held revoked, and another in use", now, first)
				}
			}
		})
	}
}

func second[A any](_ A, err error) error { return err }

// A cascade larger than one commit reaches every node.
func TestALargeCascade(t *testing.T) {
	t.Parallel()
	w := start(t)
	secret := w.issue(nil)
	const nodes = 45
	for i := range nodes {
		j := newJoiner(t, secret, fmt.Sprintf("web-%d", i), "eu-west")
		must(t, second(w.Join(t.Context(), j.attempt())))
	}
	if rotating, _, err := w.RotateSigningKeys(t.Context(), "admin/ana", &iapmeshv1.RotateSigningKeysRequest{Kind: iapmeshv1.SigningKeyKind_SIGNING_KEY_KIND_SESSION}); err != nil || len(rotating) != nodes+1 {
		t.Errorf("%d session keys rotate, %v", len(rotating), err)
	}
	_, affected, _, err := w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: secret.ID(), Cascade: iapmeshv1.Cascade_CASCADE_KILL})
	must(t, err)
	if len(affected) != nodes {
		t.Errorf("%d nodes, want %d", len(affected), nodes)
	}
	for _, n := range w.view().Keyring.NodesUnder(secret.ID()) {
		if n.State != keyring.NodeRevoked {
			t.Errorf("node %s is %s", n.ID, n.State)
		}
	}
	if rs := w.trail.with(audit.KindRevocation, "action", "key.revoke"); len(rs) != 1 {
		t.Errorf("%d records", len(rs))
	}
}

func TestQuorumIsNeverRevoked(t *testing.T) {
	t.Parallel()
	w := start(t)
	_, _, _, err := w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: w.boot.ID(), Cascade: iapmeshv1.Cascade_CASCADE_KILL, DryRun: true})
	// The founder joined under no key's signature, but counts under the bootstrap key.
	wantKind(t, "kill all", err, fault.Denied, "add control nodes first, by another key, or choose cascade keep")
	second := w.joined(w.boot, "control-2", "us-east", iapmeshv1.Role_ROLE_CONTROL)
	_, _, _, err = w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: w.boot.ID(), Cascade: iapmeshv1.Cascade_CASCADE_QUARANTINE})
	wantKind(t, "quarantine the leader and whoever could lead", err, fault.Denied, "leads; this would take 2 of 2 control nodes")
	wantKind(t, "the same", err, fault.Denied, "add control nodes first, by another key")
	_, _, err = w.Revoke(t.Context(), "admin/ana", &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE, Value: "founder"})
	wantKind(t, "revoke the leader", err, fault.Denied, "leads")
	if w.node(w.founder).State != keyring.NodeActive || w.node(second).State != keyring.NodeActive || w.key(w.boot.ID()).State != keyring.KeyActive {
		t.Error("something was revoked all the same")
	}

	// Another that could lead: now it helps to hand the lead over.
	w.joined(w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.Grants = []iapmeshv1.Role{iapmeshv1.Role_ROLE_CONTROL} }), "control-3", "us-east", iapmeshv1.Role_ROLE_CONTROL)
	w.everybodyReports()
	_, _, _, err = w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: w.boot.ID(), Cascade: iapmeshv1.Cascade_CASCADE_QUARANTINE})
	wantKind(t, "quarantine the leader", err, fault.Denied, "leads: hand the lead to another first (iapmesh control transfer), or choose cascade keep")
}

// A control node is a member of what it uses with its first view, and of all else soon after.
func TestControlNodesBecomeMembersOfAll(t *testing.T) {
	t.Parallel()
	w := start(t)
	proxy := w.joined(w.boot, "web-1", "us-east")
	j := w.joined(w.boot, "control-2", "ap-south", iapmeshv1.Role_ROLE_CONTROL)
	if !w.opens(j, keyring.AudienceControl) || !w.opens(j, keyring.AudienceGossip) {
		t.Error("it cannot open what it needs at once")
	}
	for _, audience := range []string{keyring.AudienceProxies, keyring.AssertAudience("us-east", ""), keyring.AssertAudience("eu-west", "")} {
		w.eventually("membership in "+audience, func() bool { return w.opens(j, audience) })
	}
	// An audience whose last proxy has gone is kept by the control nodes alone.
	must(t, second(w.Leave(t.Context(), proxy.id())))
	slot := keyring.AssertAudience("us-east", "")
	w.eventually("the slot without its proxy", func() bool { return !w.opens(proxy, slot) && w.opens(j, slot) && w.opens(w.founder, slot) })
	back := w.joined(w.boot, "web-2", "us-east")
	if !w.opens(back, slot) {
		t.Error("the next proxy of the region opens nothing")
	}
}

func TestSecrets(t *testing.T) {
	t.Parallel()
	w := start(t)
	for what, tc := range map[string]struct {
		name  string
		value []byte
		says  string
	}{
		"no name": {"", []byte("x"), "missing"}, "a path": {"../x", []byte("x"), "secret"}, "empty": {"x", nil, "0 bytes"}, "large": {"x", make([]byte, 64<<10+1), "65537 bytes"},
	} {
		_, err := w.SetSecret(t.Context(), "admin/ana", tc.name, tc.value)
		wantKind(t, what, err, fault.Invalid, tc.says)
	}
	must(t, second(w.SetSecret(t.Context(), "admin/ana", "handoff", []byte("mine")))) // beside the leader's own of that name
	proxy := w.joined(w.boot, "web-1", "eu-west")
	member := seal.Member{Node: proxy.id(), Key: proxy.sealing}
	own, err := member.Open(w.view().Keyring, keyring.AudienceProxies, keyring.SecretHandoff)
	must(t, err)
	if got, err := member.Open(w.view().Keyring, keyring.AudienceProxies, keyring.UserSecret("handoff")); err != nil || string(got) != "mine" || len(own) != 32 {
		t.Errorf("%q, %v; the leader's %d bytes", got, err, len(own))
	}
	must(t, second(w.SetSecret(t.Context(), "admin/ana", "handoff", []byte("later"))))
	if got, err := member.Open(w.view().Keyring, keyring.AudienceProxies, keyring.UserSecret("handoff")); err != nil || string(got) != "later" {
		t.Errorf("%q, %v", got, err)
	}
	// However many there are, revoking a proxy encrypts them anew in one commit.
	var last error
	stored := 0
	for i := 0; last == nil && i < 100; i++ {
		if _, last = w.SetSecret(t.Context(), "admin/ana", fmt.Sprintf("big-%d", i), make([]byte, 60<<10)); last == nil {
			stored++
		}
	}
	wantKind(t, "too many bytes", last, fault.Exhausted, "at most")
	if stored == 0 {
		t.Fatal("none was stored")
	}
	must(t, second2(w.Revoke(t.Context(), "admin/ana", &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE, Value: "web-1"})))
	w.eventually("new version", func() bool { return !w.opens(proxy, keyring.AudienceProxies) })
	if fresh, err := (seal.Member{Node: w.founder.id(), Key: w.founder.sealing}).Open(w.view().Keyring, keyring.AudienceProxies, keyring.SecretHandoff); err != nil || slices.Equal(fresh, own) {
		t.Errorf("hand-off key %v: %v: want another than the revoked node knows", len(fresh), err)
	}
}

func second2[A, B any](_ A, _ B, err error) error { return err }

func TestASessionKeySignsOnceAllLiveNodesHaveIt(t *testing.T) {
	t.Parallel()
	w := start(t)
	j, slow, dead := w.joined(w.boot, "web-1", "eu-west"), w.joined(w.boot, "slow", "us-east"), w.joined(w.boot, "dead", "us-east")
	w.clock.advance(keyring.LiveWithin) // who has not been heard since is not live
	first := w.view().Keyring.ActiveSessionKey(j.id())
	old := w.view()
	next := newKey(t)
	announce := func(node string, key []byte) error {
		_, err := w.AnnounceSigningKey(t.Context(), node, &iapmeshv1.AnnounceSigningKeyRequest{PublicKey: public(key), Proof: sign(key, node)})
		return err
	}
	_, err := w.AnnounceSigningKey(t.Context(), j.id(), &iapmeshv1.AnnounceSigningKeyRequest{PublicKey: public(next), Proof: sign(next, slow.id())})
	wantKind(t, "a proof for another node", err, fault.Denied, "proof")
	wantKind(t, "an unknown node", announce("n-nobody", next), fault.NotFound, "n-nobody")
	must(t, announce(j.id(), next))
	must(t, announce(j.id(), next)) // again: the answer was lost
	wantKind(t, "another one meanwhile", announce(j.id(), newKey(t)), fault.Conflict, "announced already")
	kid := keyring.SigningKID(keyring.SigningSession, public(next))
	k := w.view().Keyring.SigningKeys[kid]
	if k.State != keyring.SigningAnnounced {
		t.Fatalf("announced key is %s", k.State)
	}
	w.Reports.Set(slow.id(), &iapmeshv1.NodeReport{Revision: &iapmeshv1.Revision{Epoch: old.Revision.Epoch, Index: old.Revision.Index}})
	w.everybodyReports(slow, dead)
	if r := w.Readiness(w.view(), k); !slices.Equal(r.Waiting, []string{slow.id()}) || !slices.Equal(r.Lagging, []string{dead.id()}) || r.Ready {
		t.Errorf("acknowledged by those who serve it: %+v", r)
	}
	w.settled()
	if w.view().Keyring.SigningKeys[kid].State != keyring.SigningAnnounced {
		t.Error("it signs, though a live node cannot verify it")
	}
	w.everybodyReports(dead)
	w.eventually("promotion, the dead one notwithstanding", func() bool {
		return w.view().Keyring.SigningKeys[kid].State == keyring.SigningActive && w.view().Keyring.SigningKeys[first.KID].State == keyring.SigningVerifyOnly
	})
	w.eventually("its record", func() bool { return len(w.trail.with(audit.KindRotation, "kid", kid)) > 0 }) // written after the commit
	if rs := w.trail.with(audit.KindRotation, "kid", kid); len(rs) != 1 || rs[0].Detail["to"] != "active" {
		t.Errorf("records: %+v", rs)
	}
	w.eventually("its predecessor's end", func() bool {
		w.clock.advance(keyring.Skew)
		w.everybodyReports(dead)
		return w.view().Keyring.SigningKeys[first.KID].State == keyring.SigningDestroyed
	})
}

// A node that is cut off goes on signing with the key that the mesh thinks it has put down: what it signs verifies until an hour after
// it has heard of that.
func TestAKeyOutlivesItsHoldersIgnorance(t *testing.T) {
	t.Parallel()
	w := start(t)
	away, near := w.joined(w.boot, "away", "eu-west"), w.joined(w.boot, "near", "eu-west")
	old := map[*joiner]string{}
	for _, j := range []*joiner{away, near} {
		old[j] = w.view().Keyring.ActiveSessionKey(j.id()).KID
		next := newKey(t)
		_, err := w.AnnounceSigningKey(t.Context(), j.id(), &iapmeshv1.AnnounceSigningKeyRequest{PublicKey: public(next), Proof: sign(next, j.id())})
		must(t, err)
	}
	w.everybodyReports() // both are announced everywhere, and one node is cut off just then
	is := func(j *joiner) keyring.SigningState { return w.view().Keyring.SigningKeys[old[j]].State }
	w.eventually("both to be put down", func() bool { return is(near) == keyring.SigningVerifyOnly && is(away) == keyring.SigningVerifyOnly })
	w.eventually("the end of the key whose holder knows", func() bool {
		w.clock.advance(keyring.Skew)
		w.everybodyReports(away)
		return is(near) == keyring.SigningDestroyed
	})
	w.clock.advance(3 * time.Hour)
	w.everybodyReports(away)
	w.settled()
	if is(away) != keyring.SigningVerifyOnly {
		t.Errorf("a key is %s while its holder may still sign with it", is(away))
	}
	w.eventually("its end, once its holder knows", func() bool {
		w.clock.advance(keyring.Skew)
		w.everybodyReports()
		return is(away) == keyring.SigningDestroyed
	})
}

func TestAssertionKeysRotate(t *testing.T) {
	t.Parallel()
	w := start(t)
	first := w.view().Keyring.ActiveAssertionKey("eu-west", "")
	w.clock.advance(keyring.LiveWithin)
	kids, _, err := w.RotateSigningKeys(t.Context(), "admin/ana", &iapmeshv1.RotateSigningKeysRequest{Kind: iapmeshv1.SigningKeyKind_SIGNING_KEY_KIND_ASSERTION, Region: "eu-west"})
	if err != nil || !slices.Equal(kids, []string{first.KID}) {
		t.Fatalf("rotating %v, %v", kids, err)
	}
	var next *keyring.SigningKey
	w.eventually("announcement", func() bool {
		for _, k := range w.view().Keyring.SigningKeys {
			if k.Kind == keyring.SigningAssertion && k.State == keyring.SigningAnnounced {
				next = k
			}
		}
		return next != nil
	})
	w.everybodyReports()
	if r := w.Readiness(w.view(), next); !r.NotBefore.Equal(next.AnnouncedAt.Add(2*keyring.JWKSMaxAge)) || r.Ready {
		t.Errorf("readiness: %+v", r)
	}
	secret := keyring.AssertAudience("eu-west", "") + "/" + first.KID
	if w.view().Keyring.Secrets[secret] == nil {
		t.Fatal("the private half is not there")
	}
	w.clock.advance(2 * keyring.JWKSMaxAge)
	w.everybodyReports()
	w.eventually("promotion", func() bool { return w.view().Keyring.SigningKeys[next.KID].State == keyring.SigningActive })
	w.clock.advance(keyring.AssertionTokenLife + keyring.Skew)
	w.everybodyReports()
	w.eventually("the end of the first", func() bool {
		return w.view().Keyring.SigningKeys[first.KID].State == keyring.SigningDestroyed && w.view().Keyring.Secrets[secret] == nil
	})
	_, _, err = w.RotateSigningKeys(t.Context(), "admin/ana", &iapmeshv1.RotateSigningKeysRequest{Node: "nobody"})
	wantKind(t, "of nobody", err, fault.NotFound, "nobody")
	_, _, err = w.RotateSigningKeys(t.Context(), "admin/ana", &iapmeshv1.RotateSigningKeysRequest{Region: "nowhere"})
	wantKind(t, "of nowhere", err, fault.NotFound, "no active signing key")
	w.clock.advance(25 * time.Hour) // by age, too
	w.eventually("the daily rotation", func() bool {
		return w.view().Keyring.SigningKeys[next.KID].State != keyring.SigningActive || announced(w)
	})
}

func announced(w *world) bool {
	for _, k := range w.view().Keyring.SigningKeys {
		if k.Kind == keyring.SigningAssertion && k.State == keyring.SigningAnnounced {
			return true
		}
	}
	return false
}

// Two announcements at once: one key waits, never two.
func TestRacingAnnouncements(t *testing.T) {
	t.Parallel()
	w := start(t)
	errs := make(chan error, 8)
	for range cap(errs) {
		key := newKey(t)
		go func() {
			_, err := w.AnnounceSigningKey(t.Context(), w.founder.id(), &iapmeshv1.AnnounceSigningKeyRequest{PublicKey: public(key), Proof: sign(key, w.founder.id())})
			errs <- err
		}()
	}
	won := 0
	for range cap(errs) {
		if err := <-errs; err == nil {
			won++
		} else if !fault.Is(err, fault.Conflict) {
			t.Errorf("%v", err)
		}
	}
	if won != 1 {
		t.Errorf("%d keys are announced", won)
	}
}
