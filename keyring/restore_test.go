package keyring_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
)

// history is a mesh whose records are changed step by step.
type history struct{ keyring.Contents }

func newHistory() *history {
	h := &history{keyring.Contents{
		Mesh: keyring.Mesh{ID: "m-1"}, Keys: map[string]*keyring.Key{}, Nodes: map[string]*keyring.Node{}, Admins: map[string]*keyring.Admin{},
		SigningKeys: map[string]*keyring.SigningKey{}, Revocations: map[keyring.RevocationKind]map[string]*keyring.Revocation{keyring.RevokeSession: {}, keyring.RevokeSubject: {}},
	}}
	h.admin("u-root", time.Time{})
	return h
}

func (h *history) admin(id string, revoked time.Time) {
	h.Admins[id] = &keyring.Admin{ID: id, Name: id, ExpiresAt: now.Add(keyring.AdminLife), RevokedAt: revoked}
}

func (h *history) key(id string, s keyring.KeyState) {
	h.Keys[id] = &keyring.Key{ID: id, State: s, ExpiresAt: now.Add(time.Hour)}
}

func (h *history) node(id string, s keyring.NodeState, roles ...keyring.Role) {
	h.Nodes[id] = &keyring.Node{ID: id, State: s, Roles: roles}
}

func (h *history) session(kid, node string, s keyring.SigningState) {
	h.SigningKeys[kid] = &keyring.SigningKey{KID: kid, Kind: keyring.SigningSession, Node: node, State: s}
}

func (h *history) revoke(kind keyring.RevocationKind, value string, block bool) {
	r := keyring.Revocation{Kind: kind, Value: value, Block: block, At: now}
	if !block {
		r.ExpiresAt = now.Add(keyring.MaxSession)
	}
	h.Revocations[kind][value] = &r
}

// clone copies the records, as a snapshot does.
func (h *history) clone() *keyring.Contents {
	c := h.Contents
	c.Keys, c.Nodes, c.Admins, c.SigningKeys = copied(c.Keys), copied(c.Nodes), copied(c.Admins), copied(c.SigningKeys)
	c.Revocations = map[keyring.RevocationKind]map[string]*keyring.Revocation{}
	for kind, values := range h.Revocations {
		c.Revocations[kind] = copied(values)
	}
	return &c
}

func copied[V any](m map[string]*V) map[string]*V {
	out := make(map[string]*V, len(m))
	for id, v := range m {
		fresh := *v
		out[id] = &fresh
	}
	return out
}

func restoration(kept ...string) *keyring.Restoration {
	return &keyring.Restoration{Statement: keyring.RestorationStatement{Mesh: "m-1", OldEpoch: 1, NewEpoch: 2}, By: "u-root", Kept: kept}
}

