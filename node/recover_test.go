package node_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node"
	"github.com/iapmesh/iapmesh/node/nodetest"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func TestASurvivorRecoversTheMesh(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	mesh.AddNode("edge", "proxy")
	survivor := mesh.In("eu-west")
	ana, bob := survivor.SignIn("ana@example.com"), survivor.SignIn("bob@example.com")
	mesh.Block(bob.Subject)
	survivor.EventuallyRefuses(bob) // a quorum could know it without the survivor

	if _, err := survivor.Recover(); !fault.Is(err, fault.Conflict) {
		t.Errorf("recover beside the node that runs: %v, want Conflict", err)
	}
	mesh.In("us-east").Stop()
	mesh.In("ap-south").Stop() // for good: no quorum is left
	survivor.Stop()
	if _, err := mesh.In("edge").Recover(); !fault.Is(err, fault.Invalid) {
		t.Errorf("recover from a node that holds no state: %v, want Invalid", err)
	}
	made, err := survivor.Recover(keyring.Denial{Kind: keyring.DenySubject, Value: "dev/carol", Block: true, Source: keyring.FromTrail, At: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(made.Status.Refused, func(d *iapmeshv1.Denial) bool { return d.Value == "dev/carol" && d.Block }) {
		t.Errorf("what the trail remembers is not refused: %v", made.Status.Refused)
	}
	if made.Status.Revision.Epoch != 2 || len(made.Status.Nodes) != 1 || made.Status.Nodes[0].Name != "edge-1" {
		t.Errorf("recovered: %v", made.Status)
	}
	if names, err := os.ReadDir(filepath.Join(made.Before, "wal")); err != nil || len(names) == 0 {
		t.Errorf("the old engine was not kept in %s: %v", made.Before, err)
	}
	survivor.Start()
	closed(t, mesh, []string{"eu-west"}, ana, bob)
	if got := mesh.Node("us-east-1").Node.State; got != iapmeshv1.NodeState_NODE_STATE_DEPARTED {
		t.Errorf("us-east-1 is %s, want departed", got)
	}

	mesh.Confirm()
	for _, name := range []string{"eu-west", "edge"} {
		region := mesh.In(name)
		mesh.Eventually(name+" signs in", func() bool { return region.TrySignIn("ana@example.com").StatusCode == http.StatusOK })
		region.EventuallyRefuses(ana)
		region.EventuallyRefuses(bob)
		blocks(t, mesh, region, "bob@example.com")
	}
	// A control node that was lost comes back empty, under its old name, and votes.
	for _, name := range []string{"us-east", "ap-south"} {
		mesh.In(name).Wipe(survivor)
		mesh.In(name).Start()
		mesh.In(name).AwaitReady()
	}
	mesh.AwaitVoters()
	fresh := mesh.In("us-east").SignIn("ana@example.com")
	for _, region := range mesh.Regions() {
		region.EventuallyServes(fresh)
	}
}

// What a quorum decided without the survivor may be in the trails that lie on its own disk.
func TestASurvivorReadsTheTrailsOnItsOwnDisk(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west")
	survivor := mesh.In("eu-west")
	bob := survivor.SignIn("bob@example.com")
	survivor.Stop()
	log, behind := filepath.Join(survivor.DataDir(), "raft"), filepath.Join(t.TempDir(), "behind")
	replace := func(dir, by string) {
		t.Helper()
		if err := errors.Join(os.RemoveAll(dir), os.CopyFS(dir, os.DirFS(by))); err != nil {
			t.Fatal(err)
		}
	}
	replace(behind, log)
	survivor.Start()
	survivor.AwaitReady()
	mesh.Block(bob.Subject)
	mesh.Eventually("the trail remembers bob", func() bool {
		return slices.ContainsFunc(mesh.Trail(time.Now().Add(-time.Hour)), func(d keyring.Denial) bool { return d.Value == bob.Subject })
	})
	survivor.Stop()
	replace(log, behind) // as if it had not followed to the end

	made, err := survivor.Recover()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(made.Status.Refused, func(d *iapmeshv1.Denial) bool {
		return d.Kind == "user" && d.Value == bob.Subject && d.Block && d.Source == keyring.FromTrail
	}) {
		t.Errorf("refused: %v, want bob, of whom its own trails know", made.Status.Refused)
	}
	survivor.Start()
	mesh.Confirm()
	blocks(t, mesh, survivor, "bob@example.com")
}

func TestAControlNodeThatWasLeftBehindTellsWhatItRemembers(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	survivor, behind := mesh.In("eu-west"), mesh.In("us-east")
	mallory := survivor.SignIn("mallory@example.com")
	survivor.Stop()
	mesh.Block(mallory.Subject) // which the survivor does not know, and us-east does
	behind.EventuallyRefuses(mallory)
	behind.Stop()
	mesh.In("ap-south").Stop() // for good
	if _, err := survivor.Recover(); err != nil {
		t.Fatal(err)
	}
	survivor.Start()
	mesh.Eventually("the list", func() bool { status, err := mesh.TryStatus(); return err == nil && status.Leader != "" })
	if refused := mesh.Pending().Refused; len(refused) != 0 {
		t.Fatalf("the survivor knows already: %v", refused)
	}

	behind.Start() // its log is on its disk
	var turnedAway *node.TurnedAwayError
	if err := behind.Ends(); !errors.As(err, &turnedAway) || turnedAway.State != keyring.NodeDeparted {
		t.Errorf("the node that was left behind ended with %v", err)
	}
	told := false
	for _, d := range mesh.Pending().Refused {
		told = told || d.Kind == "user" && d.Value == mallory.Subject && d.Block && d.Source == "node/"+turnedAway.NodeID
	}
	if !told {
		t.Errorf("refused: %v, want mallory, of whom us-east has told", mesh.Pending().Refused)
	}
	mesh.Confirm()
	blocks(t, mesh, survivor, "mallory@example.com")
}

func TestAMeshIsFoundedAnewFromASnapshot(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	edge := mesh.AddNode("edge", "proxy")
	ana, bob, mallory := edge.SignIn("ana@example.com"), edge.SignIn("bob@example.com"), edge.SignIn("mallory@example.com")
	saved := mesh.Save("mesh.snapshot")
	mesh.Block(bob.Subject)
	var remembered []keyring.Denial
	mesh.Eventually("the trail remembers bob", func() bool {
		remembered = mesh.Trail(time.Now().Add(-time.Hour))
		return slices.ContainsFunc(remembered, func(d keyring.Denial) bool {
			return d.Kind == keyring.DenySubject && d.Value == bob.Subject && d.Block
		})
	})
	mesh.Block(mallory.Subject) // which no trail tells, but the proxy knows
	edge.EventuallyRefuses(mallory)
	for _, name := range []string{"eu-west", "us-east", "ap-south"} { // all control nodes are lost, and with them the state
		mesh.In(name).Stop()
	}
	edge.Serves(ana, http.StatusOK) // the proxy goes on by what it knows

	anew := mesh.In("eu-west")
	mesh.Cut("edge")
	anew.Refound(saved, remembered...)
	anew.Start()
	closed(t, mesh, []string{"eu-west"}, ana, bob)
	if err := mesh.TryConfirm(); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "have not told yet what they remember as revoked: edge-1") {
		t.Errorf("confirmed before the proxy could tell what it remembers: %v", err)
	}
	mesh.Heal("edge")
	states := map[string]iapmeshv1.NodeState{}
	for _, n := range mesh.Status().Nodes {
		if n.Node.Name != "eu-west-1" || n.Node.State != iapmeshv1.NodeState_NODE_STATE_ACTIVE {
			states[n.Node.Name] = n.Node.State
		}
	}
	for name, want := range map[string]iapmeshv1.NodeState{
		"edge-1": iapmeshv1.NodeState_NODE_STATE_QUARANTINED, "eu-west-1": iapmeshv1.NodeState_NODE_STATE_DEPARTED,
		"us-east-1": iapmeshv1.NodeState_NODE_STATE_DEPARTED, "ap-south-1": iapmeshv1.NodeState_NODE_STATE_DEPARTED,
	} {
		if states[name] != want {
			t.Errorf("%s is %s, want %s", name, states[name], want)
		}
	}
	// The proxy is told by the new control node, and serves nobody by what it knew.
	closed(t, mesh, []string{"edge"}, ana, bob, mallory)
	mesh.Eventually("the proxy has told that mallory is blocked", func() bool {
		for _, d := range mesh.Pending().Refused {
			if d.Kind == "user" && d.Value == mallory.Subject && strings.HasPrefix(d.Source, "node/") {
				return true
			}
		}
		return false
	})
	mesh.Confirm()
	for _, region := range []*nodetest.Region{anew, edge} { // the proxy comes back by itself
		mesh.Eventually(region.Name+" signs in", func() bool { return region.TrySignIn("ana@example.com").StatusCode == http.StatusOK })
		for _, user := range []string{"bob@example.com", "mallory@example.com"} {
			blocks(t, mesh, region, user)
		}
		region.EventuallyRefuses(ana)
	}
	mesh.Eventually("edge-1 reports to the new leader", func() bool { return mesh.Node("edge-1").Live })
	// A node joins the mesh that was founded anew, by a key of before.
	mesh.AddNode("late", "proxy")
}

// A state may refuse far more than one call tells; what a node does not get said is said as soon as it can, to the last.
func TestANodeTellsAllThatItRemembers(t *testing.T) {
	t.Parallel()
	const many = 300
	mesh := nodetest.Start(t, "eu-west")
	edge := mesh.AddNode("edge", "proxy")
	mallory := edge.SignIn("mallory@example.com")
	saved := mesh.Save("mesh.snapshot")
	for i := range many {
		mesh.Block(fmt.Sprintf("dev/left-%03d", i))
	}
	mesh.Block(mallory.Subject)
	edge.EventuallyRefuses(mallory)
	anew := mesh.In("eu-west")
	anew.Stop()
	anew.Refound(saved)
	anew.Start()
	mesh.Eventually("the list", func() bool { status, err := mesh.TryStatus(); return err == nil && status.Leader != "" })
	mesh.Confirm()
	blocked := 0
	for _, d := range mesh.Pending().Refused {
		if d.Kind == "user" && d.Block {
			blocked++
		}
	}
	if blocked != many+1 {
		t.Errorf("%d users are blocked after the confirmation, want %d", blocked, many+1)
	}
	blocks(t, mesh, anew, "mallory@example.com")
}
