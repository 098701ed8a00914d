package state_test

import (
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
)

// Whatever a snapshot holds, restoring it accepts nothing that is refused now, and opens nothing by itself.
func FuzzARestoredSnapshot(f *testing.F) {
	now := time.Unix(1_700_000_000, 0).UTC()
	active := &keyring.Key{ID: "k-1", State: keyring.KeyActive, ExpiresAt: now.Add(time.Hour)}
	proxy := node(1, "eu")
	k, n := state.PutKey(active), state.PutNode(proxy)
	admin := state.PutAdmin(&keyring.Admin{ID: "u-1", Name: "ana"})
	f.Add(k.Key, k.Value, n.Key, n.Value)
	f.Add(admin.Key, admin.Value, k.Key, k.Value)
	f.Add(n.Key, []byte{}, state.PrefixKey+"k-1", []byte{0x32, 0})
	f.Add(state.RevocationPath(keyring.RevokeSubject, "okta/ana"), []byte{0xff}, state.PathRestoration, []byte{})
	f.Fuzz(func(t *testing.T, key1 string, value1 []byte, key2 string, value2 []byte) {
		v, err := state.Build([]store.Entry{{Key: key1, Value: value1}, {Key: key2, Value: value2}, state.PutMesh(mesh)}, revision.Revision{Epoch: 1, Index: 1})
		if err != nil {
			return
		}
		gone, left := *active, *proxy
		gone.State, left.State = keyring.KeyRevoked, keyring.NodeRevoked
		present := &keyring.Contents{
			Mesh: mesh, Keys: map[string]*keyring.Key{gone.ID: &gone}, Nodes: map[string]*keyring.Node{left.ID: &left},
			Admins: map[string]*keyring.Admin{"u-1": {ID: "u-1", Name: "ana", RevokedAt: now}, "u-root": {ID: "u-root", Name: "root"}},
		}
		r := &keyring.Restoration{Statement: keyring.RestorationStatement{NewEpoch: 2}, By: "u-root"}
		out := keyring.PlanRestore(keyring.RestoreFacts{Present: present, Snapshot: &v.Keyring.Contents, Restoration: r, Now: now})
		if out.Keys[gone.ID].State != keyring.KeyRevoked || out.Nodes[left.ID].State != keyring.NodeRevoked || out.Admins["u-1"].RevokedAt.IsZero() {
			t.Fatal("what is revoked is not any more")
		}
		for id, k := range out.Keys {
			if k.State == keyring.KeyActive || k.State == keyring.KeyRetiring || k.State == keyring.KeyPending {
				t.Fatalf("key %s is %s before anybody has confirmed", id, k.State)
			}
		}
		for id, n := range out.Nodes {
			if n.Trusted() {
				t.Fatalf("node %s is %s before anybody has confirmed", id, n.State)
			}
		}
	})
}
