package keyring_test

import (
	"bytes"
	"crypto/ed25519"
	"net/netip"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
)

// pairOfKeys are a key and its successor, of the same scope: proxies in eu-west and us-east for tag:team=web, two at once, from 10/8.
func pairOfKeys(t *testing.T) (from, to keyring.Key) {
	t.Helper()
	from = issued(t, func(r *keyring.KeyRequest) {
		r.RouteSelector, r.Regions, r.MaxActive = "tag:team=web", []string{"eu-west", "us-east"}, 2
		r.SourceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	})
	from, to, err := keyring.RotateKey(from, keyring.RotateRequest{SuccessorPublicKey: public("next"), Grace: time.Hour, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return from, to
}

func TestRebinding(t *testing.T) {
	t.Parallel()
	from, to := pairOfKeys(t)
	node := in(enrolled(t, from, "a"), keyring.NodeActive)
	state := func(k keyring.Key, s keyring.KeyState) keyring.Key { k.State = s; return k }
	with := func(k keyring.Key, change func(*keyring.Key)) keyring.Key { change(&k); return k }
	word := func(k keyring.Key) keyring.Node { n := node; n.RebindTo = k.ID; return n }
	stranger := with(to, func(k *keyring.Key) { k.ID, k.Predecessor = "stranger", "" })
	inside := keyring.RebindFacts{ActiveNodes: 1, Source: netip.MustParseAddr("10.1.2.3")}
	for name, tc := range map[string]struct {
		node     keyring.Node
		from, to keyring.Key
		facts    keyring.RebindFacts
		kind     fault.Kind // Internal: re-bound
		says     string
	}{
		"to the successor":                     {node, from, to, inside, fault.Internal, ""},
		"to the successor, not knowing whence": {node, from, to, keyring.RebindFacts{}, fault.Internal, ""},
		"a lapsed node":                        {in(node, keyring.NodeLapsed), from, to, inside, fault.Internal, ""},
		"to a successor that is used up":       {node, from, state(to, keyring.KeyExhausted), inside, fault.Internal, ""},
		"to a successor that has expired":      {node, from, state(to, keyring.KeyExpired), inside, fault.Internal, ""},
		"to a successor that has one itself":   {node, from, state(to, keyring.KeyRetired), inside, fault.Internal, ""},
		"to a stranger":                        {node, from, stranger, inside, fault.Conflict, "does not succeed"},
		"to a stranger, by word":               {word(stranger), from, stranger, inside, fault.Internal, ""},
		"from a stranger":                      {node, stranger, to, inside, fault.Conflict, "it is bound to"},
		"to nothing":                           {node, from, keyring.Key{}, inside, fault.Conflict, "it is bound to"},
		"to one that waits for approval":       {node, from, state(to, keyring.KeyPending), inside, fault.Denied, "pending"},
		"to a suspended one":                   {node, from, state(to, keyring.KeySuspended), inside, fault.Denied, "suspended"},
		"to a revoked one":                     {node, from, state(to, keyring.KeyRevoked), inside, fault.Denied, "revoked"},
		"to a revoked one, by word":            {word(to), from, state(to, keyring.KeyRevoked), inside, fault.Denied, "revoked"},
		"to a used-up one, by word":            {word(stranger), from, state(stranger, keyring.KeyExhausted), inside, fault.Denied, "active key"},
		"from a revoked key":                   {node, state(from, keyring.KeyRevoked), to, inside, fault.Denied, "an operator's word only"},
		"from a revoked key, by word":          {word(to), state(from, keyring.KeyRevoked), to, inside, fault.Internal, ""},
		"from a revoked key, by another word":  {word(stranger), state(from, keyring.KeyRevoked), to, inside, fault.Denied, "an operator's word only"},
		"a quarantined node":                   {in(word(to), keyring.NodeQuarantined), from, to, inside, fault.Conflict, "quarantined"},
		"a departed node":                      {in(node, keyring.NodeDeparted), from, to, inside, fault.Conflict, "departed"},
		"a revoked node":                       {in(word(to), keyring.NodeRevoked), from, to, inside, fault.Conflict, "revoked"},
		"beyond max_active":                    {node, from, to, keyring.RebindFacts{ActiveNodes: 2}, fault.Exhausted, "max_active"},
		"beyond max_active, by word":           {word(stranger), from, stranger, keyring.RebindFacts{ActiveNodes: 2}, fault.Exhausted, "max_active"},
		"from another network":                 {node, from, to, keyring.RebindFacts{Source: netip.MustParseAddr("192.0.2.1")}, fault.Denied, "source_cidrs"},
		"to other routes":                      {word(stranger), from, with(stranger, func(k *keyring.Key) { k.RouteSelector = "" }), inside, fault.Denied, "route_selector"},
		"to another region":                    {word(stranger), from, with(stranger, func(k *keyring.Key) { k.Regions = []string{"ap-south"} }), inside, fault.Denied, "regions"},
		"to fewer roles":                       {word(stranger), from, with(stranger, func(k *keyring.Key) { k.Grants = []keyring.Role{keyring.RoleAggregator} }), inside, fault.Denied, "grants"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			after, err := keyring.RebindNode(tc.node, tc.from, tc.to, tc.facts)
			if tc.kind != fault.Internal {
				wantRefusal(t, err, tc.kind, tc.says)
				if after.BoundKey != from.ID {
					t.Errorf("bound to %s", after.BoundKey)
				}
				return
			}
			if err != nil || after.BoundKey != tc.to.ID || after.ProvisioningKey != from.ID || after.RebindTo != "" {
				t.Errorf("bound to %s, joined under %s, word %q: %v", after.BoundKey, after.ProvisioningKey, after.RebindTo, err)
			}
			again, err := keyring.RebindNode(after, tc.from, tc.to, keyring.RebindFacts{ActiveNodes: 2})
			if err != nil || again.BoundKey != after.BoundKey {
				t.Errorf("again: bound to %s: %v", again.BoundKey, err)
			}
		})
	}
}

func TestAnOperatorsWordForARebinding(t *testing.T) {
	t.Parallel()
	from, to := pairOfKeys(t)
	node := in(enrolled(t, from, "a"), keyring.NodeActive)
	inactive := to
	inactive.State = keyring.KeySuspended
	moved := node
	moved.BoundKey = to.ID
	wider := to
	wider.RouteSelector = ""
	for name, tc := range map[string]struct {
		node  keyring.Node
		to    keyring.Key
		facts keyring.RebindFacts
		kind  fault.Kind // Internal: taken
		says  string
	}{
		"active":            {node, to, keyring.RebindFacts{}, fault.Internal, ""},
		"quarantined":       {in(node, keyring.NodeQuarantined), to, keyring.RebindFacts{}, fault.Internal, ""},
		"departed":          {in(node, keyring.NodeDeparted), to, keyring.RebindFacts{}, fault.Conflict, "departed"},
		"revoked":           {in(node, keyring.NodeRevoked), to, keyring.RebindFacts{}, fault.Conflict, "revoked"},
		"to its own key":    {moved, to, keyring.RebindFacts{}, fault.Conflict, "already"},
		"to an inactive":    {node, inactive, keyring.RebindFacts{}, fault.Denied, "suspended"},
		"to a wider scope":  {node, wider, keyring.RebindFacts{}, fault.Denied, "route_selector"},
		"beyond max_active": {node, to, keyring.RebindFacts{ActiveNodes: 2}, fault.Exhausted, "max_active"},
	} {
		after, err := keyring.AllowRebind(tc.node, tc.to, tc.facts)
		switch {
		case tc.kind != fault.Internal:
			wantRefusal(t, err, tc.kind, tc.says)
		case err != nil || after.RebindTo != tc.to.ID || after.BoundKey != from.ID || after.State != tc.node.State:
			t.Errorf("%s: word %q, bound to %s, %s: %v", name, after.RebindTo, after.BoundKey, after.State, err)
		}
	}
	node.RebindTo = to.ID
	for what, end := range map[string]func() (keyring.Node, error){
		"departed": func() (keyring.Node, error) { return keyring.DepartNode(node, "", now) },
		"revoked":  func() (keyring.Node, error) { return keyring.RevokeNode(node, "", now) },
	} {
		if after, err := end(); err != nil || after.RebindTo != "" {
			t.Errorf("the word for a node that is %s stands: %q, %v", what, after.RebindTo, err)
		}
	}
	if after, err := keyring.QuarantineNode(node, "", now); err != nil || after.RebindTo != to.ID {
		t.Errorf("the word for a quarantined node: %q, %v", after.RebindTo, err)
	}
}

// A node follows its keys step by step, and stays where nothing leads on.
func TestWhereANodeShouldBindTo(t *testing.T) {
	t.Parallel()
	a, b := pairOfKeys(t)
	b, c, err := keyring.RotateKey(b, keyring.RotateRequest{SuccessorPublicKey: public("third"), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	node := in(enrolled(t, a, "a"), keyring.NodeActive)
	target := func(n keyring.Node, keys ...keyring.Key) string {
		contents := keyring.Contents{Keys: map[string]*keyring.Key{}}
		for _, k := range keys {
			contents.Keys[k.ID] = &k
		}
		if k := keyring.NewSnapshot(revision.Revision{}, contents).RebindTarget(&n); k != nil {
			return k.ID
		}
		return ""
	}
	at := func(key string) keyring.Node { n := node; n.BoundKey = key; return n }
	word := func(n keyring.Node, key string) keyring.Node { n.RebindTo = key; return n }
	revoked := a
	revoked.State = keyring.KeyRevoked
	deadEnd := b
	deadEnd.State = keyring.KeyRevoked
	for name, tc := range map[string]struct{ got, want string }{
		"first step":                          {target(node, a, b, c), b.ID},
		"second step":                         {target(at(b.ID), a, b, c), c.ID},
		"there":                               {target(at(c.ID), a, b, c), ""},
		"quarantined":                         {target(in(node, keyring.NodeQuarantined), a, b, c), ""},
		"its key is revoked":                  {target(node, revoked, b, c), ""},
		"its key is revoked, with a word":     {target(word(node, c.ID), revoked, b, c), c.ID},
		"a word to a key that is not active":  {target(word(node, b.ID), revoked, b, c), ""},
		"the successor is revoked":            {target(node, a, deadEnd, c), ""},
		"the successor is not known here yet": {target(node, a), ""},
		"its own key is not known here":       {target(node), ""},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: %q, want %q", name, tc.got, tc.want)
		}
	}
}

// No two re-bindings share a message, whatever their names are, and nothing else that a node key signs begins like one.
func TestWhatARebindingSigns(t *testing.T) {
	t.Parallel()
	messages := map[string]bool{}
	for _, parts := range [][4]string{{"m", "n", "a", "b"}, {"m", "n", "b", "a"}, {"mn", "", "a", "b"}, {"", "mn", "a", "b"}, {"m", "na", "", "b"}, {"m", "n", "ab", ""}} {
		messages[string(keyring.RebindMessage(parts[0], parts[1], parts[2], parts[3]))] = true
	}
	if len(messages) != 6 {
		t.Errorf("%d messages of 6", len(messages))
	}
	if want := []byte("iapmesh/rebind/v1\x00\x00\x00\x01m\x00\x00\x00\x01n\x00\x00\x00\x01a\x00\x00\x00\x01b"); !bytes.Equal(keyring.RebindMessage("m", "n", "a", "b"), want) {
		t.Errorf("%q, want %q", keyring.RebindMessage("m", "n", "a", "b"), want)
	}
	n := enrolled(t, issued(t, nil), "a")
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	n.PublicKey = public
	good := ed25519.Sign(private, keyring.RebindMessage("m", n.ID, "a", "b"))
	if err := keyring.VerifyRebind("m", &n, "a", "b", good); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"another mesh":   keyring.VerifyRebind("x", &n, "a", "b", good),
		"another key":    keyring.VerifyRebind("m", &n, "a", "c", good),
		"the other way":  keyring.VerifyRebind("m", &n, "b", "a", good),
		"short":          keyring.VerifyRebind("m", &n, "a", "b", good[:63]),
		"none":           keyring.VerifyRebind("m", &n, "a", "b", nil),
		"another domain": keyring.VerifyRebind("m", &n, "a", "b", ed25519.Sign(private, keyring.AnnouncementMessage(n.ID))),
	} {
		wantRefusal(t, err, fault.Denied, "proof")
		if err == nil {
			t.Errorf("%s: it verifies", name)
		}
	}
}

func TestFromWhereANodeMaySpeak(t *testing.T) {
	t.Parallel()
	key, _ := pairOfKeys(t)
	open := issued(t, nil)
	s := keyring.NewSnapshot(revision.Revision{}, keyring.Contents{Keys: map[string]*keyring.Key{key.ID: &key}})
	bound := in(enrolled(t, key, "a"), keyring.NodeActive)
	for name, tc := range map[string]struct {
		s      *keyring.Snapshot
		node   keyring.Node
		source netip.Addr
		says   string // empty: it may
	}{
		"inside":                {s, bound, netip.MustParseAddr("10.9.9.9"), ""},
		"inside, as mapped":     {s, bound, netip.MustParseAddr("::ffff:10.9.9.9"), ""},
		"outside":               {s, bound, netip.MustParseAddr("192.0.2.1"), "source_cidrs"},
		"from nowhere":          {s, bound, netip.Addr{}, "source_cidrs"},
		"its key is not there":  {keyring.NewSnapshot(revision.Revision{}, keyring.Contents{}), bound, netip.MustParseAddr("10.9.9.9"), "there is no key"},
		"a key without sources": {keyring.NewSnapshot(revision.Revision{}, keyring.Contents{Keys: map[string]*keyring.Key{open.ID: &open}}), enrolled(t, open, "b"), netip.MustParseAddr("192.0.2.1"), ""},
	} {
		err := tc.s.AdmitsSource(&tc.node, tc.source)
		if tc.says == "" && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if tc.says != "" {
			wantRefusal(t, err, fault.Denied, tc.says)
		}
	}
}

// Whatever a node sends: only its own signature over that very step verifies.
func FuzzVerifyRebind(f *testing.F) {
	n := keyring.Node{ID: "n-fuzz", PublicKey: public("fuzz")}
	good := ed25519.Sign(private("fuzz"), keyring.RebindMessage("m", n.ID, "a", "b"))
	f.Add("a", "b", good)
	f.Add("a", "b", good[1:])
	f.Add("", "", []byte{})
	f.Add("a\x00\x00\x00\x01b", "", good)
	f.Fuzz(func(t *testing.T, from, to string, signature []byte) {
		err := keyring.VerifyRebind("m", &n, from, to, signature)
		if mine := from == "a" && to == "b" && bytes.Equal(signature, good); (err == nil) != mine {
			t.Fatalf("from %q to %q: %v", from, to, err)
		}
	})
}