func TestRestoredStates(t *testing.T) {
	t.Parallel()
	r := restoration("n-kept")
	snapshot, present := newHistory(), newHistory()
	for id, states := range map[string][2]keyring.KeyState{ // in the snapshot, now
		"k-active": {keyring.KeyActive, keyring.KeyActive}, "k-revoked-since": {keyring.KeyActive, keyring.KeyRevoked},
		"k-revoked-before": {keyring.KeyRevoked, keyring.KeyActive}, "k-suspended-since": {keyring.KeyActive, keyring.KeySuspended},
		"k-resumed-since": {keyring.KeySuspended, keyring.KeyActive}, "k-used-up-since": {keyring.KeyActive, keyring.KeyExhausted},
		"k-retiring-since": {keyring.KeyActive, keyring.KeyRetiring}, "k-lost": {keyring.KeyActive, ""}, "k-new": {"", keyring.KeyActive}, "k-new-revoked": {"", keyring.KeyRevoked},
	} {
		if states[0] != "" {
			snapshot.key(id, states[0])
		}
		if states[1] != "" {
			present.key(id, states[1])
		}
	}
	for id, states := range map[string][2]keyring.NodeState{
		"n-active": {keyring.NodeActive, keyring.NodeActive}, "n-kept": {keyring.NodeActive, keyring.NodeActive}, "n-revoked-since": {keyring.NodeActive, keyring.NodeRevoked},
		"n-left-since": {keyring.NodeActive, keyring.NodeDeparted}, "n-quarantined-since": {keyring.NodeActive, keyring.NodeQuarantined},
		"n-released-since": {keyring.NodeQuarantined, keyring.NodeActive}, "n-lost": {keyring.NodeLapsed, ""}, "n-new": {"", keyring.NodeActive},
	} {
		if states[0] != "" {
			snapshot.node(id, states[0], keyring.RoleProxy)
		}
		if states[1] != "" {
			present.node(id, states[1], keyring.RoleProxy)
		}
	}
	snapshot.admin("u-gone", time.Time{})
	present.admin("u-gone", now)
	present.admin("u-new", time.Time{})
	present.session("s-revoked", "n-active", keyring.SigningRevoked)
	snapshot.session("s-revoked", "n-active", keyring.SigningActive)
	snapshot.session("s-old", "n-active", keyring.SigningActive)
	present.session("s-mine", "n-revoked-since", keyring.SigningActive)
	present.revoke(keyring.RevokeSubject, "dev/eve", true)
	snapshot.revoke(keyring.RevokeSubject, "dev/mallory", true) // lifted since
	snapshot.revoke(keyring.RevokeSubject, "dev/eve", false)

	got := keyring.PlanRestore(keyring.RestoreFacts{Present: present.clone(), Snapshot: snapshot.clone(), Restoration: r, Now: now})
	keys, nodes := map[string]keyring.KeyState{}, map[string]keyring.NodeState{}
	for id, k := range got.Keys {
		keys[id] = k.State
	}
	for id, n := range got.Nodes {
		nodes[id] = n.State
	}
	wantKeys := map[string]keyring.KeyState{
		"k-active": keyring.KeySuspended, "k-revoked-since": keyring.KeyRevoked, "k-revoked-before": keyring.KeyRevoked, "k-suspended-since": keyring.KeySuspended,
		"k-resumed-since": keyring.KeySuspended, "k-used-up-since": keyring.KeyExhausted, "k-retiring-since": keyring.KeySuspended, "k-lost": keyring.KeySuspended,
		"k-new": keyring.KeySuspended, "k-new-revoked": keyring.KeyRevoked,
	}
	wantNodes := map[string]keyring.NodeState{
		"n-active": keyring.NodeQuarantined, "n-kept": keyring.NodeActive, "n-revoked-since": keyring.NodeRevoked, "n-left-since": keyring.NodeDeparted,
		"n-quarantined-since": keyring.NodeQuarantined, "n-released-since": keyring.NodeQuarantined, "n-lost": keyring.NodeQuarantined, "n-new": keyring.NodeQuarantined,
	}
	for what, diff := range map[string]string{
		"keys": cmp.Diff(wantKeys, keys), "nodes": cmp.Diff(wantNodes, nodes),
		"list": cmp.Diff(keyring.RestoreList{
			Keys:   []keyring.HeldKey{{ID: "k-active", State: keyring.KeyActive}, {ID: "k-lost", State: keyring.KeyActive}, {ID: "k-retiring-since", State: keyring.KeyRetiring}},
			Nodes:  []keyring.HeldNode{{ID: "n-active", State: keyring.NodeActive}, {ID: "n-lost", State: keyring.NodeLapsed}},
			Admins: []string{"u-root"},
		}, got.List),
	} {
		if diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	if got.Admins["u-gone"].RevokedAt.IsZero() || got.Admins["u-new"].RevokedAt.IsZero() || !got.Admins["u-root"].RevokedAt.IsZero() {
		t.Errorf("administrators: %v", got.Admins)
	}
	if got.SigningKeys["s-revoked"].State != keyring.SigningRevoked || got.SigningKeys["s-mine"].State != keyring.SigningRevoked || got.SigningKeys["s-old"] != nil {
		t.Errorf("signing keys: %v", got.SigningKeys)
	}
	for _, who := range []string{"dev/eve", "dev/mallory"} {
		if rev := got.Revocations[keyring.RevokeSubject][who]; rev == nil || !rev.Block || !rev.ExpiresAt.IsZero() {
			t.Errorf("%s is not blocked: %v", who, rev)
		}
	}
	var refused []string
	for _, d := range got.Refused {
		refused = append(refused, fmt.Sprintf("%s %s %s", d.Kind, d.Value, d.Source))
	}
	want := []string{
		"admin u-gone state", "admin u-new state", "key k-new state", "key k-revoked-since state", "key k-suspended-since state", "node n-left-since state",
		"node n-new state", "node n-quarantined-since state", "node n-revoked-since state", "user dev/eve state",
	}
	if diff := cmp.Diff(want, refused); diff != "" {
		t.Errorf("stays refused (-want +got):\n%s", diff)
	}
}

// Nothing is left but the snapshot and what others remember.
func TestRestoredWithoutAPresentState(t *testing.T) {
	t.Parallel()
	snapshot := newHistory()
	snapshot.key("k-1", keyring.KeyActive)
	snapshot.key("k-2", keyring.KeyActive)
	snapshot.node("n-control", keyring.NodeQuarantined, keyring.RoleControl)
	snapshot.node("n-self", keyring.NodeActive, keyring.RoleControl)
	snapshot.node("n-proxy", keyring.NodeActive, keyring.RoleProxy)
	snapshot.node("n-thief", keyring.NodeActive, keyring.RoleProxy)
	snapshot.session("s-control", "n-control", keyring.SigningActive)
	snapshot.session("s-proxy", "n-proxy", keyring.SigningActive)
	snapshot.admin("u-gone", time.Time{})
	got := keyring.PlanRestore(keyring.RestoreFacts{
		Snapshot: snapshot.clone(), Restoration: restoration("n-self"), ControlDeparts: true, Now: now,
		Denials: []keyring.Denial{
			{Kind: keyring.DenyKey, Value: "k-2", Source: keyring.FromTrail}, {Kind: keyring.DenyNode, Value: "n-thief", Source: keyring.FromTrail},
			{Kind: keyring.DenyAdmin, Value: "u-gone", Source: keyring.FromTrail}, {Kind: keyring.DenySubject, Value: "dev/eve", Block: true, Source: "node/n-9"},
			{Kind: keyring.DenySession, Value: "old", At: now.Add(-48 * time.Hour)}, {Kind: keyring.DenyKey, Value: "k-unknown"},
		},
	})
	switch {
	case got.Keys["k-1"].State != keyring.KeySuspended, got.Keys["k-2"].State != keyring.KeyRevoked, got.Keys["k-unknown"] != nil:
		t.Errorf("keys: %v", got.Keys)
	case got.Nodes["n-control"].State != keyring.NodeDeparted, got.Nodes["n-self"].State != keyring.NodeActive, got.Nodes["n-proxy"].State != keyring.NodeQuarantined, got.Nodes["n-thief"].State != keyring.NodeRevoked:
		t.Errorf("nodes: %v", got.Nodes)
	case got.SigningKeys["s-control"].State != keyring.SigningVerifyOnly, got.SigningKeys["s-proxy"].State != keyring.SigningActive:
		t.Errorf("signing keys: %v", got.SigningKeys)
	case got.Admins["u-gone"].RevokedAt.IsZero():
		t.Error("an administrator whom the trail remembers as revoked counts")
	case !got.Revocations[keyring.RevokeSubject]["dev/eve"].Block, got.Revocations[keyring.RevokeSession]["old"] != nil:
		t.Errorf("revocations: %v", got.Revocations)
	}
	if len(got.List.Nodes) != 1 || len(got.List.Keys) != 1 || len(got.Refused) != 4 {
		t.Errorf("list %v, refused %v", got.List, got.Refused)
	}
}

// Whatever was done in whatever order, no older snapshot un-revokes or un-blocks anything, neither before nor after its whole list is
// confirmed; and what it made is a fixed point.
func TestNoRestoreUnrevokes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		h := newHistory()
		var snapshots []*keyring.Contents
		ids := func(what string) string { return what + fmt.Sprint(rapid.IntRange(0, 3).Draw(rt, what)) }
		rt.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) {},
			"key": func(rt *rapid.T) {
				id := ids("k-")
				if k := h.Keys[id]; k == nil || k.State != keyring.KeyRevoked {
					h.key(id, rapid.SampledFrom([]keyring.KeyState{
						keyring.KeyPending, keyring.KeyActive, keyring.KeySuspended, keyring.KeyExhausted, keyring.KeyExpired, keyring.KeyRetiring, keyring.KeyRetired, keyring.KeyRevoked,
					}).Draw(rt, "state"))
				}
			},
			"node": func(rt *rapid.T) {
				id := ids("n-")
				if n := h.Nodes[id]; n == nil || n.State != keyring.NodeRevoked {
					h.node(id, rapid.SampledFrom([]keyring.NodeState{
						keyring.NodeEnrolled, keyring.NodeActive, keyring.NodeLapsed, keyring.NodeDeparted, keyring.NodeQuarantined, keyring.NodeRevoked,
					}).Draw(rt, "state"), rapid.SampledFrom([]keyring.Role{keyring.RoleControl, keyring.RoleProxy}).Draw(rt, "role"))
				}
			},
			"admin": func(rt *rapid.T) {
				id := ids("u-")
				if a := h.Admins[id]; a == nil || a.RevokedAt.IsZero() {
					h.admin(id, rapid.SampledFrom([]time.Time{{}, now}).Draw(rt, "revoked"))
				}
			},
			"signing key": func(rt *rapid.T) {
				id := ids("s-")
				if k := h.SigningKeys[id]; k == nil || k.State != keyring.SigningRevoked {
					h.session(id, ids("n-"), rapid.SampledFrom([]keyring.SigningState{keyring.SigningActive, keyring.SigningVerifyOnly, keyring.SigningRevoked}).Draw(rt, "state"))
				}
			},
			"revoke user":    func(rt *rapid.T) { h.revoke(keyring.RevokeSubject, ids("dev/"), rapid.Bool().Draw(rt, "block")) },
			"revoke session": func(rt *rapid.T) { h.revoke(keyring.RevokeSession, ids("sid-"), false) },
			"lift":           func(rt *rapid.T) { delete(h.Revocations[keyring.RevokeSubject], ids("dev/")) },
			"save":           func(*rapid.T) { snapshots = append(snapshots, h.clone()) },
		})
		if len(snapshots) == 0 {
			return
		}
		snapshot := rapid.SampledFrom(snapshots).Draw(rt, "snapshot")
		var kept []string
		for _, id := range slices.Sorted(maps.Keys(h.Nodes)) { // in an order that can be drawn again
			if n := h.Nodes[id]; n.Trusted() && n.HasRole(keyring.RoleControl) && rapid.Bool().Draw(rt, "votes") {
				kept = append(kept, id)
			}
		}
		r := restoration(kept...)
		facts := keyring.RestoreFacts{Present: h.clone(), Snapshot: snapshot, Restoration: r, ControlDeparts: rapid.Bool().Draw(rt, "departs"), Now: now}
		got := keyring.PlanRestore(facts)
		neverAccepts(rt, "before the confirmation", &h.Contents, &got.Contents)
		for id, n := range got.Nodes {
			if n.Trusted() && !slices.Contains(kept, id) {
				rt.Fatalf("node %s is %s before the confirmation", id, n.State)
			}
		}
		for id, k := range got.Keys {
			if k.State == keyring.KeyActive || k.State == keyring.KeyPending || k.State == keyring.KeyRetiring {
				rt.Fatalf("key %s is %s before the confirmation", id, k.State)
			}
		}
		r.List = got.List
		again := keyring.PlanRestore(keyring.RestoreFacts{Present: &got.Contents, Snapshot: snapshot, Restoration: r, ControlDeparts: facts.ControlDeparts, Now: now})
		if diff := cmp.Diff(got.Contents, again.Contents); diff != "" {
			rt.Fatalf("what it made is no fixed point:\n%s", diff)
		}
		pending := r.Pending(&got.Contents)
		if diff := cmp.Diff(got.List, pending); diff != "" {
			rt.Fatalf("pending is not what was listed:\n%s", diff)
		}
		for _, held := range pending.Keys {
			k, err := keyring.ReleaseHeldKey(*got.Keys[held.ID], held, r, now)
			if err != nil {
				rt.Fatal(err)
			}
			got.Keys[held.ID] = &k
		}
		for _, held := range pending.Nodes {
			n, err := keyring.ReleaseHeldNode(*got.Nodes[held.ID], held, r, now)
			if err != nil {
				rt.Fatal(err)
			}
			got.Nodes[held.ID] = &n
		}
		neverAccepts(rt, "after the confirmation", &h.Contents, &got.Contents)
	})
}

