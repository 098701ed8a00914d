package keyring_test

import (
	"testing"

	"github.com/iapmesh/iapmesh/keyring"
)

// What a restoration holds back is held back for its own reason alone. As soon as there is another, no confirmation ends it.
func TestWhatIsRefusedWhileHeldBackStaysRefused(t *testing.T) {
	t.Parallel()
	r := restoration()
	snapshot := newHistory()
	for _, id := range []string{"n-1", "n-2", "n-3", "n-4"} {
		snapshot.node(id, keyring.NodeActive, keyring.RoleProxy)
		snapshot.Nodes[id].ProvisioningKey = "k-1"
	}
	snapshot.key("k-1", keyring.KeyActive)
	snapshot.key("k-2", keyring.KeyActive)
	held := keyring.PlanRestore(keyring.RestoreFacts{Snapshot: snapshot.clone(), Restoration: r, Now: now})
	r.List = held.List
	if p := r.Pending(&held.Contents); len(p.Nodes) != 4 || len(p.Keys) != 2 {
		t.Fatalf("held back: %+v", p)
	}

	quarantined, err := keyring.QuarantineNode(*held.Nodes["n-1"], "", now)
	if err == nil {
		quarantined, err = r.Keep(quarantined, "", now)
	}
	if err != nil {
		t.Fatal(err)
	}
	held.Nodes["n-1"] = &quarantined
	if again, err := r.Keep(quarantined, "another", now); err != nil || again.Reason != quarantined.Reason {
		t.Errorf("kept twice: %+v, %v", again, err)
	}
	_, changed, err := keyring.RevokeKey(*held.Keys["k-1"], []*keyring.Node{held.Nodes["n-2"]}, keyring.RevokeRequest{
		Cascade: keyring.CascadeQuarantine, Now: now, Unconfirmed: r,
	})
	if err != nil || len(changed) != 1 {
		t.Fatalf("cascade: %v, %v", changed, err)
	}
	held.Nodes["n-2"] = &changed[0]
	remembered := []keyring.Denial{
		{Kind: keyring.DenyNode, Value: "n-3", State: string(keyring.NodeQuarantined), Source: "node/n-9"},
		{Kind: keyring.DenyKey, Value: "k-2", State: string(keyring.KeySuspended), Source: keyring.FromTrail},
	}
	told := keyring.PlanRestore(keyring.RestoreFacts{Present: &held.Contents, Snapshot: &held.Contents, Denials: remembered, Restoration: r, DenyOnly: true, Now: now})
	if len(told.Refused) != 2 {
		t.Errorf("what was remembered is not said: %+v", told.Refused)
	}
	p := r.Pending(&told.Contents)
	if len(p.Nodes) != 1 || p.Nodes[0].ID != "n-4" || len(p.Keys) != 1 || p.Keys[0].ID != "k-1" {
		t.Errorf("confirming would give back %+v", p)
	}
}

// Of two memories of the same thing the stricter counts, whoever was asked first.
func TestRevokedIsTheStrictestMemory(t *testing.T) {
	t.Parallel()
	snapshot := newHistory()
	snapshot.node("n-1", keyring.NodeActive, keyring.RoleProxy)
	snapshot.key("k-1", keyring.KeyActive)
	denials := []keyring.Denial{
		{Kind: keyring.DenyNode, Value: "n-1", State: string(keyring.NodeQuarantined)}, {Kind: keyring.DenyNode, Value: "n-1"},
		{Kind: keyring.DenyNode, Value: "n-1", State: string(keyring.NodeDeparted)},
		{Kind: keyring.DenyKey, Value: "k-1", State: string(keyring.KeySuspended)}, {Kind: keyring.DenyKey, Value: "k-1"},
	}
	got := keyring.PlanRestore(keyring.RestoreFacts{Snapshot: snapshot.clone(), Restoration: restoration(), Denials: denials, Now: now})
	if got.Nodes["n-1"].State != keyring.NodeRevoked || got.Keys["k-1"].State != keyring.KeyRevoked {
		t.Errorf("the node is %s, the key %s", got.Nodes["n-1"].State, got.Keys["k-1"].State)
	}
}
