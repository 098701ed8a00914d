package state_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// script is a store whose changes the test sends one after another.
type script chan store.Change

func (s script) Watch(ctx context.Context, _ store.Revision) iter.Seq2[store.Change, error] {
	return func(yield func(store.Change, error) bool) {
		for {
			select {
			case c, ok := <-s:
				if !ok {
					yield(store.Change{}, fault.New(fault.Unavailable, "the store closed"))
					return
				}
				if !yield(c, nil) {
					return
				}
			case <-ctx.Done():
				yield(store.Change{}, ctx.Err())
				return
			}
		}
	}
}

// world is a Source that runs over a script.
type world struct {
	t      testing.TB
	store  script
	source *state.Source
	index  uint64
}

func newWorld(t testing.TB, onView ...func(*state.View)) *world {
	t.Helper()
	w := &world{t: t, store: make(script)}
	w.source = state.NewSource(w.store, slog.New(slog.DiscardHandler), onView...)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.source.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return w
}

// send delivers one commit, each entry at its revision, and returns the view that came of it, once everybody was told of it: a view is
// there to be waited for before that.
func (w *world) send(reset bool, entries ...store.Entry) *state.View {
	w.t.Helper()
	w.index++
	at := store.Revision{Epoch: 1, Index: w.index}
	for i := range entries {
		entries[i].Revision = at
	}
	w.store <- store.Change{Revision: at, Reset: reset, Entries: entries}
	v, err := w.source.WaitRevision(w.t.Context(), at)
	if err != nil {
		w.t.Fatal(err)
	}
	for {
		changed := w.source.Changed()
		if !w.source.Served().Before(at) {
			return v
		}
		<-changed
	}
}

var mesh = keyring.Mesh{ID: "m-1", TrustDomain: "mesh.test", FoundedAt: time.Unix(1_700_000_000, 0).UTC()}

func public(n byte) ed25519.PublicKey {
	k := make(ed25519.PublicKey, ed25519.PublicKeySize)
	k[0] = n
	return k
}

func node(n byte, region string) *keyring.Node {
	return &keyring.Node{ID: keyring.NodeID(public(n)), Name: fmt.Sprintf("node-%d", n), Region: region, PublicKey: public(n), State: keyring.NodeActive}
}

