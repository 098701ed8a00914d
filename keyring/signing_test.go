package keyring_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
)

func byKID(keys ...keyring.SigningKey) map[string]*keyring.SigningKey {
	m := map[string]*keyring.SigningKey{}
	for _, k := range keys {
		m[k.KID] = &k
	}
	return m
}

func announced(t testing.TB, n keyring.Node, name string, have map[string]*keyring.SigningKey) keyring.SigningKey {
	t.Helper()
	k, err := keyring.AnnounceSessionKey(n, public(name), have, now)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func p256(t testing.TB) []byte {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(priv.Public())
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func inState(k keyring.SigningKey, s keyring.SigningState) keyring.SigningKey {
	k.State = s
	return k
}

func TestANodesFirstSessionKeySignsAtOnce(t *testing.T) {
	t.Parallel()
	n := in(enrolled(t, issued(t, nil), "a"), keyring.NodeActive)
	k := announced(t, n, "s1", nil)
	want := keyring.SigningKey{
		KID: keyring.SigningKID(keyring.SigningSession, public("s1")), Kind: keyring.SigningSession, Node: n.ID, Region: "eu-west",
		PublicKey: public("s1"), State: keyring.SigningActive, AnnouncedAt: now, ActiveAt: now, StateSince: now,
		ProvisioningKey: n.ProvisioningKey,
	}
	if diff := cmp.Diff(want, k); diff != "" {
		t.Error(diff)
	}
}

func TestALaterSessionKeyIsAnnouncedFirst(t *testing.T) {
	t.Parallel()
	n := in(enrolled(t, issued(t, nil), "a"), keyring.NodeActive)
	other := in(enrolled(t, issued(t, nil), "b"), keyring.NodeActive)
	first := announced(t, n, "s1", nil)
	second := announced(t, n, "s2", byKID(first, announced(t, other, "o1", nil)))
	if second.State != keyring.SigningAnnounced || !second.ActiveAt.IsZero() {
		t.Errorf("second: %+v", second)
	}
	if again := announced(t, n, "s2", byKID(first, second)); !cmp.Equal(again, second) {
		t.Errorf("announced again: %+v", again)
	}
	_, err := keyring.AnnounceSessionKey(n, public("s3"), byKID(first, second), now)
	wantRefusal(t, err, fault.Conflict, second.KID+" is announced already")
	for _, gone := range []keyring.SigningState{keyring.SigningVerifyOnly, keyring.SigningRetired, keyring.SigningDestroyed, keyring.SigningRevoked} {
		_, err := keyring.AnnounceSessionKey(n, public("s1"), byKID(inState(first, gone)), now)
		wantRefusal(t, err, fault.Conflict, string(gone))
	}
	_, err = keyring.AnnounceSessionKey(other, public("s1"), byKID(first), now)
	wantRefusal(t, err, fault.Conflict, "active")
	if k := announced(t, n, "s4", byKID(inState(first, keyring.SigningRevoked))); k.State != keyring.SigningActive {
		t.Errorf("with the active key revoked, the next one is %s: nobody could sign in", k.State)
	}
}

func TestWhoMayAnnounceASessionKey(t *testing.T) {
	t.Parallel()
	n := in(enrolled(t, issued(t, nil), "a"), keyring.NodeActive)
	for name, tc := range map[string]struct {
		node keyring.Node
		pub  []byte
		kind fault.Kind
	}{
		"no key":         {n, nil, fault.Invalid},
		"a quarantined":  {in(n, keyring.NodeQuarantined), public("s"), fault.Denied},
		"a departed":     {in(n, keyring.NodeDeparted), public("s"), fault.Denied},
		"a control node": {enrolled(t, issued(t, nil), "c", keyring.RoleControl), public("s"), fault.Denied},
		"half a key":     {n, public("s")[:16], fault.Invalid},
	} {
		if _, err := keyring.AnnounceSessionKey(tc.node, tc.pub, nil, now); !fault.Is(err, tc.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAssertionKeysTakeTurnsByRegionAndSelector(t *testing.T) {
	t.Parallel()
	announce := func(region, selector string, have ...keyring.SigningKey) keyring.SigningKey {
		t.Helper()
		k, err := keyring.AnnounceAssertionKey(region, selector, p256(t), byKID(have...), now)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	first := announce("eu-west", "")
	if first.State != keyring.SigningActive {
		t.Errorf("the first of its slot is %s", first.State)
	}
	if k := announce("eu-west", "", first); k.State != keyring.SigningAnnounced {
		t.Errorf("the second is %s", k.State)
	}
	if k := announce("eu-west", "", inState(first, keyring.SigningRevoked)); k.State != keyring.SigningActive {
		t.Errorf("one after a revoked one is %s: nothing else could sign meanwhile", k.State)
	}
	for slot, k := range map[string]keyring.SigningKey{
		"another region": announce("us-east", "", first), "another selector": announce("eu-west", "x=y", first),
	} {
		if k.State != keyring.SigningActive {
			t.Errorf("%s: %s", slot, k.State)
		}
	}
	for name, spki := range map[string][]byte{"nothing": nil, "no DER": []byte("x"), "huge": make([]byte, 1000), "Ed25519": ed25519SPKI(t)} {
		_, err := keyring.AnnounceAssertionKey("eu-west", "", spki, nil, now)
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func ed25519SPKI(t testing.TB) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public("x"))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestPromotionLeavesOneActiveKey(t *testing.T) {
	t.Parallel()
	n := in(enrolled(t, issued(t, nil), "a"), keyring.NodeActive)
	other := announced(t, in(enrolled(t, issued(t, nil), "b"), keyring.NodeActive), "o1", nil)
	first := announced(t, n, "s1", nil)
	first.RotateRequested = true
	second := announced(t, n, "s2", byKID(first))
	later := now.Add(time.Minute)
	changed, err := keyring.Promote(second, byKID(first, second, other), later)
	if err != nil {
		t.Fatal(err)
	}
	got := byKID(changed...)
	if len(got) != 2 || got[second.KID].State != keyring.SigningActive || got[second.KID].ActiveAt != later {
		t.Fatalf("changed %+v", changed)
	}
	old := got[first.KID]
	if old.State != keyring.SigningVerifyOnly || old.RotateRequested || old.RetireAt != later.Add(keyring.SessionTokenLife+keyring.Skew) {
		t.Errorf("the old key: %+v", old)
	}
	_, err = keyring.Promote(*got[second.KID], byKID(*got[second.KID]), later)
	wantRefusal(t, err, fault.Conflict, "active")
}

func TestSigningKeyTransitions(t *testing.T) {
	t.Parallel()
	all := []keyring.SigningState{
		keyring.SigningAnnounced, keyring.SigningActive, keyring.SigningVerifyOnly,
		keyring.SigningRetired, keyring.SigningDestroyed, keyring.SigningRevoked,
	}
	type moves map[keyring.SigningState]keyring.SigningState
	for name, tc := range map[string]struct {
		do    func(k keyring.SigningKey) (keyring.SigningKey, error)
		moves moves
	}{
		"stop": {
			func(k keyring.SigningKey) (keyring.SigningKey, error) { return keyring.StopSigning(k, now) },
			moves{keyring.SigningAnnounced: keyring.SigningVerifyOnly, keyring.SigningActive: keyring.SigningVerifyOnly},
		},
		"destroy": {
			func(k keyring.SigningKey) (keyring.SigningKey, error) { return keyring.DestroySigningKey(k, now) },
			moves{keyring.SigningRetired: keyring.SigningDestroyed},
		},
		"ask for rotation": {keyring.RequestRotation, moves{keyring.SigningActive: keyring.SigningActive}},
		"revoke": {
			func(k keyring.SigningKey) (keyring.SigningKey, error) {
				return keyring.RevokeSigningKey(k, "leaked", now)
			},
			moves{
				keyring.SigningAnnounced: keyring.SigningRevoked, keyring.SigningActive: keyring.SigningRevoked,
				keyring.SigningVerifyOnly: keyring.SigningRevoked, keyring.SigningRevoked: keyring.SigningRevoked,
			},
		},
	} {
		for _, from := range all {
			t.Run(name+" "+string(from), func(t *testing.T) {
				t.Parallel()
				after, err := tc.do(keyring.SigningKey{KID: "s-x", Kind: keyring.SigningSession, State: from})
				want, ok := tc.moves[from]
				if !ok {
					wantRefusal(t, err, fault.Conflict, string(from))
					want = from
				} else if err != nil {
					t.Error(err)
				}
				if after.State != want {
					t.Errorf("it is %s, want %s", after.State, want)
				}
			})
		}
	}
}

func TestAKeyVerifiesUntilItsLastTokenIsOver(t *testing.T) {
	t.Parallel()
	k, err := keyring.StopSigning(keyring.SigningKey{Kind: keyring.SigningSession, State: keyring.SigningActive}, now)
	if err != nil {
		t.Fatal(err)
	}
	end := now.Add(61 * time.Minute)
	for name, tc := range map[string]struct{ known, at time.Time }{
		"while tokens stand":                          {now, end.Add(-time.Second)},
		"while its holder may still sign":             {time.Time{}, end.Add(time.Hour)},
		"while what it signed in ignorance may stand": {now.Add(time.Hour), end.Add(time.Hour - time.Second)},
	} {
		if _, changed := keyring.SweepSigningKey(k, tc.known, tc.at); changed || !k.Verifies() {
			t.Errorf("it is retired %s", name)
		}
	}
	if after, changed := keyring.SweepSigningKey(k, now, end); !changed || after.State != keyring.SigningRetired || after.Verifies() {
		t.Errorf("it is %s after its last token", after.State)
	}
}

func TestReadyToPromote(t *testing.T) {
	t.Parallel()
	at := revision.Revision{Epoch: 1, Index: 10}
	ack := func(node string, index uint64, ago time.Duration) keyring.Ack {
		return keyring.Ack{Node: node, Revision: revision.Revision{Epoch: 1, Index: index}, ReportedAt: now.Add(-ago)}
	}
	never := keyring.Ack{Node: "mute"}
	long, short := now.Add(-time.Hour), now.Add(-5*time.Second)
	for name, tc := range map[string]struct {
		key   func(k *keyring.SigningKey)
		since time.Time
		acks  []keyring.Ack
		want  keyring.Readiness
	}{
		"all hold it":                  {nil, long, []keyring.Ack{ack("b", 10, 0), ack("a", 11, time.Second)}, keyring.Readiness{Ready: true}},
		"one does not yet":             {nil, long, []keyring.Ack{ack("a", 10, 0), ack("b", 9, 0)}, keyring.Readiness{Waiting: []string{"b"}}},
		"an older epoch":               {nil, long, []keyring.Ack{{Node: "a", Revision: revision.Revision{Index: 99}, ReportedAt: now}}, keyring.Readiness{Waiting: []string{"a"}}},
		"one is silent":                {nil, long, []keyring.Ack{ack("a", 10, 0), ack("b", 9, 15*time.Second)}, keyring.Readiness{Ready: true, Lagging: []string{"b"}}},
		"one never reported":           {nil, long, []keyring.Ack{ack("a", 10, 0), never}, keyring.Readiness{Ready: true, Lagging: []string{"mute"}}},
		"the leader has just begun":    {nil, short, []keyring.Ack{ack("a", 10, 0), never}, keyring.Readiness{Waiting: []string{"mute"}}},
		"nobody is live":               {nil, long, []keyring.Ack{never}, keyring.Readiness{Lagging: []string{"mute"}}},
		"nobody at all":                {nil, long, nil, keyring.Readiness{}},
		"active already":               {func(k *keyring.SigningKey) { k.State = keyring.SigningActive }, long, []keyring.Ack{ack("a", 10, 0)}, keyring.Readiness{}},
		"of unknown revision":          {func(k *keyring.SigningKey) { k.Revision = revision.Revision{} }, long, []keyring.Ack{ack("a", 10, 0)}, keyring.Readiness{}},
		"assertion, key sets too old":  {assertionSince(119 * time.Second), long, []keyring.Ack{ack("a", 10, 0)}, keyring.Readiness{NotBefore: now.Add(time.Second)}},
		"assertion, key sets are anew": {assertionSince(120 * time.Second), long, []keyring.Ack{ack("a", 10, 0)}, keyring.Readiness{Ready: true, NotBefore: now}},
	} {
		k := keyring.SigningKey{Kind: keyring.SigningSession, State: keyring.SigningAnnounced, AnnouncedAt: now.Add(-time.Second), Revision: at}
		if tc.key != nil {
			tc.key(&k)
		}
		got := keyring.ReadyToPromote(k, keyring.PromoteFacts{Now: now, ListeningSince: tc.since, Acks: tc.acks})
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func assertionSince(ago time.Duration) func(k *keyring.SigningKey) {
	return func(k *keyring.SigningKey) { k.Kind, k.AnnouncedAt = keyring.SigningAssertion, now.Add(-ago) }
}
