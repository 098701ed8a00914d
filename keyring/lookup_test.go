package keyring_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
)

func snapshot(c keyring.Contents) *keyring.Snapshot {
	return keyring.NewSnapshot(revision.Revision{Epoch: 1, Index: 1}, c)
}

func ids(nodes []*keyring.Node) (out []string) {
	for _, n := range nodes {
		out = append(out, n.ID)
	}
	return out
}

func TestWhichNodesAKeyAnswersFor(t *testing.T) {
	t.Parallel()
	node := func(id, joined, bound string, s keyring.NodeState, roles ...keyring.Role) *keyring.Node {
		return &keyring.Node{ID: id, ProvisioningKey: joined, BoundKey: bound, State: s, Roles: roles, JoinID: "j" + id}
	}
	s := snapshot(keyring.Contents{Nodes: map[string]*keyring.Node{
		"a": node("a", "k1", "k1", keyring.NodeActive, keyring.RoleControl),
		"b": node("b", "k1", "k2", keyring.NodeActive),
		"c": node("c", "k2", "k2", keyring.NodeQuarantined, keyring.RoleControl),
		"d": node("d", "k2", "k2", keyring.NodeDeparted),
		"e": node("e", "k2", "k2", keyring.NodeRevoked),
		"f": node("f", "k3", "k3", keyring.NodeLapsed, keyring.RoleControl, keyring.RoleProxy),
	}})
	for name, tc := range map[string]struct{ got, want any }{
		"under k1":       {ids(s.NodesUnder("k1")), []string{"a", "b"}},
		"under k2":       {ids(s.NodesUnder("k2")), []string{"b", "c", "d", "e"}},
		"under nothing":  {ids(s.NodesUnder("k9")), []string(nil)},
		"active on k1":   {s.CountActive("k1", ""), 1},
		"active on k2":   {s.CountActive("k2", ""), 2},
		"beside b on k2": {s.CountActive("k2", "b"), 1},
		"control nodes":  {ids(s.ControlNodes()), []string{"a", "f"}},
		"trusted nodes":  {ids(s.TrustedNodes()), []string{"a", "b", "f"}},
		"by join id":     {s.NodeByJoinID("jb").ID, "b"},
		"by no join id":  {s.NodeByJoinID("") == nil, true},
		"by a wrong one": {s.NodeByJoinID("x") == nil, true},
	} {
		if diff := cmp.Diff(tc.want, tc.got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// A key and its successors share their places, but for those of a key that was revoked.
func TestARotationLetsInNoMore(t *testing.T) {
	t.Parallel()
	key := func(id, before, after string, s keyring.KeyState) *keyring.Key {
		return &keyring.Key{ID: id, Predecessor: before, Successor: after, State: s}
	}
	node := func(id, bound string) *keyring.Node {
		return &keyring.Node{ID: id, BoundKey: bound, State: keyring.NodeActive}
	}
	s := snapshot(keyring.Contents{
		Keys: map[string]*keyring.Key{
			"k1": key("k1", "", "k2", keyring.KeyRevoked), "k2": key("k2", "k1", "k3", keyring.KeyRetiring), "k3": key("k3", "k2", "", keyring.KeyActive),
			"k4": key("k4", "k2", "", keyring.KeyActive), // says that it succeeds k2, which does not know it
		},
		Nodes: map[string]*keyring.Node{"a": node("a", "k1"), "b": node("b", "k2"), "c": node("c", "k2"), "d": node("d", "k3"), "e": node("e", "k4")},
	})
	for key, want := range map[string]int{"k1": 4, "k2": 3, "k3": 3, "k4": 1, "k9": 0} {
		if got := s.CountActive(key, ""); got != want {
			t.Errorf("%s: %d nodes, want %d", key, got, want)
		}
	}
	if got := s.CountActive("k3", "b"); got != 2 { // it moves, and takes no other place
		t.Errorf("beside one that moves: %d", got)
	}
}

func TestFindKey(t *testing.T) {
	t.Parallel()
	s := snapshot(keyring.Contents{Keys: map[string]*keyring.Key{
		"k1": {ID: "k1", Name: "edge", State: keyring.KeyRetired, Successor: "k2"},
		"k2": {ID: "k2", Name: "edge", State: keyring.KeyActive},
		"k3": {ID: "k3", Name: "twice", State: keyring.KeyActive},
		"k4": {ID: "k4", Name: "twice", State: keyring.KeySuspended},
		"k5": {ID: "k5", Name: "gone", State: keyring.KeyRevoked},
		"k6": {ID: "k6", Name: "to-be", State: keyring.KeyActive},
		"k7": {ID: "k7", Name: "to-be", State: keyring.KeyPending, Predecessor: "k6"},
		"k8": {ID: "k8", Name: "first", State: keyring.KeyRetired, Successor: "k9"},
		"k9": {ID: "k9", Name: "first", State: keyring.KeyRevoked, Predecessor: "k8"},
		"ka": {ID: "ka", Name: "leaked", State: keyring.KeyRevoked},
		"kb": {ID: "kb", Name: "leaked", State: keyring.KeyPending, Predecessor: "ka"},
	}})
	for name, tc := range map[string]struct {
		ask, want string
		kind      fault.Kind
	}{
		"by id":                 {"k1", "k1", 0},
		"a name and its newest": {"edge", "k2", 0},
		"a revoked one":         {"gone", "k5", 0},
		"the last, revoked":     {"first", "k9", 0},
		"not one that is to be": {"to-be", "k6", 0},
		"nor of a revoked one":  {"leaked", "ka", 0},
		"an ambiguous name":     {"twice", "", fault.Invalid},
		"an unknown name":       {"x", "", fault.NotFound},
		"nothing":               {"", "", fault.NotFound},
	} {
		k, err := s.FindKey(tc.ask)
		if tc.want == "" && !fault.Is(err, tc.kind) || tc.want != "" && (err != nil || k.ID != tc.want) {
			t.Errorf("%s: %v, %v", name, k, err)
		}
	}
}

// A name is taken while the key that it means may let somebody in.
func TestNameTaken(t *testing.T) {
	t.Parallel()
	later := now.Add(time.Hour)
	for name, tc := range map[string]struct {
		key  keyring.Key
		want bool
	}{
		"active":                      {keyring.Key{State: keyring.KeyActive, ExpiresAt: later}, true},
		"suspended":                   {keyring.Key{State: keyring.KeySuspended, ExpiresAt: later}, true},
		"pending":                     {keyring.Key{State: keyring.KeyPending, ExpiresAt: later}, true},
		"used in part":                {keyring.Key{State: keyring.KeyActive, ExpiresAt: later, MaxUses: 2, Uses: 1}, true},
		"used up":                     {keyring.Key{State: keyring.KeyExhausted, ExpiresAt: later, MaxUses: 1, Uses: 1}, false},
		"expired":                     {keyring.Key{State: keyring.KeyExpired, ExpiresAt: later}, false},
		"expired, not written yet":    {keyring.Key{State: keyring.KeyActive, ExpiresAt: now.Add(-2 * keyring.Skew)}, false},
		"revoked":                     {keyring.Key{State: keyring.KeyRevoked, ExpiresAt: later}, false},
		"succeeded, within its grace": {keyring.Key{State: keyring.KeyRetiring, ExpiresAt: later, GraceUntil: later, Successor: "k2"}, false},
		"a successor yet to be":       {keyring.Key{State: keyring.KeyPending, ExpiresAt: later, Predecessor: "k0"}, false},
		"a successor":                 {keyring.Key{State: keyring.KeyActive, ExpiresAt: later, Predecessor: "k0"}, true},
	} {
		tc.key.ID, tc.key.Name = "k1", "fleet"
		s := snapshot(keyring.Contents{Keys: map[string]*keyring.Key{"k1": &tc.key}})
		if got := s.NameTaken("fleet", now); (got != nil) != tc.want {
			t.Errorf("%s: taken: %v", name, got != nil)
		}
		if s.NameTaken("other", now) != nil {
			t.Errorf("%s: another name is taken", name)
		}
	}
}

// Names of nodes that were put out are given away anew: who is meant is never left to chance.
func TestFindNode(t *testing.T) {
	t.Parallel()
	nodes := map[string]*keyring.Node{}
	for id, n := range map[string]struct {
		name  string
		state keyring.NodeState
	}{
		"n1": {"px", keyring.NodeRevoked}, "n2": {"px", keyring.NodeDeparted}, "n3": {"px", keyring.NodeQuarantined}, "n4": {"px", keyring.NodeActive},
		"n5": {"held", keyring.NodeRevoked}, "n6": {"held", keyring.NodeDeparted}, "n7": {"held", keyring.NodeQuarantined},
		"n8": {"left", keyring.NodeRevoked}, "n9": {"left", keyring.NodeDeparted},
		"na": {"stolen", keyring.NodeRevoked},
		"nb": {"away", keyring.NodeLapsed}, "nc": {"away", keyring.NodeDeparted},
		"nd": {"new", keyring.NodeEnrolled}, "ne": {"new", keyring.NodeQuarantined},
		"nf": {"twice", keyring.NodeQuarantined}, "ng": {"twice", keyring.NodeQuarantined}, "nh": {"twice", keyring.NodeDeparted},
		"ni": {"gone", keyring.NodeDeparted}, "nj": {"gone", keyring.NodeDeparted}, "nk": {"gone", keyring.NodeRevoked},
		"nl": {"out", keyring.NodeRevoked}, "nm": {"out", keyring.NodeRevoked},
		"nn": {"n1", keyring.NodeActive}, // called as another's id
	} {
		nodes[id] = &keyring.Node{ID: id, Name: n.name, State: n.state}
	}
	for i := range 12 {
		id := fmt.Sprintf("o%02d", i)
		nodes[id] = &keyring.Node{ID: id, Name: "often", State: keyring.NodeDeparted}
	}
	s := snapshot(keyring.Contents{Nodes: nodes})
	for name, tc := range map[string]struct{ ask, want, says string }{
		"an id":                    {"n2", "n2", ""},
		"an id that is a name":     {"n1", "n1", ""},
		"who is trusted":           {"px", "n4", ""},
		"who is lapsed":            {"away", "nb", ""},
		"who is enrolled":          {"new", "nd", ""},
		"who is quarantined":       {"held", "n7", ""},
		"who has departed":         {"left", "n9", ""},
		"who was revoked":          {"stolen", "na", ""},
		"two that are quarantined": {"twice", "", `node "twice": 2 nodes have this name, each quarantined; give the id: nf, ng`},
		"two that have departed":   {"gone", "", "2 nodes have this name, each departed; give the id: ni, nj"},
		"two that were revoked":    {"out", "", "2 nodes have this name, each revoked; give the id: nl, nm"},
		"a dozen":                  {"often", "", "give the id: o00, o01, o02, o03, o04, o05, o06, o07 and 4 more"},
		"nobody":                   {"x", "", "no node"},
		"nothing":                  {"", "", "no node"},
	} {
		for range 20 { // whatever the order of a map
			n, err := s.FindNode(tc.ask)
			kind := fault.Invalid
			if tc.says == "no node" {
				kind = fault.NotFound
			}
			if tc.want != "" && (err != nil || n.ID != tc.want) || tc.want == "" && (!fault.Is(err, kind) || !strings.Contains(err.Error(), tc.says)) {
				t.Fatalf("%s: %v, %v", name, n, err)
			}
		}
	}
}

func TestSigningKeysOfASnapshot(t *testing.T) {
	t.Parallel()
	keys := map[string]*keyring.SigningKey{}
	for i, k := range []keyring.SigningKey{
		{Kind: keyring.SigningSession, Node: "a", State: keyring.SigningActive},
		{Kind: keyring.SigningSession, Node: "a", State: keyring.SigningAnnounced},
		{Kind: keyring.SigningSession, Node: "b", State: keyring.SigningRevoked},
		{Kind: keyring.SigningAssertion, Region: "eu", State: keyring.SigningActive},
		{Kind: keyring.SigningAssertion, Region: "eu", RouteSelector: "x", State: keyring.SigningActive},
		{Kind: keyring.SigningAssertion, Region: "us", State: keyring.SigningVerifyOnly},
	} {
		k.KID = fmt.Sprint(i)
		keys[k.KID] = &k
	}
	s := snapshot(keyring.Contents{SigningKeys: keys})
	kids := func(list ...*keyring.SigningKey) (out []string) {
		for _, k := range list {
			if k != nil {
				out = append(out, k.KID)
			}
		}
		return out
	}
	for name, tc := range map[string]struct{ got, want []string }{
		"what a signs with":            {kids(s.ActiveSessionKey("a")), []string{"0"}},
		"what b signs with":            {kids(s.ActiveSessionKey("b")), nil},
		"what eu asserts with":         {kids(s.ActiveAssertionKey("eu", "")), []string{"3"}},
		"what us asserts with":         {kids(s.ActiveAssertionKey("us", "")), nil},
		"verifying sessions":           {kids(s.VerifyingKeys(keyring.SigningSession)...), []string{"0", "1"}},
		"verifying assertions":         {kids(s.VerifyingKeys(keyring.SigningAssertion)...), []string{"3", "4", "5"}},
		"signing assertions":           {kids(s.ActiveSigningKeys(keyring.SigningAssertion)...), []string{"3", "4"}},
		"session keys of a, any state": {kids(s.SigningKeysOf("a")...), []string{"0", "1"}},
	} {
		if diff := cmp.Diff(tc.want, tc.got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestASnapshotKnowsPeersAndRootsByKey(t *testing.T) {
	t.Parallel()
	c, next := newCA(t), newCA(t)
	retired := next.Authority
	retired.State = keyring.AuthorityRetired
	s := snapshot(keyring.Contents{
		Nodes:       map[string]*keyring.Node{"a": {ID: "a", PublicKey: public("a"), State: keyring.NodeRevoked}},
		Admins:      map[string]*keyring.Admin{"u": {ID: "u", PublicKey: public("u")}},
		Authorities: map[string]*keyring.Authority{c.Serial: &c.Authority, next.Serial: &retired},
	})
	if n := s.NodeByKey(public("a")); n == nil || n.ID != "a" || s.NodeByKey(public("u")) != nil {
		t.Error("node by key")
	}
	if a := s.AdminByKey(public("u")); a == nil || a.ID != "u" || s.AdminByKey(public("a")) != nil {
		t.Error("administrator by key")
	}
	if a := s.ActiveAuthority(); a == nil || a.Serial != c.Serial {
		t.Error("active authority")
	}
	roots := s.Roots()
	for name, leaf := range map[string]ca{"active": c, "retired": next} {
		if _, err := leaf.node(t, "n-1", true).Verify(verifyAgainst(roots)); err != nil {
			t.Errorf("under the %s root: %v", name, err)
		}
	}
}

func TestWhatASnapshotRefuses(t *testing.T) {
	t.Parallel()
	at := func(i uint64) revision.Revision { return revision.Revision{Epoch: 1, Index: i} }
	s := snapshot(keyring.Contents{Revocations: map[keyring.RevocationKind]map[string]*keyring.Revocation{
		keyring.RevokeSession: {"s1": {Value: "s1", Revision: at(10)}},
		keyring.RevokeSubject: {
			"okta/a": {Value: "okta/a", Revision: at(10)},
			"okta/b": {Value: "okta/b", Revision: at(10), Block: true},
		},
	}})
	for name, tc := range map[string]struct {
		session, subject string
		minted           revision.Revision
		refused          bool
	}{
		"another session":           {"s2", "okta/c", at(5), false},
		"the session":               {"s1", "okta/c", at(5), true},
		"the session, minted later": {"s1", "okta/c", at(50), true},
		"a user's before":           {"s2", "okta/a", at(9), true},
		"a user's since":            {"s2", "okta/a", at(10), false},
		"a user's next epoch":       {"s2", "okta/a", revision.Revision{Epoch: 2}, false},
		"a blocked user's since":    {"s2", "okta/b", at(99), true},
	} {
		if got := s.Revoked(tc.session, tc.subject, tc.minted) != nil; got != tc.refused {
			t.Errorf("%s: %v", name, got)
		}
	}
	if s.Blocked("okta/b") == nil || s.Blocked("okta/a") != nil || s.Blocked("okta/c") != nil {
		t.Error("who is blocked")
	}
}
