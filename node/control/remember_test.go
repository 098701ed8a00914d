package control_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// tells is a node's request on a connection.
func tells(t testing.TB, node string, key ed25519.PrivateKey, epoch uint64, ekm [32]byte, denials ...keyring.Denial) *iapmeshv1.RememberRequest {
	t.Helper()
	body, err := proto.Marshal(&iapmeshv1.RememberBody{NodeId: node, Epoch: epoch, Denials: state.DenialsProto(denials)})
	must(t, err)
	signature, err := keyring.SignRemember(key, ekm, body)
	must(t, err)
	return &iapmeshv1.RememberRequest{Body: body, Signature: signature}
}

func TestWhatNodesRememberOnlyRefusesMore(t *testing.T) {
	t.Parallel()
	w := start(t)
	known, lost := w.issue(nil), w.issue(nil)
	proxy, thief, gone := w.joined(known, "px", "eu-west"), w.joined(known, "thief", "eu-west"), w.joined(known, "gone", "eu-west")
	_, _, err := w.Revoke(t.Context(), "admin/ana", &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE, Value: "gone"})
	must(t, err)
	saved := w.saved()
	var ekm, other [32]byte
	rand.Read(ekm[:])
	rand.Read(other[:])
	deny := []keyring.Denial{
		{Kind: keyring.DenyKey, Value: lost.ID(), Reason: "stolen"}, {Kind: keyring.DenyNode, Value: thief.id()}, {Kind: keyring.DenyNode, Value: w.founder.id()},
		{Kind: keyring.DenyAdmin, Value: keyring.AdminID(public(w.admin))}, {Kind: keyring.DenySubject, Value: "dev/eve", Block: true, At: w.clock.now()},
		{Kind: keyring.DenyKey, Value: "unknown"}, {Kind: "nonsense", Value: "x"},
	}
	_, err = w.Remember(t.Context(), tells(t, proxy.id(), proxy.node, 2, ekm, deny...), ekm)
	wantKind(t, "where nothing was restored", err, fault.Conflict, "no restoration")
	_, _, err = w.Restore(t.Context(), "admin/ana", w.signed(saved))
	must(t, err)
	for name, tc := range map[string]struct {
		req  *iapmeshv1.RememberRequest
		ekm  [32]byte
		kind fault.Kind
	}{
		"for another connection": {tells(t, proxy.id(), proxy.node, 2, ekm, deny...), other, fault.Denied},
		"by another's key":       {tells(t, proxy.id(), thief.node, 2, ekm, deny...), ekm, fault.Denied},
		"by a revoked node":      {tells(t, gone.id(), gone.node, 2, ekm, deny...), ekm, fault.Denied},
		"by nobody":              {tells(t, "n-nobody", newKey(t), 2, ekm, deny...), ekm, fault.Denied},
		"of another epoch":       {tells(t, proxy.id(), proxy.node, 3, ekm, deny...), ekm, fault.Conflict},
		"without a value":        {tells(t, proxy.id(), proxy.node, 2, ekm, keyring.Denial{Kind: keyring.DenyKey}), ekm, fault.Invalid},
		"with a long value":      {tells(t, proxy.id(), proxy.node, 2, ekm, keyring.Denial{Kind: keyring.DenyKey, Value: strings.Repeat("x", 600)}), ekm, fault.Invalid},
		"a user of nonsense":     {tells(t, proxy.id(), proxy.node, 2, ekm, keyring.Denial{Kind: keyring.DenySubject, Value: "no provider", At: time.Now()}), ekm, fault.Invalid},
		"nonsense":               {&iapmeshv1.RememberRequest{Body: []byte{0xff}}, ekm, fault.Invalid},
		"too much":               {&iapmeshv1.RememberRequest{Body: make([]byte, 20<<10)}, ekm, fault.Invalid},
	} {
		_, err := w.Remember(t.Context(), tc.req, tc.ekm)
		wantKind(t, name, err, tc.kind, "")
	}
	if w.key(lost.ID()).State != keyring.KeySuspended {
		t.Fatalf("what was refused was written: the key is %s", w.key(lost.ID()).State)
	}
	list := control.RestorationStatus(w.view()).ListDigest
	must(t, second(w.Remember(t.Context(), tells(t, proxy.id(), proxy.node, 2, ekm, deny...), ekm)))
	k := w.view().Keyring
	switch {
	case k.Keys[lost.ID()].State != keyring.KeyRevoked, k.Keys[known.ID()].State != keyring.KeySuspended:
		t.Errorf("keys: lost %s, known %s", k.Keys[lost.ID()].State, k.Keys[known.ID()].State)
	case k.Nodes[thief.id()].State != keyring.NodeRevoked, k.Nodes[proxy.id()].State != keyring.NodeQuarantined:
		t.Errorf("nodes: thief %s, px %s", k.Nodes[thief.id()].State, k.Nodes[proxy.id()].State)
	case k.Nodes[w.founder.id()].State != keyring.NodeActive:
		t.Error("on a node's word the leader is revoked")
	case !k.Admins[keyring.AdminID(public(w.admin))].RevokedAt.IsZero():
		t.Error("on a node's word nobody is left to confirm")
	case k.Blocked("dev/eve") == nil:
		t.Error("eve is not blocked")
	}
	refused := ""
	for _, d := range k.Restoration.Refused {
		refused += string(d.Kind) + " " + d.Value + " " + d.Source + "\n"
	}
	for _, want := range []string{"key " + lost.ID(), "node " + thief.id(), "user dev/eve"} {
		if !strings.Contains(refused, want+" node/"+proxy.id()) {
			t.Errorf("the record does not say who remembers %s:\n%s", want, refused)
		}
	}
	before := w.view().Revision
	must(t, second(w.Remember(t.Context(), tells(t, proxy.id(), proxy.node, 2, ekm, deny...), ekm)))
	if w.view().Keyring.Restoration.Refused[0].Value != k.Restoration.Refused[0].Value || len(w.view().Keyring.Restoration.Refused) != len(k.Restoration.Refused) {
		t.Errorf("told again from %s: %v", before, w.view().Keyring.Restoration.Refused)
	}
	_, err = w.ConfirmRestoration(t.Context(), "admin/ana", list, nil, false)
	wantKind(t, "a list from before the node spoke", err, fault.Conflict, "read it again")
	w.confirm()
	_, err = w.Remember(t.Context(), tells(t, proxy.id(), proxy.node, 2, ekm, deny...), ekm)
	wantKind(t, "after the confirmation", err, fault.Conflict, "no restoration")
}

