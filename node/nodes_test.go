package node_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node"
	"github.com/iapmesh/iapmesh/node/nodetest"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func eventuallyBound(mesh *nodetest.Mesh, r *nodetest.Region, key nodetest.Key) {
	mesh.Eventually(r.Name+" is bound to "+key.ID, func() bool { return r.Node().BoundKey == key.ID })
}

func TestARotatedKeysNodesBindToItsSuccessor(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west")
	first := mesh.IssueKey("web", nil)
	a, b := mesh.AddNodeWith("a", nodetest.NodeOptions{Key: first}), mesh.AddNodeWith("b", nodetest.NodeOptions{Key: first})
	mesh.AwaitVoters() // both have confirmed their joins
	ana := a.SignIn("ana@example.com")

	b.Stop() // it comes back to two rotations, and follows both
	second := mesh.RotateKey(first.ID)
	eventuallyBound(mesh, a, second)
	third := mesh.RotateKey(second.ID)
	eventuallyBound(mesh, a, third)
	b.Start()
	eventuallyBound(mesh, b, third)
	for _, r := range []*nodetest.Region{a, b} {
		if n := r.Node(); n.ProvisioningKey != first.ID || n.State != iapmeshv1.NodeState_NODE_STATE_ACTIVE {
			t.Errorf("%s: joined under %s, %s", r.Name, n.ProvisioningKey, n.State)
		}
	}
	mesh.Eventually("each step is on record, with its proof", func() bool {
		steps := map[string]bool{}
		for _, r := range mesh.Records(&iapmeshv1.QueryRequest{Kind: "rotation"}) {
			record, err := audit.Decode(r.Record)
			if err != nil {
				t.Fatal(err)
			}
			if d := record.Detail; d["action"] == "node.rebind" && len(d["signature"]) == 128 && d["parent"] == first.ID && d["by_word"] == "no" {
				steps[d["node"]+d["from"]+d["to"]] = true
			}
		}
		return len(steps) == 4
	})

	// The key leaks. Nobody moves on by himself, and each comes back by an operator's word alone.
	mesh.RevokeKey(third.ID, iapmeshv1.Cascade_CASCADE_QUARANTINE)
	mesh.In("eu-west").EventuallyRefuses(ana)
	fresh := mesh.IssueKey("web-again", nil)
	a.Release()
	a.AwaitReady() // without a restart, by a new session key
	if n := a.Node(); n.BoundKey != third.ID || n.State != iapmeshv1.NodeState_NODE_STATE_ACTIVE {
		t.Errorf("released: bound to %s, %s", n.BoundKey, n.State)
	}
	bob := a.SignIn("bob@example.com")
	mesh.In("eu-west").EventuallyServes(bob)
	if err := a.AllowRebind(fresh); err != nil {
		t.Fatal(err)
	}
	eventuallyBound(mesh, a, fresh)
	if err := b.AllowRebind(fresh); err != nil { // the word may come before the release
		t.Fatal(err)
	}
	if n := b.Node(); n.State != iapmeshv1.NodeState_NODE_STATE_QUARANTINED || n.BoundKey != third.ID || n.RebindTo != fresh.ID {
		t.Errorf("quarantined, with a word: %s, bound to %s, may bind to %s", n.State, n.BoundKey, n.RebindTo)
	}
	b.Stop() // it waits for its release also after a restart
	b.Start()
	b.Release()
	eventuallyBound(mesh, b, fresh)
	if !a.Running() || !b.Running() {
		t.Error("a node that was quarantined has ended")
	}
	mesh.In("eu-west").Serves(bob, http.StatusOK) // a's sessions count through all that
}

func TestARevokedNodeEnds(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	edge, away := mesh.AddNode("edge", "proxy"), mesh.AddNode("away", "proxy")
	mesh.AwaitVoters()
	away.Stop()
	mesh.RevokeNode("edge-1")
	mesh.RevokeNode("away-1")
	control := mesh.ToAFollower(func(r *nodetest.Region) error { return mesh.TryRevokeNode(r.Config().Name) })
	away.Start() // it was not there to hear of it
	for _, r := range []*nodetest.Region{edge, away, control} {
		err := r.Ends()
		var turnedAway *node.TurnedAwayError
		if !errors.As(err, &turnedAway) || turnedAway.State != keyring.NodeRevoked || !strings.Contains(err.Error(), ": test; it ends") {
			t.Errorf("%s ended by %v", r.Name, err)
		}
	}
}

