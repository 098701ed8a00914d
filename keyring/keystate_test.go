package keyring_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

var allKeyStates = []keyring.KeyState{
	keyring.KeyPending, keyring.KeyActive, keyring.KeySuspended, keyring.KeyExhausted,
	keyring.KeyExpired, keyring.KeyRetiring, keyring.KeyRetired, keyring.KeyRevoked,
}

// What is not in an operation's row is a Conflict.
func TestKeyTransitions(t *testing.T) {
	t.Parallel()
	rotate := func(k keyring.Key) (keyring.Key, error) {
		after, _, err := keyring.RotateKey(k, keyring.RotateRequest{SuccessorPublicKey: public("next"), Grace: time.Hour, Now: now})
		return after, err
	}
	for name, tc := range map[string]struct {
		do    func(k keyring.Key) (keyring.Key, error)
		moves map[keyring.KeyState]keyring.KeyState
	}{
		"activate": {
			func(k keyring.Key) (keyring.Key, error) { return keyring.ActivateKey(k, now) },
			map[keyring.KeyState]keyring.KeyState{keyring.KeyPending: keyring.KeyActive},
		},
		"suspend": {
			func(k keyring.Key) (keyring.Key, error) { return keyring.SuspendKey(k, "audit") },
			map[keyring.KeyState]keyring.KeyState{keyring.KeyActive: keyring.KeySuspended},
		},
		"resume": {
			func(k keyring.Key) (keyring.Key, error) { return keyring.ResumeKey(k, nil, now) },
			map[keyring.KeyState]keyring.KeyState{keyring.KeySuspended: keyring.KeyActive},
		},
		"resume after expiry": {
			func(k keyring.Key) (keyring.Key, error) { return keyring.ResumeKey(k, nil, now.Add(48*time.Hour)) },
			map[keyring.KeyState]keyring.KeyState{keyring.KeySuspended: keyring.KeyExpired},
		},
		"rotate": {rotate, map[keyring.KeyState]keyring.KeyState{
			keyring.KeyActive: keyring.KeyRetiring, keyring.KeyExhausted: keyring.KeyRetiring, keyring.KeyExpired: keyring.KeyRetiring,
		}},
	} {
		for _, from := range allKeyStates {
			t.Run(name+" "+string(from), func(t *testing.T) {
				t.Parallel()
				k := issued(t, nil)
				k.State = from
				after, err := tc.do(k)
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

func TestTimeMovesKeys(t *testing.T) {
	t.Parallel()
	expiry := now.Add(24 * time.Hour)
	for name, tc := range map[string]struct {
		state keyring.KeyState
		uses  uint32
		at    time.Time
		want  keyring.KeyState
	}{
		"active, in time":               {keyring.KeyActive, 0, expiry.Add(59 * time.Second), keyring.KeyActive},
		"active, over":                  {keyring.KeyActive, 0, expiry.Add(time.Minute), keyring.KeyExpired},
		"active, used up":               {keyring.KeyActive, 1, now, keyring.KeyExhausted},
		"pending, over":                 {keyring.KeyPending, 0, expiry.Add(time.Hour), keyring.KeyPending},
		"suspended, over":               {keyring.KeySuspended, 0, expiry.Add(time.Hour), keyring.KeySuspended},
		"retiring, in its grace":        {keyring.KeyRetiring, 0, now.Add(time.Hour), keyring.KeyRetiring},
		"retiring, grace over":          {keyring.KeyRetiring, 0, now.Add(time.Hour + time.Minute), keyring.KeyRetired},
		"retired":                       {keyring.KeyRetired, 0, expiry.Add(time.Hour), keyring.KeyRetired},
		"revoked":                       {keyring.KeyRevoked, 1, expiry.Add(time.Hour), keyring.KeyRevoked},
		"exhausted stays, also expired": {keyring.KeyExhausted, 1, expiry.Add(time.Hour), keyring.KeyExhausted},
	} {
		k := issued(t, nil)
		k.State, k.Uses, k.GraceUntil = tc.state, tc.uses, now.Add(time.Hour)
		after, changed := keyring.SweepKey(k, tc.at)
		if after.State != tc.want || changed != (tc.want != tc.state) {
			t.Errorf("%s: %s, changed %v", name, after.State, changed)
		}
	}
}

func TestASuccessorHasTheSameScopeAndAllItsUses(t *testing.T) {
	t.Parallel()
	k := issued(t, func(r *keyring.KeyRequest) {
		cidr("10.0.0.0/8")(r)
		r.Regions, r.MaxUses, r.MaxActive, r.RouteSelector, r.TTL = []string{"eu-west"}, ptr(uint32(3)), 2, "x=y", 2*time.Hour
	})
	k.Uses, k.State = 3, keyring.KeyExhausted
	later := now.Add(90 * time.Minute)
	old, next, err := keyring.RotateKey(k, keyring.RotateRequest{SuccessorPublicKey: public("next"), Grace: time.Hour, By: "ben", Now: later})
	if err != nil {
		t.Fatal(err)
	}
	if old.State != keyring.KeyRetiring || old.Successor != next.ID || old.GraceUntil != later.Add(time.Hour) {
		t.Errorf("predecessor %+v", old)
	}
	want := k
	want.ID, want.PublicKey, want.Predecessor, want.State, want.Uses = next.ID, public("next"), k.ID, keyring.KeyActive, 0
	want.CreatedBy, want.CreatedAt, want.NotBefore, want.ExpiresAt = "ben", later, later, later.Add(2*time.Hour)
	if diff := cmp.Diff(want, next, cmp.Comparer(func(a, b interface{ String() string }) bool { return a.String() == b.String() })); diff != "" {
		t.Errorf("successor: %s", diff)
	}
}

func TestRotateRefuses(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]keyring.RotateRequest{
		"itself":           {SuccessorPublicKey: public("key"), Now: now},
		"no successor":     {Now: now},
		"an endless ttl":   {SuccessorPublicKey: public("next"), TTL: 999999 * time.Hour, Now: now},
		"a past grace":     {SuccessorPublicKey: public("next"), Grace: -1, Now: now},
		"an endless grace": {SuccessorPublicKey: public("next"), Grace: 999999 * time.Hour, Now: now},
	} {
		k := issued(t, nil)
		after, _, err := keyring.RotateKey(k, r)
		if !fault.Is(err, fault.Invalid) || after.State != keyring.KeyActive || after.Successor != "" {
			t.Errorf("%s: %v, %s", name, err, after.State)
		}
	}
}

func TestWithoutGraceARotatedKeyAdmitsNobody(t *testing.T) {
	t.Parallel()
	old, _, err := keyring.RotateKey(issued(t, nil), keyring.RotateRequest{SuccessorPublicKey: public("next"), Now: now})
	if err != nil || old.State != keyring.KeyRetired {
		t.Fatalf("%s, %v", old.State, err)
	}
	_, err = keyring.AdmitJoin(old, facts(nil))
	wantRefusal(t, err, fault.Denied, "retired")
}

func TestARevocationCascades(t *testing.T) {
	t.Parallel()
	k := issued(t, nil)
	states := []keyring.NodeState{
		keyring.NodeEnrolled, keyring.NodeActive, keyring.NodeLapsed, keyring.NodeDeparted, keyring.NodeQuarantined, keyring.NodeRevoked,
	}
	var under []*keyring.Node
	for _, s := range states {
		under = append(under, ptr(in(enrolled(t, k, string(s)), s)))
	}
	for cascade, want := range map[keyring.Cascade]map[string]keyring.NodeState{
		keyring.CascadeKeep: {},
		keyring.CascadeQuarantine: {
			"enrolled": keyring.NodeQuarantined, "active": keyring.NodeQuarantined, "lapsed": keyring.NodeQuarantined,
		},
		keyring.CascadeKill: {
			"enrolled": keyring.NodeRevoked, "active": keyring.NodeRevoked, "lapsed": keyring.NodeRevoked,
			"departed": keyring.NodeRevoked, "quarantined": keyring.NodeRevoked,
		},
	} {
		t.Run(string(cascade), func(t *testing.T) {
			t.Parallel()
			after, changed, err := keyring.RevokeKey(k, under, keyring.RevokeRequest{Cascade: cascade, Reason: "leaked", Now: now})
			if err != nil {
				t.Fatal(err)
			}
			if after.State != keyring.KeyRevoked || after.Cascade != cascade || after.RevokedAt != now || after.Reason != "leaked" {
				t.Errorf("key %+v", after)
			}
			got := map[string]keyring.NodeState{}
			for _, n := range changed {
				got[n.Name] = n.State
				if n.StateSince != now || n.Reason == "" {
					t.Errorf("%s: since %v, because %q", n.Name, n.StateSince, n.Reason)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			for i, n := range under {
				if n.State != states[i] {
					t.Errorf("%s: the node that went in was changed", n.Name)
				}
			}
		})
	}
}

func TestRevokingAnew(t *testing.T) {
	t.Parallel()
	node := []*keyring.Node{ptr(in(enrolled(t, issued(t, nil), "a"), keyring.NodeActive))}
	for _, from := range allKeyStates {
		k := issued(t, nil)
		k.State = from
		if after, _, err := keyring.RevokeKey(k, nil, keyring.RevokeRequest{Cascade: keyring.CascadeKeep, Now: now}); err != nil || after.State != keyring.KeyRevoked {
			t.Errorf("from %s: %s, %v", from, after.State, err)
		}
	}
	k, _, err := keyring.RevokeKey(issued(t, nil), nil, keyring.RevokeRequest{Cascade: keyring.CascadeKeep, Reason: "leaked", ByHolder: true, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	killed, changed, err := keyring.RevokeKey(k, node, keyring.RevokeRequest{Cascade: keyring.CascadeKill, Reason: "misused", Now: now.Add(time.Hour)})
	if err != nil || len(changed) != 1 || killed.Cascade != keyring.CascadeKill || killed.RevokedAt != now || killed.Reason != "leaked" {
		t.Errorf("stronger: %+v, %d nodes, %v", killed, len(changed), err)
	}
	_, _, err = keyring.RevokeKey(killed, node, keyring.RevokeRequest{Cascade: keyring.CascadeKeep, Now: now})
	wantRefusal(t, err, fault.Conflict, "already revoked with cascade kill")
	_, _, err = keyring.RevokeKey(issued(t, nil), node, keyring.RevokeRequest{Cascade: keyring.CascadeKill, ByHolder: true, Now: now})
	wantRefusal(t, err, fault.Denied, "keep only")
	_, _, err = keyring.RevokeKey(issued(t, nil), node, keyring.RevokeRequest{Cascade: "shrug", Now: now})
	wantRefusal(t, err, fault.Invalid, "shrug")
}

func TestWhatAQuarantineFindsLeftBehind(t *testing.T) {
	t.Parallel()
	nodes := map[string]*keyring.Node{
		"a": {ID: "a", ProvisioningKey: "k", BoundKey: "k", State: keyring.NodeActive},
		"b": {ID: "b", ProvisioningKey: "k", BoundKey: "other", State: keyring.NodeDeparted, Reason: "left"},
		"c": {ID: "c", ProvisioningKey: "other", BoundKey: "k", State: keyring.NodeDeparted, Reason: keyring.ReasonUnconfirmed},
		"d": {ID: "d", ProvisioningKey: "other", BoundKey: "other", State: keyring.NodeDeparted},
		"e": {ID: "e", ProvisioningKey: "k", BoundKey: "k", State: keyring.NodeRevoked},
	}
	keys := map[string]*keyring.SigningKey{
		"z": {KID: "z", Kind: keyring.SigningSession, Node: "b", State: keyring.SigningVerifyOnly}, "x": {KID: "x", Kind: keyring.SigningSession, Node: "b", State: keyring.SigningRetired},
		"y": {KID: "y", Kind: keyring.SigningSession, Node: "c", State: keyring.SigningActive}, "w": {KID: "w", Kind: keyring.SigningSession, Node: "b", State: keyring.SigningVerifyOnly},
		"v": {KID: "v", Kind: keyring.SigningSession, Node: "a", State: keyring.SigningActive}, "u": {KID: "u", Kind: keyring.SigningSession, Node: "d", State: keyring.SigningVerifyOnly},
		"t": {KID: "t", Kind: keyring.SigningAssertion, State: keyring.SigningActive},
	}
	s := snapshot(keyring.Contents{Nodes: nodes, SigningKeys: keys})
	for cascade, want := range map[keyring.Cascade][]string{keyring.CascadeKeep: nil, keyring.CascadeQuarantine: {"w", "z", "y"}, keyring.CascadeKill: nil} {
		var got []string
		for _, k := range s.LeftBehind("k", cascade) {
			got = append(got, k.KID)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", cascade, diff)
		}
	}
}