// A node that was stolen fills no state while the mesh waits: what it adds is bounded, and what it says again adds nothing.
func TestWhatANodeRemembersIsBounded(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.MaxRecalled = 6
	proxy, other := w.joined(w.boot, "px", "eu-west"), w.joined(w.boot, "other", "eu-west")
	_, _, err := w.Restore(t.Context(), "admin/ana", w.signed(w.saved()))
	must(t, err)
	var ekm [32]byte
	rand.Read(ekm[:])
	say := func(by *joiner, from, to int) error {
		var denials []keyring.Denial
		for i := from; i < to; i++ {
			denials = append(denials, keyring.Denial{Kind: keyring.DenySubject, Value: fmt.Sprint("dev/", i), Block: true, At: w.clock.now()})
		}
		return second(w.Remember(t.Context(), tells(t, by.id(), by.node, 2, ekm, denials...), ekm))
	}
	must(t, say(proxy, 0, 5))
	must(t, say(proxy, 0, 5)) // it repeats itself until it is confirmed
	must(t, say(proxy, 5, 7))
	wantKind(t, "more than it may", say(proxy, 7, 8), fault.Exhausted, "no more of it")
	must(t, say(other, 8, 9))
	if k := w.view().Keyring; k.Blocked("dev/7") != nil || k.Blocked("dev/6") == nil || k.Blocked("dev/8") == nil {
		t.Error("what was refused is written, or what was not is not")
	}
}