// neverAccepts demands that whatever the one state refuses, the other does. What a state does not know, it has not refused on purpose.
func neverAccepts(rt *rapid.T, when string, before, after *keyring.Contents) {
	for id, k := range before.Keys {
		if after.Keys[id] == nil {
			rt.Fatalf("%s: key %s is gone", when, id)
		}
		if s := after.Keys[id].State; k.State == keyring.KeyRevoked && s != keyring.KeyRevoked || !opens(k.State) && opens(s) {
			rt.Fatalf("%s: key %s was %s and is %s", when, id, k.State, s)
		}
	}
	for id, n := range before.Nodes {
		if got := after.Nodes[id]; got == nil || n.State == keyring.NodeRevoked && got.State != keyring.NodeRevoked || !n.Trusted() && got.Trusted() || !n.TokensCount() && got.TokensCount() && got.State != keyring.NodeDeparted {
			rt.Fatalf("%s: node %s was %s and is %v", when, id, n.State, got)
		}
	}
	for id, a := range before.Admins {
		if got := after.Admins[id]; got == nil || !a.RevokedAt.IsZero() && got.RevokedAt.IsZero() {
			rt.Fatalf("%s: administrator %s was revoked at %v and is %v", when, id, a.RevokedAt, got)
		}
	}
	for kid := range maps.Keys(after.SigningKeys) {
		if k := before.SigningKeys[kid]; k == nil || !k.Verifies() && after.SigningKeys[kid].Verifies() {
			rt.Fatalf("%s: signing key %s verifies", when, kid)
		}
	}
	for kind, values := range before.Revocations {
		for value, r := range values {
			if got := after.Revocations[kind][value]; got == nil || r.Block && !got.Block || !got.ExpiresAt.IsZero() && (r.ExpiresAt.IsZero() || got.ExpiresAt.Before(r.ExpiresAt)) {
				rt.Fatalf("%s: %s %s was %v and is %v", when, kind, value, r, got)
			}
		}
	}
}

