package node_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node"
	"github.com/iapmesh/iapmesh/node/nodetest"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// A key that would expire in seconds is rotated into a file, again and again, and a new node joins by what the file holds.
func TestAKeyRotatesByItself(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	rotator := mesh.In("us-east")
	file := filepath.Join(t.TempDir(), "edge.key")
	rotator.Rotates("edge", file)
	first := mesh.IssueScheduled("edge", mesh.NewSecret().PublicKey(), 8*time.Second, rotator) // a quarter of which is left when it is rotated
	var inFile keyring.ProvisioningSecret
	mesh.Eventually("two rotations", func() bool {
		data, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		if inFile, err = keyring.ParseSecret(string(data)); err != nil {
			t.Errorf("the file was seen half written: %v", err)
		}
		return len(mesh.Keys("edge")) >= 3
	})
	mesh.AddNodeWithKey(file, "edge", "proxy")
	ana := mesh.In("edge").SignIn("ana@example.com")
	mesh.In("eu-west").EventuallyServes(ana)
	for _, k := range mesh.Keys("edge") {
		if k.Id == first.Id && (k.Successor == "" || k.State == iapmeshv1.KeyState_KEY_STATE_ACTIVE) {
			t.Errorf("the first key is %v, successor %q", k.State, k.Successor)
		}
		if k.Id != first.Id && (k.ProposedBy == "" || k.Rotator != first.Rotator) {
			t.Errorf("key %s was made by %q, its rotator is %q", k.Id, k.ProposedBy, k.Rotator)
		}
	}
	mesh.Eventually("both phases of a rotation in the trail", func() bool {
		seen := map[string]bool{}
		for _, r := range mesh.Records(&iapmeshv1.QueryRequest{Kind: "rotation"}) {
			for _, action := range []string{"key.propose", "key.rotate"} {
				seen[action] = seen[action] || strings.Contains(r.String(), action)
			}
			if secret := inFile.String(); strings.Contains(r.String(), secret[len("iapk_")+17:]) {
				t.Error("the trail holds a secret")
			}
		}
		return seen["key.propose"] && seen["key.rotate"]
	})
}

// A node that is no rotator is refused over the wire, whatever it is otherwise; a joiner with a key that is only proposed is told to
// come again, and joins once the rotation is complete.
func TestOnlyTheRotatorMakesSuccessors(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	rotator := mesh.In("us-east")
	first := mesh.IssueScheduled("edge", mesh.NewSecret().PublicKey(), 4*time.Second, rotator) // due as soon as it is there, but for a moment
	ctx, cancel := context.WithTimeout(t.Context(), 3*nodetest.Patience)
	defer cancel()
	for _, region := range []*nodetest.Region{mesh.In("eu-west"), mesh.In("ap-south"), rotator} {
		leader, err := node.RotationLeader(ctx, region.DataDir())
		if err != nil {
			t.Fatal(err)
		}
		next := mesh.NewSecret()
		if region != rotator {
			if err := leader.ProposeSuccessor(ctx, first.Id, next.PublicKey()); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "not its rotator") {
				t.Errorf("%s proposes: %v, want denied", region.Name, err)
			}
			continue
		}
		mesh.Eventually("the key is due", func() bool { return leader.ProposeSuccessor(ctx, first.Id, next.PublicKey()) == nil })
		for _, other := range []*nodetest.Region{mesh.In("eu-west"), mesh.In("ap-south")} {
			leader, err := node.RotationLeader(ctx, other.DataDir())
			if err != nil {
				t.Fatal(err)
			}
			if err := leader.CompleteRotation(ctx, first.Id, next.ID()); !fault.Is(err, fault.Denied) {
				t.Errorf("%s completes: %v, want denied", other.Name, err)
			}
		}
		file := filepath.Join(t.TempDir(), "next.key")
		if err := os.WriteFile(file, []byte(next.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		putOff := func() (lines string) { // as every control node counts them
			for _, name := range []string{"eu-west", "us-east", "ap-south"} {
				_, after, _ := strings.Cut(mesh.In(name).Metrics(), `iapmesh_join_attempts_total{result="unavailable"}`)
				line, _, _ := strings.Cut(after, "\n")
				lines += line
			}
			return lines
		}
		before := putOff()
		early := mesh.StartNodeByKey(file, "edge", "proxy")
		mesh.Eventually("it is told to come again", func() bool { return putOff() != before })
		if err := leader.CompleteRotation(ctx, first.Id, next.ID()); err != nil {
			t.Errorf("the rotator completes: %v", err)
		}
		early.AwaitReady()
	}
	keys := 0
	mesh.Eventually("the first key and its successor", func() bool {
		keys = len(mesh.Keys("edge"))
		return keys >= 2
	})
	if keys != 2 {
		t.Errorf("%d keys, want the first and its successor", keys)
	}
}
