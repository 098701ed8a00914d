package node_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/nodetest"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// wholeMesh is one with two proxies beside its control nodes, each under a key of its own.
func wholeMesh(t *testing.T) (mesh *nodetest.Mesh, loyalKey, thiefKey string) {
	t.Helper()
	mesh = nodetest.Start(t, "eu-west", "us-east", "ap-south")
	loyalKey = mesh.UseKey("loyal", iapmeshv1.Role_ROLE_PROXY)
	mesh.AddNode("loyal", "proxy")
	thiefKey = mesh.UseKey("thief", iapmeshv1.Role_ROLE_PROXY)
	mesh.AddNode("thief", "proxy")
	return mesh, loyalKey, thiefKey
}

// blocks demands that a user who is blocked signs in at a region no more: it says so as soon as it can tell.
func blocks(t *testing.T, mesh *nodetest.Mesh, region *nodetest.Region, user string) {
	t.Helper()
	mesh.Eventually(region.Name+" blocks "+user, func() bool {
		resp := region.TrySignIn(user)
		if resp.StatusCode == http.StatusOK {
			t.Fatalf("%s: %s, who is blocked, signs in", region.Name, user)
		}
		return resp.Header.Get("X-Iapmesh-Response") == "blocked"
	})
}

// closed demands that nobody gets in anywhere: no session counts, and signing in says that an operator is awaited.
func closed(t *testing.T, mesh *nodetest.Mesh, regions []string, sessions ...*nodetest.Session) {
	t.Helper()
	for _, name := range regions {
		region := mesh.In(name)
		mesh.Eventually(name+" says that the mesh was restored", func() bool {
			return region.Answer(nodetest.EchoHost, "/whoami") == "restored"
		})
		for _, s := range sessions {
			if resp := s.Get(region, nodetest.EchoHost, "/whoami"); resp.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("%s answers %s's old session with %s while the mesh is closed, want 503", name, s.User, resp.Status)
			}
		}
	}
}

func TestARestoreNeverUnrevokes(t *testing.T) {
	t.Parallel()
	mesh, loyalKey, thiefKey := wholeMesh(t)
	control := []string{"eu-west", "us-east", "ap-south"}
	ana, bob := mesh.In("eu-west").SignIn("ana@example.com"), mesh.In("us-east").SignIn("bob@example.com")
	stream := mesh.In("ap-south").Stream(ana)
	saved := mesh.Save("mesh.snapshot")

	mesh.Apply(strings.ReplaceAll(mesh.Configuration(), "hosts: [billing.localhost]", "hosts: [elsewhere.localhost]"))
	if resp := ana.Get(mesh.In("eu-west"), nodetest.FinanceHost, "/"); resp.StatusCode != http.StatusNotFound {
		t.Fatalf("billing after it was moved: %s", resp.Status)
	}
	mesh.RevokeKey(thiefKey, iapmeshv1.Cascade_CASCADE_KEEP)
	mesh.Block(bob.Subject)
	mesh.RevokeNode("thief-1")
	laterKey := mesh.UseKey("later", iapmeshv1.Role_ROLE_PROXY)

	status := mesh.Restore(saved, mesh.Trail(time.Now().Add(-time.Hour))...)
	if status.Restoration.Phase != iapmeshv1.RestorationPhase_RESTORATION_PHASE_AWAITING_CONFIRMATION || status.Revision.Epoch != 2 {
		t.Fatalf("phase %s in epoch %d", status.Restoration.Phase, status.Revision.Epoch)
	}
	var keys, nodes []string
	for _, k := range status.Keys {
		keys = append(keys, k.Name)
	}
	for _, n := range status.Nodes {
		nodes = append(nodes, n.Name)
	}
	if got := strings.Join(keys, " "); strings.Contains(got, "thief") || strings.Contains(got, "later") || !strings.Contains(got, "loyal") || !strings.Contains(got, "bootstrap") {
		t.Errorf("keys to be confirmed: %s", got)
	}
	if got := strings.Join(nodes, " "); got != "loyal-1" {
		t.Errorf("nodes to be confirmed: %s", got)
	}
	refused := ""
	for _, d := range status.Refused {
		refused += d.Kind + " " + d.Value + "\n"
	}
	for _, want := range []string{"key " + thiefKey, "user " + bob.Subject, "node "} {
		if !strings.Contains(refused, want) {
			t.Errorf("what stays refused does not name %s:\n%s", want, refused)
		}
	}

	// Before the confirmation nobody gets in: neither those who were refused nor anybody else.
	select {
	case <-stream:
	case <-time.After(nodetest.Patience):
		t.Error("an open stream of before goes on")
	}
	closed(t, mesh, control, ana, bob)
	mesh.Eventually("loyal-1, which is quarantined, serves nobody", func() bool {
		return ana.Poll(mesh.In("loyal"), nodetest.EchoHost, "/whoami") >= 400 && mesh.In("loyal").Visit(nodetest.EchoHost, "/whoami").StatusCode >= 400
	})
	if err := mesh.TryJoin("late-1", "thief"); err == nil {
		t.Error("a node joins by a revoked key")
	}
	if err := mesh.TryJoin("late-2", "loyal"); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "awaits an operator") {
		t.Errorf("a node joins before the confirmation: %v", err)
	}
	mesh.ForgeKey("forged")
	if err := mesh.TryJoin("late-0", "forged"); !fault.Is(err, fault.Unauthenticated) || strings.Contains(err.Error(), "operator") {
		t.Errorf("whoever proves no key hears: %v", err)
	}
	if got := mesh.Node("loyal-1").Node.State; got != iapmeshv1.NodeState_NODE_STATE_QUARANTINED {
		t.Errorf("loyal-1 is %s before the confirmation", got)
	}
	other := mesh.Save("other.snapshot") // also a closed mesh can be saved
	if _, err := mesh.TryRestore(other); !fault.Is(err, fault.Conflict) {
		t.Errorf("another snapshot meanwhile: %v, want Conflict", err)
	}
	if again := mesh.Restore(saved); again.Restoration.Phase != iapmeshv1.RestorationPhase_RESTORATION_PHASE_AWAITING_CONFIRMATION || again.Revision.Epoch != 2 {
		t.Errorf("the same snapshot again: %s in epoch %d", again.Restoration.Phase, again.Revision.Epoch)
	}

	mesh.Confirm()
	for _, name := range append(control, "loyal") {
		region := mesh.In(name)
		region.AwaitReady()
		mesh.Eventually(name+" signs in", func() bool {
			return region.TrySignIn("ana@example.com").StatusCode == http.StatusOK
		})
		region.EventuallyRefuses(ana)
		region.EventuallyRefuses(bob)
		blocks(t, mesh, region, "bob@example.com")
	}
	if resp := ana.Get(mesh.In("eu-west"), nodetest.FinanceHost, "/"); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("billing after the restore: %s, want 401: its route is back", resp.Status)
	}
	mesh.Eventually("loyal-1 is back", func() bool {
		n := mesh.Node("loyal-1")
		return n.Live && n.Node.State == iapmeshv1.NodeState_NODE_STATE_ACTIVE
	})
	if got := mesh.Node("thief-1"); got.Node.State != iapmeshv1.NodeState_NODE_STATE_REVOKED {
		t.Errorf("thief-1 is %s", got.Node.State)
	}
	if err := mesh.TryJoin("late-3", "thief"); err == nil || fault.Is(err, fault.Unavailable) {
		t.Errorf("a node joins by a revoked key after the confirmation: %v", err)
	}
	if err := mesh.TryJoin("late-4", "later"); err == nil || fault.Is(err, fault.Unavailable) {
		t.Errorf("a node joins by key %s, which the snapshot does not know: %v", laterKey, err)
	}
	if err := mesh.TryJoin("late-5", "loyal"); err != nil {
		t.Errorf("a node does not join by key %s, which was confirmed: %v", loyalKey, err)
	}
	// A second restore of the same file is a restoration of its own, and as strict.
	if again := mesh.Restore(saved, keyring.Denial{Kind: keyring.DenyKey, Value: loyalKey, Source: keyring.FromTrail}); again.Revision.Epoch != 3 || len(again.Keys) == 0 {
		t.Errorf("a second restoration: epoch %d, keys %v", again.Revision.Epoch, again.Keys)
	}
	for _, k := range mesh.Pending().Keys {
		if k.Id == thiefKey || k.Id == loyalKey {
			t.Errorf("key %s (%s) is to be confirmed", k.Id, k.Name)
		}
	}
}