// zone is a resource as a commit holds it, and its place in a manifest.
func zone(t testing.TB, name string) (store.Entry, *iapmeshv1.ManifestEntry) {
	t.Helper()
	docs, err := resource.Parse("m.yaml", []byte("kind: Zone\nname: "+name+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	d := docs[0]
	return state.PutBlob(d.Hash, &iapmeshv1.Resource{Kind: d.Ref().Kind, Name: d.Ref().Name, Spec: d.JSON, Source: d.Source}),
		&iapmeshv1.ManifestEntry{Kind: d.Ref().Kind, Name: d.Ref().Name, Hash: d.Hash[:]}
}

func TestNoViewBeforeThereIsAMesh(t *testing.T) {
	t.Parallel()
	var shown []*state.View
	w := newWorld(t, func(v *state.View) { shown = append(shown, v) })
	w.store <- store.Change{Reset: true}
	w.store <- store.Change{Revision: store.Revision{Epoch: 1, Index: 1}, Entries: []store.Entry{state.PutNode(node(1, "eu"))}}
	w.index = 1
	if v := w.source.Load(); v != nil {
		t.Fatalf("view %+v of a store that holds no mesh", v)
	}
	if v := w.send(false, state.PutMesh(mesh)); len(v.Keyring.Nodes) != 1 || v.Keyring.Mesh != mesh {
		t.Errorf("view: %+v", v.Keyring.Contents)
	}
	if len(shown) != 1 {
		t.Errorf("%d views were told of, want that of the mesh alone", len(shown))
	}
}

func TestAViewNeverChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := node(1, "eu")
	r := &keyring.Revocation{Kind: keyring.RevokeSubject, Value: "okta/ana"}
	first := w.send(true, state.PutMesh(mesh), state.PutNode(n), state.PutRevocation(r))
	nodes, revoked := maps.Clone(first.Keyring.Nodes), maps.Clone(first.Keyring.Revocations[keyring.RevokeSubject])
	changed := *n
	changed.State = keyring.NodeRevoked
	second := w.send(false, state.PutNode(&changed), state.PutNode(node(2, "us")),
		store.Entry{Key: state.RevocationPath(r.Kind, r.Value), Deleted: true})
	if !maps.Equal(first.Keyring.Nodes, nodes) || !maps.Equal(first.Keyring.Revocations[keyring.RevokeSubject], revoked) || first.Keyring.Nodes[n.ID].State != keyring.NodeActive {
		t.Errorf("the first view changed: %+v", first.Keyring.Contents)
	}
	if len(second.Keyring.Nodes) != 2 || second.Keyring.Nodes[n.ID].State != keyring.NodeRevoked || second.Keyring.Revoked("s", "okta/ana", revision.Revision{}) != nil {
		t.Errorf("the second view: %+v", second.Keyring.Contents)
	}
	third := w.send(true, state.PutMesh(mesh), state.PutNode(node(3, "eu"))) // what a reset leaves out is gone
	if len(third.Keyring.Nodes) != 1 || third.Keyring.Nodes[n.ID] != nil {
		t.Errorf("after a reset: %+v", third.Keyring.Nodes)
	}
}

func TestWhatIsNotUnderstoodRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := node(1, "eu")
	garbage := func(key string) store.Entry { return store.Entry{Key: key, Value: []byte{0xff, 0xff, 0xff}} }
	w.send(true, state.PutMesh(mesh), state.PutNode(n), state.PutAuthority(authority(t)), state.PutAdmin(&keyring.Admin{ID: "u-1", Name: "ana", PublicKey: public(9)}))
	stolen := *n
	stolen.ID = "n-another"
	entry := state.PutNode(&stolen)
	entry.Key = state.NodePath("n-elsewhere")
	v := w.send(false,
		garbage(state.NodePath(n.ID)), garbage(state.AdminPath("u-1")), garbage(state.KeyPath("k")), garbage(state.AuthorityPath("00")), garbage(state.SigningKeyPath("s-1")),
		garbage(state.RevocationPath(keyring.RevokeSubject, "okta/ana")), garbage(state.RevocationPath(keyring.RevokeSession, "sid")),
		garbage(state.RevocationPath("planet", "mars")), garbage("future/kind"), garbage("node"), garbage("manifest/x"), garbage(""), entry,
	)
	later := revision.Revision{Epoch: 9}
	switch {
	case v.Keyring.Nodes[n.ID] != nil || v.Keyring.NodeByKey(n.PublicKey) != nil:
		t.Error("a node whose record was damaged is still trusted, or one under another's name")
	case v.Keyring.Admins["u-1"] != nil:
		t.Error("an administrator whose record was damaged still counts")
	case v.Keyring.Revoked("x", "okta/ana", later) == nil || v.Keyring.Blocked("okta/ana") == nil || v.Keyring.Revoked("sid", "y", later) == nil:
		t.Error("a revocation whose record was damaged refuses nobody")
	case len(v.Keyring.Authorities) != 1:
		t.Errorf("authorities: %v", v.Keyring.Authorities)
	}
}

// A revocation refuses what its path names, whatever its record says.
func TestARevocationsPathCounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := state.PutRevocation(&keyring.Revocation{Kind: keyring.RevokeSession, Value: "other"})
	e.Key = state.RevocationPath(keyring.RevokeSubject, "okta/a/b") // subjects hold slashes
	v := w.send(true, state.PutMesh(mesh), e)
	r := v.Keyring.Revoked("s", "okta/a/b", revision.Revision{})
	if r == nil || r.Value != "okta/a/b" || r.Kind != keyring.RevokeSubject || r.Revision != v.Revision {
		t.Errorf("revocation: %+v", r)
	}
}