func TestANodeThatWasQuarantinedWhileItWasCutOffServesNobodyOnceItIsBack(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west")
	edge := mesh.AddNode("edge", "proxy")
	mesh.AwaitVoters()
	ana := mesh.In("eu-west").SignIn("ana@example.com")
	edge.Serves(ana, http.StatusOK)
	stream := edge.Stream(ana)
	mesh.Cut("edge")
	edge.Quarantine()
	edge.Serves(ana, http.StatusOK) // it cannot know
	mesh.Heal("edge")
	mesh.Eventually("it serves nobody", func() bool {
		return ana.Poll(edge, nodetest.EchoHost, "/whoami") == http.StatusMisdirectedRequest
	})
	select {
	case <-stream:
	case <-time.After(nodetest.Patience):
		t.Error("what was open there goes on")
	}
	mesh.Cut("edge") // it is started again where it can ask nobody
	edge.Stop()
	edge.Start()
	edge.AwaitRefusal(ana)
	mesh.Heal("edge")
	edge.Release()
	edge.AwaitReady()
	edge.Serves(ana, http.StatusOK)
}

func TestANodeThatWasPutOutWhileItWasOffServesNobodyThoughNobodyLeads(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	edges, other := []*nodetest.Region{mesh.AddNode("edge-a", "proxy"), mesh.AddNode("edge-b", "proxy"), mesh.AddNode("edge-c", "proxy")}, mesh.AddNode("other", "proxy")
	mesh.AwaitVoters()
	ana := mesh.In("eu-west").SignIn("ana@example.com")
	for _, edge := range edges {
		edge.EventuallyServes(ana)
		edge.Stop()
		edge.Quarantine()
		mesh.MoveAway(edge.Name) // so that it could serve long before it has heard
	}
	other.Stop()
	mesh.In("us-east").Stop()
	mesh.In("ap-south").Stop()
	for !servesNobody(t, mesh, edges[0], ana) {
		if edges = edges[1:]; len(edges) == 0 {
			t.Fatal("this machine stands still for longer than a node waits, time and again")
		}
	}
	other.Start() // what the mesh trusts serves, leader or not
	mesh.Eventually("the other serves", func() bool {
		resp, err := ana.Try(other, nodetest.EchoHost, "/whoami")
		return err == nil && resp.StatusCode == http.StatusOK
	})
}

// servesNobody starts a node that was put out while it was off, and demands that it serves nobody. It may if it has waited for an answer in
// vain, which is 3 s at the soonest (decision 0021): then nothing was shown, and false is returned.
func servesNobody(t *testing.T, mesh *nodetest.Mesh, r *nodetest.Region, s *nodetest.Session) bool {
	t.Helper()
	begun := time.Now()
	r.Start()
	var status int
	mesh.Eventually(r.Name+" answers", func() bool {
		resp, err := s.Try(r, nodetest.EchoHost, "/whoami")
		if err != nil {
			return false
		}
		if status = resp.StatusCode; status == http.StatusOK && time.Since(begun) < 3*time.Second {
			t.Fatalf("%s serves", r.Name)
		}
		return status == http.StatusOK || status == http.StatusMisdirectedRequest
	})
	return status != http.StatusOK
}

// What a node decided while it could not know that it was put out is in the trail in the end, and so is its word that it has stopped.
func TestANodeThatIsPutOutHandsInItsTrail(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west")
	revoked, quarantined := mesh.AddNode("revoked", "proxy"), mesh.AddNode("quarantined", "proxy")
	ids := map[string]*nodetest.Region{revoked.NodeID(): revoked, quarantined.NodeID(): quarantined}
	mesh.AwaitVoters()
	ana := mesh.In("eu-west").SignIn("ana@example.com")
	since := time.Now()
	for _, r := range ids {
		r.Serves(ana, http.StatusOK)
		mesh.Cut(r.Name)
	}
	mesh.RevokeNodeAtOnce("revoked-1") // what is cut off counts as live for a while
	if _, err := quarantined.TryQuarantine(); err != nil {
		t.Fatal(err)
	}
	for _, r := range ids {
		r.Serves(ana, http.StatusOK)
		r.Serves(ana, http.StatusOK)
		mesh.Heal(r.Name)
	}
	mesh.Eventually("the aggregator has each decision of both, and that they stopped", func() bool {
		allowed, stopped := map[string][]string{}, map[string]string{}
		for _, r := range mesh.Records(&iapmeshv1.QueryRequest{From: timestamppb.New(since)}) {
			id, _, _ := cut(r.Id)
			switch record := decided(t, r); {
			case record.Kind == audit.KindDecision && record.Decision == audit.Allow && record.Route == "echo":
				allowed[id] = append(allowed[id], record.RequestID)
			case record.Detail["action"] == "node.stand-down":
				stopped[id] = record.Detail["state"]
			}
		}
		for id, r := range ids {
			if !readBack(ana.Answers(r), allowed[id]) || stopped[id] != r.Name {
				return false
			}
		}
		return true
	})
	var turnedAway *node.TurnedAwayError
	if err := revoked.Ends(); !errors.As(err, &turnedAway) || turnedAway.State != keyring.NodeRevoked {
		t.Errorf("it ended by %v", err)
	}
	revoked.Stop()
	mesh.Cut("revoked")
	revoked.Start() // it has no need to ask again
	revoked.AwaitRefusal(ana)
}