func opens(s keyring.KeyState) bool { return s == keyring.KeyActive || s == keyring.KeyRetiring }

func TestTheGate(t *testing.T) {
	t.Parallel()
	c := &keyring.Contents{}
	if c.Closed() != nil || c.Fenced(revision.Revision{Epoch: 1, Index: 9}) {
		t.Error("a mesh that was never restored is closed")
	}
	c.Restoration = restoration()
	c.Restoration.SessionsFrom = revision.Revision{Epoch: 2}
	for _, phase := range []keyring.RestorationPhase{keyring.RestorationRunning, keyring.RestorationAwaiting, ""} {
		c.Restoration.Phase = phase
		if !fault.Is(c.Closed(), fault.Unavailable) || !c.Fenced(revision.Revision{Epoch: 2, Index: 9}) {
			t.Errorf("phase %q is open", phase)
		}
	}
	c.Restoration.Phase = keyring.RestorationConfirmed
	if c.Closed() != nil || !c.Fenced(revision.Revision{Epoch: 1, Index: 1 << 60}) || c.Fenced(revision.Revision{Epoch: 2, Index: 1}) {
		t.Error("confirmed: want sessions of before refused, and of after taken")
	}
}

func TestStatements(t *testing.T) {
	t.Parallel()
	pub, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("file"))
	good := keyring.RestorationStatement{
		Mesh: "m-1", Kind: keyring.RestoreSnapshot, OldEpoch: 1, NewEpoch: 2, Digest: digest[:], SnapshotRevision: revision.Revision{Epoch: 1, Index: 7},
		SnapshotTime: now.Add(-time.Hour), Time: now, Nonce: make([]byte, 16),
	}
	admin := keyring.Admin{ID: "u-1", PublicKey: pub, ExpiresAt: now.Add(time.Hour)}
	signature := ed25519.Sign(private, good.Message())
	if err := good.Verify("m-1", 1, &admin, signature, now); err != nil {
		t.Fatal(err)
	}
	revoked := admin
	revoked.RevokedAt = now
	for name, tc := range map[string]struct {
		change func(*keyring.RestorationStatement)
		admin  *keyring.Admin
		kind   fault.Kind
	}{
		"another mesh":       {func(s *keyring.RestorationStatement) { s.Mesh = "m-2" }, &admin, fault.Conflict},
		"another old epoch":  {func(s *keyring.RestorationStatement) { s.OldEpoch = 3; s.NewEpoch = 4 }, &admin, fault.Conflict},
		"no new epoch":       {func(s *keyring.RestorationStatement) { s.NewEpoch = 1 }, &admin, fault.Conflict},
		"a later new epoch":  {func(s *keyring.RestorationStatement) { s.NewEpoch = 3 }, &admin, fault.Denied},
		"another snapshot":   {func(s *keyring.RestorationStatement) { s.Digest = make([]byte, 32) }, &admin, fault.Denied},
		"another revision":   {func(s *keyring.RestorationStatement) { s.SnapshotRevision.Index++ }, &admin, fault.Denied},
		"another time":       {func(s *keyring.RestorationStatement) { s.SnapshotTime = now }, &admin, fault.Denied},
		"another kind":       {func(s *keyring.RestorationStatement) { s.Kind = keyring.RestoreSurvivor }, &admin, fault.Denied},
		"another carrier":    {func(s *keyring.RestorationStatement) { s.Carrier = "n-2" }, &admin, fault.Denied},
		"no kind":            {func(s *keyring.RestorationStatement) { s.Kind = "" }, &admin, fault.Invalid},
		"no nonce":           {func(s *keyring.RestorationStatement) { s.Nonce = nil }, &admin, fault.Invalid},
		"long ago":           {func(s *keyring.RestorationStatement) { s.Time = now.Add(-time.Hour) }, &admin, fault.Denied},
		"revoked signer":     {func(*keyring.RestorationStatement) {}, &revoked, fault.Denied},
		"an unknown signer":  {func(*keyring.RestorationStatement) {}, nil, fault.Denied},
		"nobody's signature": {func(*keyring.RestorationStatement) { signature = nil }, &admin, fault.Denied},
	} {
		t.Run(name, func(t *testing.T) {
			s := good
			kept := signature
			tc.change(&s)
			defer func() { signature = kept }()
			if err := s.Verify("m-1", 1, tc.admin, signature, now); !fault.Is(err, tc.kind) {
				t.Errorf("%v, want %v", err, tc.kind)
			}
		})
	}
}