func TestAManifestThatCannotBeInForceLeavesTheFormerOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	blob, entry := zone(t, "a")
	other, missing := zone(t, "b")
	good := w.send(true, state.PutMesh(mesh), blob, state.PutManifest(&iapmeshv1.Manifest{Entries: []*iapmeshv1.ManifestEntry{entry}}))
	if w.source.Problem() != "" || good.Config.Digest == [32]byte{} {
		t.Fatalf("problem %q", w.source.Problem())
	}
	mislabelled := &iapmeshv1.ManifestEntry{Kind: "Zone", Name: "c", Hash: entry.Hash}
	for name, broken := range map[string]store.Entry{
		"a blob that is not there": state.PutManifest(&iapmeshv1.Manifest{Entries: []*iapmeshv1.ManifestEntry{entry, missing}}),
		"a short hash":             state.PutManifest(&iapmeshv1.Manifest{Entries: []*iapmeshv1.ManifestEntry{{Kind: "Zone", Name: "a", Hash: []byte{1}}}}),
		"another name":             state.PutManifest(&iapmeshv1.Manifest{Entries: []*iapmeshv1.ManifestEntry{mislabelled}}),
		"the same twice":           state.PutManifest(&iapmeshv1.Manifest{Entries: []*iapmeshv1.ManifestEntry{entry, entry}}),
		"garbage":                  {Key: state.PathManifest, Value: []byte{0xff}},
	} {
		v := w.send(false, broken)
		if v.Config != good.Config || w.source.Problem() == "" {
			t.Errorf("%s: configuration %x, problem %q", name, v.Config.Digest, w.source.Problem())
		}
		// What has nothing to do with it neither mends it nor hides it.
		if v := w.send(false, state.PutNode(node(7, "eu"))); v.Config.Digest != good.Config.Digest || w.source.Problem() == "" {
			t.Errorf("%s, one commit later: configuration %x, problem %q", name, v.Config.Digest, w.source.Problem())
		}
	}
	w.send(false, state.PutManifest(&iapmeshv1.Manifest{Entries: []*iapmeshv1.ManifestEntry{entry, missing}}))
	if v := w.send(false, other); w.source.Problem() != "" || v.Config.Digest == good.Config.Digest {
		t.Errorf("the blob came: problem %q", w.source.Problem())
	}
	if v := w.send(false, store.Entry{Key: state.PathManifest, Deleted: true}); v.Config == nil || len(v.Config.Routes) != 0 || w.source.Problem() != "" {
		t.Errorf("the manifest was deleted: %+v, problem %q", v.Config, w.source.Problem())
	}
}

func TestABlobUnderAnothersHashIsNone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	blob, entry := zone(t, "a")
	other, _ := zone(t, "b")
	blob.Value = other.Value
	w.send(true, state.PutMesh(mesh), blob, state.PutManifest(&iapmeshv1.Manifest{Entries: []*iapmeshv1.ManifestEntry{entry}}))
	if p := w.source.Problem(); !strings.Contains(p, "Zone/a: its blob is missing") {
		t.Errorf("problem: %q", p)
	}
}

// Readers see whole views, in order, whatever else they do meanwhile.
func TestReadersAndTheFollower(t *testing.T) {
	t.Parallel()
	var seen []revision.Revision
	w := newWorld(t, func(v *state.View) { seen = append(seen, v.Revision) })
	w.send(true, state.PutMesh(mesh))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			var last revision.Revision
			for {
				select {
				case <-stop:
					return
				default:
				}
				v := w.source.Load()
				if v.Revision.Before(last) || v.Revision != v.Keyring.Revision || uint64(len(v.Keyring.Nodes)) != v.Revision.Index-1 {
					t.Errorf("after %v: view %v with %d nodes", last, v.Revision, len(v.Keyring.Nodes))
					return
				}
				last = v.Revision
				if w.source.Served().Before(revision.Revision{}) {
					t.Error("served less than nothing")
				}
			}
		})
	}
	for i := range 100 {
		if v := w.send(false, state.PutNode(node(byte(i), "eu"))); w.source.Served() != v.Revision {
			t.Errorf("served %v, view %v", w.source.Served(), v.Revision)
		}
	}
	close(stop)
	readers.Wait()
	if len(seen) != 101 {
		t.Errorf("%d views were told of", len(seen))
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.source.WaitRevision(ctx, revision.Revision{Epoch: 1, Index: 1}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("%v", err)
	}
}

