package keyring_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

const (
	week = 7 * 24 * time.Hour
	day  = 24 * time.Hour
)

// scheduled is a key that lives four weeks, and that the node rotates each week with a day of grace.
func scheduled(t testing.TB, rotator keyring.Node) keyring.Key {
	t.Helper()
	k := issued(t, func(r *keyring.KeyRequest) { r.TTL, r.MaxUses = 4*week, ptr(uint32(3)) })
	k, err := keyring.ScheduleKey(k, keyring.Schedule{Every: week, Grace: day, Rotator: rotator.ID}, &rotator)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// rotatorNode is the node that rotates, trusted.
func rotatorNode(t testing.TB) keyring.Node {
	t.Helper()
	return in(enrolled(t, issued(t, nil), "rotator"), keyring.NodeActive)
}

func proposed(t testing.TB, k keyring.Key, by keyring.Node, name string, at time.Time) keyring.Key {
	t.Helper()
	p, _, err := keyring.ProposeSuccessor(k, keyring.ProposalRequest{SuccessorPublicKey: public(name), By: by, Now: at})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestASchedule(t *testing.T) {
	t.Parallel()
	n := rotatorNode(t)
	gone := in(n, keyring.NodeRevoked)
	plain := issued(t, nil)
	retired := plain
	retired.State, retired.Successor = keyring.KeyRetired, "next"
	for name, tc := range map[string]struct {
		key     keyring.Key
		s       keyring.Schedule
		rotator *keyring.Node
		kind    fault.Kind
		says    string
	}{
		"too often":          {plain, keyring.Schedule{Every: time.Second, Rotator: n.ID}, &n, fault.Invalid, "rotate_every"},
		"too seldom":         {plain, keyring.Schedule{Every: 400 * day, Rotator: n.ID}, &n, fault.Invalid, "rotate_every"},
		"grace too long":     {plain, keyring.Schedule{Every: week, Grace: 31 * day, Rotator: n.ID}, &n, fault.Invalid, "grace"},
		"grace below none":   {plain, keyring.Schedule{Every: week, Grace: -1, Rotator: n.ID}, &n, fault.Invalid, "grace"},
		"by nobody":          {plain, keyring.Schedule{Every: week}, nil, fault.Invalid, "rotator"},
		"grace alone":        {plain, keyring.Schedule{Grace: day}, nil, fault.Invalid, "rotate_every"},
		"by another":         {plain, keyring.Schedule{Every: week, Rotator: "n-other"}, &n, fault.Invalid, "rotator"},
		"by a revoked node":  {plain, keyring.Schedule{Every: week, Rotator: gone.ID}, &gone, fault.Conflict, "revoked"},
		"of a succeeded key": {retired, keyring.Schedule{Every: week, Rotator: n.ID}, &n, fault.Conflict, "retired"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			after, err := keyring.ScheduleKey(tc.key, tc.s, tc.rotator)
			wantRefusal(t, err, tc.kind, tc.says)
			if diff := cmp.Diff(tc.key, after); diff != "" {
				t.Errorf("it changed all the same: %s", diff)
			}
		})
	}
	k := scheduled(t, n)
	k.RotateRequested = true
	off, err := keyring.ScheduleKey(k, keyring.Schedule{}, nil)
	if err != nil || off.Scheduled() || off.Rotator != "" || off.RotateRequested {
		t.Errorf("off: %v, %+v", err, off)
	}
	other := in(enrolled(t, plain, "other"), keyring.NodeActive)
	moved, err := keyring.ScheduleKey(k, keyring.Schedule{Every: week, Rotator: other.ID}, &other)
	if err != nil || moved.RotateRequested {
		t.Errorf("moved: %v, requested %v: it was asked of another node", err, moved.RotateRequested)
	}
}

func TestWhenARotationIsDue(t *testing.T) {
	t.Parallel()
	n := rotatorNode(t)
	asked := func(k keyring.Key) keyring.Key {
		k, err := keyring.RequestKeyRotation(k)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	state := func(k keyring.Key, s keyring.KeyState) keyring.Key { k.State = s; return k }
	short := scheduled(t, n)
	short.ExpiresAt = short.NotBefore.Add(2 * day)
	for name, tc := range map[string]struct {
		key  keyring.Key
		at   time.Time
		want bool
	}{
		"no schedule":                        {issued(t, nil), now.Add(3 * week), false},
		"too early":                          {scheduled(t, n), now.Add(week - time.Second), false},
		"after its period":                   {scheduled(t, n), now.Add(week), true},
		"asked for":                          {asked(scheduled(t, n)), now, true},
		"exhausted, too early":               {state(scheduled(t, n), keyring.KeyExhausted), now, false},
		"exhausted, after its period":        {state(scheduled(t, n), keyring.KeyExhausted), now.Add(week), true},
		"expired while the mesh was off":     {state(scheduled(t, n), keyring.KeyExpired), now.Add(10 * week), true},
		"suspended":                          {state(scheduled(t, n), keyring.KeySuspended), now.Add(2 * week), false},
		"retiring":                           {state(scheduled(t, n), keyring.KeyRetiring), now.Add(2 * week), false},
		"revoked":                            {state(asked(scheduled(t, n)), keyring.KeyRevoked), now.Add(2 * week), false},
		"long before it expires":             {short, now.Add(day), false},
		"when a quarter of its life is left": {short, now.Add(36 * time.Hour), true},
	} {
		if got := keyring.RotationDue(tc.key, tc.at); got != tc.want {
			t.Errorf("%s: due %v, want %v", name, got, tc.want)
		}
	}
	_, err := keyring.RequestKeyRotation(issued(t, nil))
	wantRefusal(t, err, fault.Conflict, "no schedule")
	_, err = keyring.RequestKeyRotation(state(scheduled(t, n), keyring.KeySuspended))
	wantRefusal(t, err, fault.Conflict, "suspended")
}

func TestARotationInTwoPhases(t *testing.T) {
	t.Parallel()
	n := rotatorNode(t)
	k := scheduled(t, n)
	k.Uses = 2
	at := now.Add(week)
	next := proposed(t, k, n, "next", at)
	if !next.Proposed() || next.Predecessor != k.ID || next.Name != k.Name || next.MaxUses != 3 || next.Uses != 0 || next.Rotator != n.ID {
		t.Fatalf("proposal: %+v", next)
	}
	_, err := keyring.AdmitJoin(next, facts(func(f *keyring.JoinFacts) { f.Now = at }))
	wantRefusal(t, err, fault.Unavailable, "about to become active")
	_, err = keyring.ActivateKey(next, at)
	wantRefusal(t, err, fault.Conflict, "activate")

	_, err = keyring.ScheduleKey(next, keyring.Schedule{Every: 2 * week, Rotator: n.ID}, &n)
	wantRefusal(t, err, fault.Conflict, "schedule")
	k, err = keyring.ScheduleKey(k, keyring.Schedule{Every: week, Grace: 2 * day, Rotator: n.ID}, &n)
	if err != nil {
		t.Fatal(err)
	}

	later := at.Add(3 * day) // the sink was away
	before, after, err := keyring.CompleteRotation(k, next, keyring.CompletionRequest{By: n, Now: later})
	if err != nil {
		t.Fatal(err)
	}
	if before.State != keyring.KeyRetiring || before.Successor != next.ID || !before.GraceUntil.Equal(later.Add(2*day)) {
		t.Errorf("predecessor: %+v", before)
	}
	if after.State != keyring.KeyActive || after.RotateGrace != 2*day || !after.NotBefore.Equal(later) || !after.ExpiresAt.Equal(later.Add(4*week)) {
		t.Errorf("successor: %s from %s to %s", after.State, after.NotBefore, after.ExpiresAt)
	}
	if keyring.RotationDue(after, later.Add(week-time.Second)) || !keyring.RotationDue(after, later.Add(week)) {
		t.Error("the successor's schedule does not count from when it became active")
	}
	if _, err := keyring.AdmitJoin(after, facts(func(f *keyring.JoinFacts) { f.Now = later })); err != nil {
		t.Errorf("join with the successor: %v", err)
	}
	again, same, err := keyring.CompleteRotation(before, after, keyring.CompletionRequest{By: n, Now: later.Add(time.Hour)})
	if diff := cmp.Diff([]keyring.Key{before, after}, []keyring.Key{again, same}); err != nil || diff != "" {
		t.Errorf("completed again: %v %s", err, diff)
	}
}

func TestWhoMayProposeASuccessor(t *testing.T) {
	t.Parallel()
	n := rotatorNode(t)
	k := scheduled(t, n)
	at := now.Add(week)
	open := proposed(t, k, n, "open", at)
	state := func(s keyring.KeyState) keyring.Key { k := k; k.State = s; return k }
	other := in(enrolled(t, issued(t, nil), "other"), keyring.NodeActive)
	for name, tc := range map[string]struct {
		key  keyring.Key
		r    keyring.ProposalRequest
		kind fault.Kind
		says string
	}{
		"another node":        {k, keyring.ProposalRequest{By: other, Now: at}, fault.Denied, "not its rotator"},
		"a quarantined node":  {k, keyring.ProposalRequest{By: in(n, keyring.NodeQuarantined), Now: at}, fault.Denied, "quarantined"},
		"without a schedule":  {issued(t, nil), keyring.ProposalRequest{By: keyring.Node{State: keyring.NodeActive}, Now: at}, fault.Denied, "not its rotator"},
		"too early":           {k, keyring.ProposalRequest{By: n, Now: at.Add(-time.Hour)}, fault.Conflict, "not before"},
		"of a suspended key":  {state(keyring.KeySuspended), keyring.ProposalRequest{By: n, Now: at}, fault.Conflict, "suspended"},
		"of a retiring key":   {state(keyring.KeyRetiring), keyring.ProposalRequest{By: n, Now: at}, fault.Conflict, "retiring"},
		"of a revoked key":    {state(keyring.KeyRevoked), keyring.ProposalRequest{By: n, Now: at}, fault.Conflict, "revoked"},
		"of a key by itself":  {k, keyring.ProposalRequest{By: n, Now: at, SuccessorPublicKey: k.PublicKey}, fault.Invalid, "itself"},
		"with no key":         {k, keyring.ProposalRequest{By: n, Now: at, SuccessorPublicKey: []byte("short")}, fault.Invalid, "public_key"},
		"beside a stranger's": {k, keyring.ProposalRequest{By: n, Now: at, Open: &k}, fault.Internal, "no open proposal"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.r.SuccessorPublicKey == nil {
				tc.r.SuccessorPublicKey = public("next")
			}
			_, replaced, err := keyring.ProposeSuccessor(tc.key, tc.r)
			wantRefusal(t, err, tc.kind, tc.says)
			if replaced != nil {
				t.Error("it replaced a proposal all the same")
			}
		})
	}

	same, replaced, err := keyring.ProposeSuccessor(k, keyring.ProposalRequest{SuccessorPublicKey: public("open"), By: n, Open: &open, Now: at.Add(-day)})
	if diff := cmp.Diff(open, same); err != nil || replaced != nil || diff != "" {
		t.Errorf("the same proposal again: %v, replaced %v, %s", err, replaced, diff)
	}
	next, replaced, err := keyring.ProposeSuccessor(k, keyring.ProposalRequest{SuccessorPublicKey: public("next"), By: n, Open: &open, Now: at})
	if err != nil || replaced == nil || replaced.ID != open.ID || replaced.State != keyring.KeyRevoked || replaced.Reason == "" || !next.Proposed() {
		t.Errorf("another proposal: %v, %+v, replaced %+v", err, next, replaced)
	}
	if _, _, err := keyring.ProposeSuccessor(k, keyring.ProposalRequest{SuccessorPublicKey: public("next"), By: n, Now: at.Add(-30 * time.Second)}); err != nil {
		t.Errorf("a rotator whose clock is half a minute ahead: %v", err)
	}
}

func TestWhatKeepsARotationFromCompleting(t *testing.T) {
	t.Parallel()
	n := rotatorNode(t)
	k := scheduled(t, n)
	at := now.Add(week)
	next := proposed(t, k, n, "next", at)
	other := in(enrolled(t, issued(t, nil), "other"), keyring.NodeActive)
	state := func(k keyring.Key, s keyring.KeyState) keyring.Key { k.State = s; return k }
	operators, _, err := keyring.RotateKey(k, keyring.RotateRequest{SuccessorPublicKey: public("operator's"), Grace: day, Now: at})
	if err != nil {
		t.Fatal(err)
	}
	off, _ := keyring.ScheduleKey(k, keyring.Schedule{}, nil)
	handedOver, _ := keyring.ScheduleKey(k, keyring.Schedule{Every: week, Rotator: other.ID}, &other)
	foreign := next
	foreign.Predecessor = "somebody"
	operatorsPending := next
	operatorsPending.ProposedBy = ""
	for name, tc := range map[string]struct {
		key, successor keyring.Key
		by             keyring.Node
		kind           fault.Kind
		says           string
	}{
		"another node":             {k, next, other, fault.Denied, "not its rotator"},
		"a revoked node":           {k, next, in(n, keyring.NodeRevoked), fault.Denied, "revoked"},
		"revoked meanwhile":        {state(k, keyring.KeyRevoked), next, n, fault.Conflict, "revoked"},
		"suspended meanwhile":      {state(k, keyring.KeySuspended), next, n, fault.Conflict, "suspended"},
		"rotated meanwhile":        {operators, next, n, fault.Conflict, "retiring"},
		"schedule off meanwhile":   {off, next, n, fault.Denied, "not its rotator"},
		"handed over: the old one": {handedOver, next, n, fault.Denied, "not its rotator"},
		"handed over: the new one": {handedOver, next, other, fault.Denied, "proposed by"},
		"a replaced proposal":      {k, state(next, keyring.KeyRevoked), n, fault.Conflict, "revoked"},
		"another key's proposal":   {k, foreign, n, fault.Conflict, "complete the rotation"},
		"an operator's key":        {k, operatorsPending, n, fault.Conflict, "complete the rotation"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before, after, err := keyring.CompleteRotation(tc.key, tc.successor, keyring.CompletionRequest{By: tc.by, Now: at})
			wantRefusal(t, err, tc.kind, tc.says)
			if diff := cmp.Diff([]keyring.Key{tc.key, tc.successor}, []keyring.Key{before, after}); diff != "" {
				t.Errorf("they changed all the same: %s", diff)
			}
		})
	}
	for name, tc := range map[string]struct {
		predecessor *keyring.Key
		closes      bool
	}{
		"as it was": {&k, false}, "suspended": {ptr(state(k, keyring.KeySuspended)), false}, "expired": {ptr(state(k, keyring.KeyExpired)), false},
		"gone": {nil, true}, "revoked": {ptr(state(k, keyring.KeyRevoked)), true}, "rotated": {&operators, true}, "off": {&off, true}, "handed over": {&handedOver, true},
	} {
		swept, changed := keyring.SweepProposal(next, tc.predecessor, at)
		if changed != tc.closes || (swept.State == keyring.KeyRevoked) != tc.closes || (swept.Reason != "") != tc.closes {
			t.Errorf("sweep, predecessor %s: changed %v, %s %q", name, changed, swept.State, swept.Reason)
		}
	}
	if _, changed := keyring.SweepProposal(operatorsPending, nil, at); changed {
		t.Error("sweep: it closed a key that an operator has yet to activate")
	}
}