func TestANodeThatWasRemovedEndsAndGivesItsPlace(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west")
	key := mesh.IssueKey("one", func(r *iapmeshv1.IssueKeyRequest) { r.MaxActive = 1 })
	a := mesh.AddNodeWith("a", nodetest.NodeOptions{Key: key})
	ana := a.SignIn("ana@example.com")
	a.Remove()
	var turnedAway *node.TurnedAwayError
	if err := a.Ends(); !errors.As(err, &turnedAway) || turnedAway.State != keyring.NodeDeparted {
		t.Errorf("it ended by %v", err)
	}
	mesh.AddNodeWith("b", nodetest.NodeOptions{Key: key})
	mesh.In("eu-west").Serves(ana, http.StatusOK) // what it signed stays good
}

func TestAControlNodeComesBackFromQuarantine(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	r := mesh.ToAFollower(func(r *nodetest.Region) error {
		receipt, err := r.TryQuarantine()
		if err == nil {
			mesh.AwaitReceipt(receipt)
		}
		return err
	})
	mesh.Eventually("it votes no more", func() bool {
		status, err := mesh.TryStatus()
		for _, n := range status.GetNodes() {
			if n.Node.Region == r.Name && n.Voter {
				return false
			}
		}
		return err == nil
	})
	r.Release()
	mesh.AwaitVoters()
	r.AwaitReady()
	ana := r.SignIn("ana@example.com")
	for _, other := range mesh.Regions() {
		other.EventuallyServes(ana)
	}
}

func TestANodeComesFromItsKeysAddressesAlone(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west")
	inside := mesh.IssueKey("inside", func(r *iapmeshv1.IssueKeyRequest) { r.SourceCidrs = []string{"127.0.0.2/32"} })
	a := mesh.AddNodeWith("a", nodetest.NodeOptions{Key: inside, From: "127.0.0.2"})
	ana := a.SignIn("ana@example.com")
	live := func() bool {
		for _, n := range mesh.Status().Nodes {
			if n.Node.Name == "a-1" {
				return n.Live
			}
		}
		return false
	}
	mesh.Eventually("it is heard", live)
	a.Stop()
	a.ComeFrom("127.0.0.3") // as a stolen disk would
	a.Start()
	mesh.Eventually("it is heard no more", func() bool { return !live() })
	begun := time.Now()
	mesh.Eventually("two seconds have passed", func() bool {
		if live() {
			t.Fatal("it is heard from an address that its key does not name")
		}
		return time.Since(begun) > 2*time.Second
	})
	a.Stop()
	a.ComeFrom("127.0.0.2")
	a.Start()
	mesh.Eventually("it is heard again", live)
	a.Serves(ana, http.StatusOK)
}

func TestQuorumIsKept(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	gone := mesh.Follower()
	gone.Stop()
	gone.Remove()
	for what, try := range map[string]func(*nodetest.Region) error{
		"quarantine": func(r *nodetest.Region) error { _, err := r.TryQuarantine(); return err },
		"remove":     (*nodetest.Region).TryRemove,
	} {
		mesh.Eventually(what+" is refused for the quorum's sake", func() bool {
			leader := mesh.Leader()
			for _, r := range mesh.Regions() {
				if r == leader || r == gone {
					continue
				}
				err := try(r)
				if nodetest.Leads(err) {
					return false // now: ask for the other
				}
				if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "needed to commit") {
					t.Fatalf("%s: %v", what, err)
				}
			}
			return true
		})
	}
}