func TestRunEndsWithTheStore(t *testing.T) {
	t.Parallel()
	s := make(script)
	close(s)
	if err := state.NewSource(s, slog.New(slog.DiscardHandler)).Run(t.Context()); !fault.Is(err, fault.Unavailable) {
		t.Errorf("%v, want unavailable", err)
	}
}

// Only the receipts that the leader waits for lie in a view; a manifest's revision does, too.
func TestAViewHoldsOpenReceiptsAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	open := keyring.Receipt{ID: "r-1", State: keyring.ReceiptOpen}
	done := keyring.Receipt{ID: "r-2", State: keyring.ReceiptEverywhere, Revision: revision.Revision{Epoch: 1, Index: 1}}
	v := w.send(true, state.PutMesh(mesh), state.PutReceipt(&open), state.PutReceipt(&done), state.PutManifest(&iapmeshv1.Manifest{}))
	if r := v.Keyring.Receipts["r-1"]; len(v.Keyring.Receipts) != 1 || r == nil || r.Revision != v.Revision || v.ManifestRevision != v.Revision {
		t.Errorf("receipts %+v, manifest at %s; revision %s", v.Keyring.Receipts, v.ManifestRevision, v.Revision)
	}
	before := v
	open.State, open.Revision = keyring.ReceiptLive, v.Revision
	v = w.send(false, state.PutReceipt(&open))
	if r := v.Keyring.Receipts["r-1"]; r == nil || r.Revision != before.Revision || v.ManifestRevision != before.Revision {
		t.Errorf("written again: %+v, manifest at %s", r, v.ManifestRevision)
	}
	open.State = keyring.ReceiptEverywhere
	if v = w.send(false, state.PutReceipt(&open)); len(v.Keyring.Receipts) != 0 || len(before.Keyring.Receipts) != 1 {
		t.Errorf("complete: %+v; a view from before has changed: %+v", v.Keyring.Receipts, before.Keyring.Receipts)
	}
}

func FuzzBuilder(f *testing.F) {
	n := state.PutNode(node(1, "eu"))
	f.Add(n.Key, n.Value, "revocation/subject/okta/ana", []byte{0xff}, true)
	f.Add("manifest", []byte{0xff}, "blob/00", []byte{}, false)
	a := state.PutAuthority(authority(f))
	f.Add(a.Key, a.Value, "meta/mesh", []byte{}, false)
	restoration := state.PutRestoration(&keyring.Restoration{Phase: keyring.RestorationAwaiting, List: keyring.RestoreList{Nodes: []keyring.HeldNode{{ID: "n-1"}}}})
	f.Add(restoration.Key, restoration.Value, restoration.Key, []byte{0xff}, false)
	f.Add(restoration.Key, []byte{0xff}, restoration.Key, []byte{}, false)
	f.Add("revocation/session", []byte{}, "manifest/", []byte("x"), false)
	ring := state.PutGossipRing(keyring.NewRing(time.Unix(1_700_000_000, 0)))
	f.Add(ring.Key, ring.Value, ring.Key, []byte{0xff}, false)
	r := state.PutReceipt(&keyring.Receipt{ID: "r-1", Act: keyring.Act{Action: "key.revoke"}, State: keyring.ReceiptOpen, Nodes: []keyring.ReceiptNode{{ID: "n-1"}}})
	f.Add(r.Key, r.Value, "receipt/", []byte{0xff}, false)
	f.Fuzz(func(t *testing.T, key1 string, value1 []byte, key2 string, value2 []byte, reset bool) {
		w := newWorld(t)
		w.send(true, state.PutMesh(mesh))
		v := w.send(false, store.Entry{Key: key1, Value: value1}, state.PutMesh(mesh))
		w.send(reset, store.Entry{Key: key2, Value: value2}, store.Entry{Key: key1, Deleted: true}, state.PutMesh(mesh))
		if v.Config == nil || v.Keyring == nil {
			t.Fatal("a view without a part")
		}
		if key1 == state.PathRestoration && v.Keyring.Closed() == nil && !confirmed(value1) {
			t.Fatal("a restoration that nobody has confirmed opens the mesh")
		}
		for id, n := range v.Keyring.Nodes {
			if n.ID != id {
				t.Fatalf("node %q lies under %q", n.ID, id)
			}
		}
		if value, ok := strings.CutPrefix(key1, state.PrefixRevocation+"subject/"); ok && v.Keyring.Revoked("", value, revision.Revision{}) == nil {
			t.Fatalf("%q refuses nobody", key1)
		}
	})
}