// Whoever proves to be no node that may speak is refused at once, and not only when the one writer has time: strangers may ask.
func TestAStrangerWhoClaimsToRememberWaitsForNoWriter(t *testing.T) {
	t.Parallel()
	w := start(t)
	proxy := w.joined(w.boot, "px", "eu-west")
	_, _, err := w.Restore(t.Context(), "admin/ana", w.signed(w.saved()))
	must(t, err)
	var ekm [32]byte
	rand.Read(ekm[:])
	genuine := tells(t, proxy.id(), proxy.node, 2, ekm, keyring.Denial{Kind: keyring.DenySubject, Value: "dev/eve", Block: true, At: w.clock.now()})
	forged := tells(t, proxy.id(), newKey(t), 2, ekm)
	writing, goOn, written, refused := make(chan struct{}), make(chan struct{}), make(chan error, 1), make(chan error, 1)
	hold := sync.OnceFunc(func() { close(writing); <-goOn })
	w.engine.setSpoil(func(store.Txn) (bool, error) { hold(); return false, nil })
	go func() { written <- second(w.Remember(t.Context(), genuine, ekm)) }()
	select {
	case <-writing:
	case err := <-written:
		t.Fatalf("the node remembers nothing: %v", err)
	}
	go func() { refused <- second(w.Remember(t.Context(), forged, ekm)) }()
	select {
	case err := <-refused:
		wantKind(t, "a stranger", err, fault.Denied, "")
	case <-time.After(patience):
		t.Error("a stranger waits for a writer")
	}
	close(goOn)
	must(t, <-written)
}

// Whatever a node says that may speak, in bytes of its own, refuses more or nothing, and does not open the mesh.
func FuzzRemember(f *testing.F) {
	w := start(f)
	proxy := w.joined(w.boot, "px", "eu-west")
	_, _, err := w.Restore(f.Context(), "admin/ana", w.signed(w.saved()))
	must(f, err)
	ekm := [32]byte{1}
	for _, d := range [][]keyring.Denial{
		nil,
		{{Kind: keyring.DenyKey, Value: w.boot.ID(), Reason: "stolen", At: w.clock.now()}},
		{{Kind: keyring.DenyNode, Value: proxy.id(), State: "quarantined"}, {Kind: keyring.DenyNode, Value: w.founder.id()}},
		{{Kind: keyring.DenyAdmin, Value: keyring.AdminID(public(w.admin))}, {Kind: keyring.DenySubject, Value: "dev/eve", Block: true, At: w.clock.now()}},
		{{Kind: keyring.DenySession, Value: "s", At: time.Unix(-1<<40, 0)}, {Kind: "nonsense", Value: "x", State: "active"}},
	} {
		f.Add(tells(f, proxy.id(), proxy.node, 2, ekm, d...).Body)
	}
	f.Add([]byte{0x0a})
	f.Fuzz(func(t *testing.T, body []byte) {
		signature, err := keyring.SignRemember(proxy.node, ekm, body)
		if err != nil {
			return
		}
		before := w.view().Keyring
		if _, err := w.Remember(t.Context(), &iapmeshv1.RememberRequest{Body: body, Signature: signature}, ekm); err != nil {
			if fault.Is(err, fault.Internal) {
				t.Fatal(err)
			}
			return
		}
		after := w.view().Keyring
		if after.Closed() == nil || !after.Nodes[w.founder.id()].Trusted() || after.Admins[keyring.AdminID(public(w.admin))].Check(w.clock.now()) != nil {
			t.Fatal("what a node remembers opened the mesh, or took away who leads or who is to confirm")
		}
		for id, k := range after.Keys {
			if old := before.Keys[id]; old == nil || keyring.KeyLetsIn(old, k) {
				t.Fatalf("key %s is %s", id, k.State)
			}
		}
		for id, n := range after.Nodes {
			if old := before.Nodes[id]; old == nil || keyring.NodeLetsIn(old, n) {
				t.Fatalf("node %s is %s", id, n.State)
			}
		}
	})
}
