package node_test

import (
	"errors"
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
		if resp := region.TrySignIn("bob@example.com"); resp.Header.Get("X-Iapmesh-Response") != "blocked" {
			t.Errorf("%s: bob, who is blocked, gets %s", name, resp.Status)
		}
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
		mesh.Eventually(region.Name+" serves the new session", func() bool {
			return fresh.Get(region, nodetest.EchoHost, "/whoami").StatusCode == http.StatusOK
		})
	}
}

func TestAControlNodeThatWasLeftBehindTellsWhatItRemembers(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	survivor, behind := mesh.In("eu-west"), mesh.In("us-east")
	mallory := survivor.SignIn("mallory@example.com")
	survivor.Stop()
	mesh.Block(mallory.Subject) // which the survivor does not know
	mesh.Eventually("us-east knows it", func() bool {
		return mallory.Get(behind, nodetest.EchoHost, "/whoami").StatusCode != http.StatusOK
	})
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
	mesh.Eventually("mallory stays blocked", func() bool {
		return survivor.TrySignIn("mallory@example.com").Header.Get("X-Iapmesh-Response") == "blocked"
	})
}

func TestAMeshIsFoundedAnewFromASnapshot(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	edge := mesh.AddNode("edge", "proxy")
	ana, bob, mallory := edge.SignIn("ana@example.com"), edge.SignIn("bob@example.com"), edge.SignIn("mallory@example.com")
	saved := mesh.Save("mesh.snapshot")
	mesh.Block(bob.Subject)
	mesh.Eventually("the trail remembers bob", func() bool {
		for _, d := range mesh.Trail(time.Now().Add(-time.Hour)) {
			if d.Kind == keyring.DenySubject && d.Value == bob.Subject && d.Block {
				return true
			}
		}
		return false
	})
	remembered := mesh.Trail(time.Now().Add(-time.Hour))
	mesh.Block(mallory.Subject) // which no trail tells, but the proxy knows
	edge.EventuallyRefuses(mallory)
	for _, name := range []string{"eu-west", "us-east", "ap-south"} { // all control nodes are lost, and with them the state
		mesh.In(name).Stop()
	}
	edge.Serves(ana, http.StatusOK) // the proxy goes on by what it knows

	anew := mesh.In("eu-west")
	anew.Refound(saved, remembered...)
	anew.Start()
	closed(t, mesh, []string{"eu-west"}, ana, bob)
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
			mesh.Eventually(region.Name+" blocks "+user, func() bool { return region.TrySignIn(user).Header.Get("X-Iapmesh-Response") == "blocked" })
		}
		region.EventuallyRefuses(ana)
	}
	mesh.Eventually("edge-1 reports to the new leader", func() bool { return mesh.Node("edge-1").Live })
	// A node joins the mesh that was founded anew, by a key of before.
	mesh.AddNode("late", "proxy")
}