// A call carries few of them, and the mesh may be confirmed before the last: what must not be lost comes first.
func TestDenialsNameTheGravestFirstAndNoSession(t *testing.T) {
	t.Parallel()
	at := time.Now()
	c := keyring.Contents{
		Keys:        map[string]*keyring.Key{"k": {ID: "k", State: keyring.KeyRevoked, RevokedAt: at}, "good": {ID: "good", State: keyring.KeyActive}},
		Nodes:       map[string]*keyring.Node{"n": {ID: "n", State: keyring.NodeRevoked, StateSince: at}, "ok": {ID: "ok", State: keyring.NodeActive}},
		Admins:      map[string]*keyring.Admin{"a": {ID: "a", RevokedAt: at}},
		SigningKeys: map[string]*keyring.SigningKey{"s": {KID: "s", State: keyring.SigningRevoked, StateSince: at}},
		Revocations: map[keyring.RevocationKind]map[string]*keyring.Revocation{
			keyring.RevokeSession: {"session": {Kind: keyring.RevokeSession, Value: "session", At: at}},
			keyring.RevokeSubject: {"dev/a": {Kind: keyring.RevokeSubject, Value: "dev/a", At: at}, "dev/z": {Kind: keyring.RevokeSubject, Value: "dev/z", Block: true, At: at}},
		},
	}
	var got []string
	for _, d := range c.Denials() {
		got = append(got, string(d.Kind)+" "+d.Value)
	}
	if want := []string{"key k", "node n", "admin a", "signing-key s", "user dev/z", "user dev/a"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