func confirmed(value []byte) bool {
	var p iapmeshv1.Restoration
	return proto.Unmarshal(value, &p) == nil && p.Phase == iapmeshv1.RestorationPhase_RESTORATION_PHASE_CONFIRMED
}

// That this node was put out counts from when it is told until the record that is followed is as new, or a leader trusts it.
func TestANodeIsToldItsStanding(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	shown := 0
	w := newWorld(t, func(*state.View) { shown++ })
	record := func(s keyring.NodeState, minute int) store.Entry {
		n := node(1, "eu")
		n.State, n.StateSince = s, start.Add(time.Duration(minute)*time.Minute)
		return state.PutNode(n)
	}
	id := node(1, "eu").ID
	tell := func(s keyring.NodeState, minute int) {
		w.source.Tell(state.Standing{Node: id, State: s, Reason: "odd", Since: start.Add(time.Duration(minute) * time.Minute)})
	}
	is := func(when string, want keyring.NodeState) {
		t.Helper()
		if n := w.source.Load().Keyring.Nodes[id]; n.State != want || w.source.Load().Keyring.NodeByKey(n.PublicKey) != n {
			t.Errorf("%s: it is %s, want %s", when, n.State, want)
		}
	}
	tell(keyring.NodeQuarantined, 2) // as it was told before it was restarted
	w.send(true, state.PutMesh(mesh), record(keyring.NodeActive, 1))
	is("told before the first view", keyring.NodeQuarantined)
	tell(keyring.NodeActive, 3) // by one who is behind, or lies
	is("told that it was not put out", keyring.NodeQuarantined)
	w.send(false, state.PutNode(node(2, "us")))
	is("a view of one who is behind", keyring.NodeQuarantined)
	w.send(false, record(keyring.NodeActive, 4))
	is("released, and followed", keyring.NodeActive)
	was := shown
	tell(keyring.NodeQuarantined, 4)
	if shown != was {
		t.Error("what the record knows already is a view of its own")
	}
	tell(keyring.NodeQuarantined, 5)
	is("told again", keyring.NodeQuarantined)
	tell(keyring.NodeRevoked, 6)
	is("and worse", keyring.NodeRevoked)
	was = shown
	tell(keyring.NodeRevoked, 6)
	if shown != was {
		t.Error("the same again is a view of its own")
	}
	w.source.Announce(&keyring.Restoration{Statement: keyring.RestorationStatement{NewEpoch: 2}, Phase: keyring.RestorationAwaiting})
	is("and of a restoration", keyring.NodeRevoked)
	w.source.Untell()
	is("a leader trusts it", keyring.NodeActive)
	tell(keyring.NodeQuarantined, 7)
	at := store.Revision{Epoch: 2, Index: 1}
	w.store <- store.Change{Revision: at, Reset: true, Entries: []store.Entry{state.PutMesh(mesh), record(keyring.NodeActive, 1)}}
	if _, err := w.source.WaitRevision(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	is("restored", keyring.NodeActive)
	w.source.Tell(state.Standing{Node: id, State: keyring.NodeQuarantined, Since: start.Add(time.Hour), Epoch: 1})
	is("told by what was kept of before", keyring.NodeActive)
}