func TestAnOperatorsRotationInheritsTheSchedule(t *testing.T) {
	t.Parallel()
	n := rotatorNode(t)
	k, err := keyring.RequestKeyRotation(scheduled(t, n))
	if err != nil {
		t.Fatal(err)
	}
	before, after, err := keyring.RotateKey(k, keyring.RotateRequest{SuccessorPublicKey: public("next"), Grace: day, Now: now})
	if err != nil || after.RotateEvery != week || after.RotateGrace != day || after.Rotator != n.ID || after.RotateRequested || before.RotateRequested {
		t.Errorf("%v: %+v then %+v", err, before, after)
	}
}

// Whatever operators, rotators and time do to a chain of keys: at most one key of it is in use and at most one is proposed, uses stay
// within their maximum, a proposal admits nobody, and nothing leaves revoked.
func TestWhateverIsDoneToAChain(t *testing.T) {
	t.Parallel()
	nodes := []keyring.Node{rotatorNode(t), in(enrolled(t, issued(t, nil), "other"), keyring.NodeActive)}
	rapid.Check(t, func(rt *rapid.T) {
		at, made := now, 0
		keys := map[string]keyring.Key{}
		first := scheduled(t, nodes[0])
		keys[first.ID] = first
		order := []string{first.ID}
		revoked := map[string]bool{}
		put := func(changed ...keyring.Key) {
			for _, k := range changed {
				if _, known := keys[k.ID]; !known {
					order = append(order, k.ID)
				}
				keys[k.ID] = k
			}
		}
		pick := func(rt *rapid.T) keyring.Key { return keys[rapid.SampledFrom(order).Draw(rt, "key")] }
		node := func(rt *rapid.T) keyring.Node { return rapid.SampledFrom(nodes).Draw(rt, "node") }
		fresh := func() []byte { made++; return public(fmt.Sprint("made ", made)) }
		one := func(do func(rt *rapid.T, k keyring.Key) (keyring.Key, error)) func(*rapid.T) {
			return func(rt *rapid.T) {
				if after, err := do(rt, pick(rt)); err == nil {
					put(after)
				}
			}
		}
		open := func(id string) *keyring.Key {
			for _, k := range keys {
				if k.Predecessor == id && k.Proposed() {
					return &k
				}
			}
			return nil
		}
		rt.Repeat(map[string]func(*rapid.T){
			"time passes": func(rt *rapid.T) { at = at.Add(time.Duration(rapid.IntRange(0, 9).Draw(rt, "days")) * day) },
			"propose": func(rt *rapid.T) {
				k := pick(rt)
				next, replaced, err := keyring.ProposeSuccessor(k, keyring.ProposalRequest{SuccessorPublicKey: fresh(), By: node(rt), Open: open(k.ID), Now: at})
				if err != nil {
					return
				}
				if replaced != nil {
					put(*replaced)
				}
				put(next)
			},
			"complete": func(rt *rapid.T) {
				k, next := pick(rt), pick(rt)
				if p := open(k.ID); p != nil && rapid.Bool().Draw(rt, "its own") {
					next = *p
				}
				if before, after, err := keyring.CompleteRotation(k, next, keyring.CompletionRequest{By: node(rt), Now: at}); err == nil {
					put(before, after)
				}
			},
			"operator rotates": func(rt *rapid.T) {
				if before, after, err := keyring.RotateKey(pick(rt), keyring.RotateRequest{SuccessorPublicKey: fresh(), Grace: day, Now: at}); err == nil {
					put(before, after)
				}
			},
			"schedule": one(func(rt *rapid.T, k keyring.Key) (keyring.Key, error) {
				n := node(rt)
				return keyring.ScheduleKey(k, keyring.Schedule{Every: week, Grace: day, Rotator: n.ID}, &n)
			}),
			"off": one(func(_ *rapid.T, k keyring.Key) (keyring.Key, error) {
				return keyring.ScheduleKey(k, keyring.Schedule{}, nil)
			}),
			"request":  one(func(_ *rapid.T, k keyring.Key) (keyring.Key, error) { return keyring.RequestKeyRotation(k) }),
			"activate": one(func(_ *rapid.T, k keyring.Key) (keyring.Key, error) { return keyring.ActivateKey(k, at) }),
			"suspend":  one(func(_ *rapid.T, k keyring.Key) (keyring.Key, error) { return keyring.SuspendKey(k, "") }),
			"resume": one(func(_ *rapid.T, k keyring.Key) (keyring.Key, error) {
				var before *keyring.Key
				if p, ok := keys[k.Predecessor]; ok {
					before = &p
				}
				return keyring.ResumeKey(k, before, at)
			}),
			"join": one(func(rt *rapid.T, k keyring.Key) (keyring.Key, error) {
				after, err := keyring.AdmitJoin(k, facts(func(f *keyring.JoinFacts) { f.Now = at }))
				if err == nil && k.Proposed() {
					rt.Fatal("a proposal admitted a node")
				}
				return after, err
			}),
			"revoke": one(func(_ *rapid.T, k keyring.Key) (keyring.Key, error) {
				after, _, err := keyring.RevokeKey(k, nil, keyring.RevokeRequest{Cascade: keyring.CascadeKeep, Now: at})
				return after, err
			}),
			"": func(rt *rapid.T) {
				for _, k := range keys { // what the leader does after each commit
					k, _ = keyring.SweepKey(k, at)
					var before *keyring.Key
					if p, ok := keys[k.Predecessor]; ok {
						before = &p
					}
					k, _ = keyring.SweepProposal(k, before, at)
					put(k)
				}
				inUse, waiting := 0, 0
				for id, k := range keys {
					switch {
					case k.Proposed():
						waiting++
					case k.State == keyring.KeyActive, k.State == keyring.KeySuspended, k.State == keyring.KeyExhausted, k.State == keyring.KeyExpired:
						inUse++
					}
					if k.MaxUses != 0 && k.Uses > k.MaxUses {
						rt.Fatalf("%d uses of %d", k.Uses, k.MaxUses)
					}
					if revoked[id] && k.State != keyring.KeyRevoked {
						rt.Fatalf("revoked → %s", k.State)
					}
					revoked[id] = k.State == keyring.KeyRevoked
				}
				if inUse > 1 || waiting > 1 {
					rt.Fatalf("%d keys in use, %d proposed", inUse, waiting)
				}
			},
		})
	})
}
