package state_test

import (
	"errors"
	"reflect"
	"slices"
	"strconv"
	"testing"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func TestARestorationLosesNoField(t *testing.T) {
	t.Parallel()
	r := filled[keyring.Restoration](t)
	r.List.Admins = nil // those of now, never stored
	sameRecord(t, "restoration", state.RestorationOf(unmarshal(t, state.PutRestoration(r), &iapmeshv1.Restoration{})), r)
}

// What is not understood holds the gate shut; only the word of an operator opens it.
func TestTheGateIsShutUnlessConfirmed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	v := w.send(true, state.PutMesh(mesh))
	if v.Keyring.Closed() != nil {
		t.Fatal("closed without a restoration")
	}
	for _, value := range [][]byte{{0xff}, {}, state.PutRestoration(&keyring.Restoration{Phase: "a later version's"}).Value, state.PutRestoration(&keyring.Restoration{Phase: keyring.RestorationRunning}).Value} {
		if v = w.send(false, store.Entry{Key: state.PathRestoration, Value: value}); !fault.Is(v.Keyring.Closed(), fault.Unavailable) || !v.Keyring.Fenced(revision.Revision{Epoch: 99, Index: 99}) {
			t.Errorf("%x opens the mesh", value)
		}
	}
	if v = w.send(false, store.Entry{Key: state.PastRestorationPath(2), Value: state.PutRestoration(&keyring.Restoration{Phase: keyring.RestorationConfirmed}).Value}); v.Keyring.Closed() == nil {
		t.Error("an earlier restoration opens the mesh")
	}
	if v = w.send(false, state.PutRestoration(&keyring.Restoration{Phase: keyring.RestorationConfirmed, SessionsFrom: revision.Revision{Epoch: 2}})); v.Keyring.Closed() != nil || !v.Keyring.Fenced(revision.Revision{Epoch: 1, Index: 9}) {
		t.Error("confirmed, and not open, or without its fence")
	}
}

// A restoration that was proved to a node shuts what it knows of before, until it follows the restored state.
func TestAnAnnouncedRestorationShutsOlderViews(t *testing.T) {
	t.Parallel()
	shown := 0
	w := newWorld(t, func(*state.View) { shown++ })
	w.send(true, state.PutMesh(mesh))
	r := &keyring.Restoration{Statement: keyring.RestorationStatement{NewEpoch: 2}, Phase: keyring.RestorationAwaiting, SessionsFrom: revision.Revision{Epoch: 2}}
	w.source.Announce(r)
	w.source.Announce(&keyring.Restoration{Statement: keyring.RestorationStatement{NewEpoch: 1}, Phase: keyring.RestorationConfirmed})
	if v := w.source.Load(); v.Keyring.Closed() == nil || shown != 2 {
		t.Errorf("the present view is open after the announcement (%d views shown)", shown)
	}
	if v := w.send(false, state.PutNode(node(1, "eu"))); v.Keyring.Closed() == nil || len(v.Keyring.Nodes) != 1 {
		t.Error("a later view of before the restoration is open")
	}
	at := store.Revision{Epoch: 2, Index: 1}
	w.store <- store.Change{Revision: at, Reset: true, Entries: []store.Entry{state.PutMesh(mesh), state.PutRestoration(&keyring.Restoration{Phase: keyring.RestorationConfirmed, SessionsFrom: revision.Revision{Epoch: 2}})}}
	v, err := w.source.WaitRevision(t.Context(), at)
	if err != nil || v.Keyring.Closed() != nil || !v.Keyring.Fenced(revision.Revision{Epoch: 1, Index: 99}) {
		t.Errorf("the restored state, which is confirmed: %v, %v", err, v.Keyring.Closed())
	}
}

// Every record of a snapshot is sent once, in order, in messages of at most a mebibyte; one that is larger has a message of its own.
func TestSendEntries(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sizes []int // of the values, in KiB
		parts []int // records in each message
	}{
		"none":           {nil, nil},
		"a few":          {[]int{1, 2, 3}, []int{3}},
		"over the limit": {[]int{400, 400, 400, 400}, []int{2, 2}},
		"a large one":    {[]int{1, 1500, 1}, []int{1, 1, 1}},
	} {
		var in, out []store.Entry
		for i, kib := range c.sizes {
			in = append(in, store.Entry{Key: strconv.Itoa(i), Value: make([]byte, kib<<10), Revision: revision.Revision{Epoch: 1, Index: uint64(i)}})
		}
		var parts []int
		err := state.SendEntries(in, func(p *iapmeshv1.SnapshotEntries) error {
			parts = append(parts, len(p.Entries))
			for _, e := range p.Entries {
				out = append(out, store.Entry{Key: e.Key, Value: e.Value, Revision: state.RevisionOf(e.Revision)})
			}
			return nil
		})
		if err != nil || !slices.Equal(parts, c.parts) {
			t.Errorf("%s: messages of %v records, want %v, error %v", name, parts, c.parts, err)
		}
		if !reflect.DeepEqual(in, out) {
			t.Errorf("%s: other records came out", name)
		}
	}
	broken := errors.New("broken")
	if err := state.SendEntries([]store.Entry{{Key: "a"}}, func(*iapmeshv1.SnapshotEntries) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("an error of the stream is lost: %v", err)
	}
}
