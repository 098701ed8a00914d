package state_test

import (
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