// Whoever restores sees nothing of it when the leader dies in the middle: the next one goes on.
func TestARestoreOutlivesItsLeader(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	for i := range 300 {
		mesh.UseKey("key-"+string(rune('a'+i/26))+string(rune('a'+i%26)), iapmeshv1.Role_ROLE_PROXY)
	}
	thief := mesh.UseKey("thief", iapmeshv1.Role_ROLE_PROXY)
	saved := mesh.Save("mesh.snapshot")
	mesh.RevokeKey(thief, iapmeshv1.Cascade_CASCADE_KEEP)
	leader := mesh.Leader()
	follower := mesh.Follower(leader)
	type result struct {
		status *iapmeshv1.RestorationStatus
		err    error
	}
	done := make(chan result, 1)
	go func() {
		status, err := mesh.TryRestore(saved)
		done <- result{status, err}
	}()
	mesh.Eventually("the mesh is closed", func() bool { return follower.Answer(nodetest.EchoHost, "/whoami") == "restored" })
	leader.Stop()
	var got result
	select {
	case got = <-done:
	case <-time.After(2 * nodetest.Patience):
		t.Fatal("the restore does not end")
	}
	if got.err != nil {
		t.Fatal(got.err)
	}
	if s := got.status; s.Restoration.Phase != iapmeshv1.RestorationPhase_RESTORATION_PHASE_AWAITING_CONFIRMATION || s.Revision.Epoch != 2 || len(s.Keys) != 301 {
		t.Errorf("%s in epoch %d, %d keys to be confirmed", s.Restoration.Phase, s.Revision.Epoch, len(s.Keys))
	}
	leader.Start() // it finds the mesh closed
	closed(t, mesh, []string{leader.Name, follower.Name})
	mesh.Confirm()
	mesh.Eventually("every key is active but the revoked one", func() bool {
		keys := mesh.Keys("")
		for _, k := range keys {
			want := iapmeshv1.KeyState_KEY_STATE_ACTIVE
			if k.Id == thief {
				want = iapmeshv1.KeyState_KEY_STATE_REVOKED
			}
			if k.State != want {
				return false // by the view of a leader that is new
			}
		}
		return len(keys) == 302
	})
}
