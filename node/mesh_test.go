package node_test

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/profile"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/nodetest"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func TestOneSignInServesEveryRegion(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	ana := mesh.In("eu-west").SignIn("ana@example.com")
	for _, region := range mesh.Regions() {
		if echo := region.Verifies(ana); echo.ServedBy != region.Name {
			t.Errorf("%s: served by %q", region.Name, echo.ServedBy)
		}
	}
	if resp := ana.Get(mesh.In("us-east"), nodetest.FinanceHost, "/"); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("billing without a session on its host: %s, want 401", resp.Status)
	}
}

func TestARotationLogsNobodyOut(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	ana := mesh.In("us-east").SignIn("ana@example.com")
	before := map[string]bool{}
	for _, kid := range mesh.RotateSigningKeys() {
		before[kid] = true
	}
	mesh.Eventually("every key that signed verifies only, and another signs", func() bool {
		signing := 0
		for _, region := range mesh.Regions() {
			region.Serves(ana, http.StatusOK) // during the rotation, at each step of it
		}
		for _, k := range mesh.SigningKeys() {
			if before[k.Key.Kid] && k.Key.State != iapmeshv1.SigningKeyState_SIGNING_KEY_STATE_VERIFY_ONLY {
				return false
			}
			if k.Key.State == iapmeshv1.SigningKeyState_SIGNING_KEY_STATE_ACTIVE {
				signing++
			}
		}
		return signing == len(before)
	})
	for _, region := range mesh.Regions() {
		region.Verifies(ana) // by the new assertion
	}
}

func TestARevocationReachesACutOffRegionWhenItHeals(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	ana := mesh.In("eu-west").SignIn("ana@example.com")
	away := mesh.Follower()
	mesh.Cut(away.Name)
	mesh.Revoke(ana)
	away.Serves(ana, http.StatusOK) // cut off: it cannot know
	mesh.Heal(away.Name)
	mesh.Leader().EventuallyRefuses(ana)
	away.EventuallyRefuses(ana)
}

func TestARevocationEndsWhatIsOpen(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	ana := mesh.In("eu-west").SignIn("ana@example.com")
	streams := map[string]<-chan struct{}{}
	for _, region := range mesh.Regions() {
		streams[region.Name] = region.Stream(ana)
	}
	mesh.Revoke(ana)
	for name, ended := range streams {
		select {
		case <-ended:
		case <-time.After(nodetest.Patience):
			t.Errorf("%s: the stream goes on after the revocation", name)
		}
	}
}

func TestAStaleViewDeniesWhereTheRouteSaysSo(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	away := mesh.Follower()
	bob := away.SignInAt("bob@example.com", nodetest.FinanceHost)
	mesh.Cut(away.Name)
	mesh.Eventually("billing, whose max_staleness is 3s, is refused", func() bool {
		return bob.Get(away, nodetest.FinanceHost, "/").Header.Get("X-Iapmesh-Response") == "stale"
	})
	mesh.Heal(away.Name)
	mesh.Eventually("billing is served again", func() bool {
		return bob.Get(away, nodetest.FinanceHost, "/").StatusCode == http.StatusOK
	})
}

func TestAJoinerIsSentOnByANodeThatIsNoControlNode(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west")
	edge := mesh.AddNode("edge", "proxy")
	far := mesh.AddNodeBy(edge, "far", "proxy")
	ana := far.SignIn("ana@example.com")
	mesh.In("eu-west").EventuallyServes(ana)
}

func TestAFollowerServesWithoutAnyControlNodeAlsoAfterARestart(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west")
	edge := mesh.AddNode("edge", "proxy")
	ana := mesh.In("eu-west").SignIn("ana@example.com")
	edge.EventuallyServes(ana)
	mesh.In("eu-west").Stop()
	edge.Serves(ana, http.StatusOK)
	edge.Stop()
	edge.Start()
	edge.AwaitReady()
	edge.Serves(ana, http.StatusOK)
}

func TestAMeshThatWasOffForThreeDaysStartsAgain(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	for _, region := range mesh.Regions() {
		region.Stop()
	}
	mesh.Advance(72 * time.Hour) // every node certificate is over since two days
	for _, region := range mesh.Regions() {
		region.Start()
	}
	mesh.Eventually("every node has a new certificate", func() bool {
		status, err := mesh.TryStatus() // the command line, which has no view, believes nobody before that
		if err != nil {
			return false
		}
		for _, n := range status.Nodes {
			if !n.Live || n.Report.GetCertificateExpiresAt().AsTime().Before(time.Now().Add(72*time.Hour)) {
				return false
			}
		}
		return true
	})
	// It leads, commits and knows its keys. That all that sign are replaced at this moment, as they are after so long a time, is possible.
	mesh.Eventually("a signing key that is active is asked to go", func() bool { return len(mesh.RotateSigningKeys()) > 0 })
}

func TestEveryDecisionIsReadBack(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	ana := mesh.In("eu-west").SignIn("ana@example.com")
	for _, region := range mesh.Regions() {
		region.Serves(ana, http.StatusOK)
	}
	nodes := map[string]string{}
	for _, region := range mesh.Regions() {
		nodes[region.NodeID()] = region.Name
	}
	mesh.Eventually("each decision for ana, from three nodes", func() bool {
		seen := map[string][]string{} // region → ids of requests
		for _, r := range mesh.Records(&iapmeshv1.QueryRequest{User: ana.Subject, Kind: "decision", Route: "echo"}) {
			node, _, _ := cut(r.Id)
			seen[nodes[node]] = append(seen[nodes[node]], decided(t, r).RequestID)
		}
		for _, region := range mesh.Regions() {
			if !readBack(ana.Answers(region), seen[region.Name]) {
				return false
			}
		}
		return len(seen) == 3
	})
}

func decided(t *testing.T, r *iapmeshv1.QueryResponse) audit.Record {
	t.Helper()
	record, err := audit.Decode(r.Record)
	if err != nil {
		t.Fatal(err)
	}
	return record
}

// readBack reports whether the trail has the decision on each request that was answered 200, once, and none on what was not asked.
func readBack(answers []nodetest.Answer, requests []string) bool {
	asked := map[string]int{}
	for _, a := range answers {
		asked[a.Request] = a.Status
	}
	for _, id := range requests {
		if asked[id] == 0 {
			return false
		}
		delete(asked, id)
	}
	for _, status := range asked {
		if status == http.StatusOK {
			return false
		}
	}
	return len(requests) > 0
}

func TestARevokedNodeIsCutOff(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	edge := mesh.AddNode("edge", "proxy")
	mesh.AwaitVoters()
	ana := edge.SignIn("ana@example.com")
	mesh.In("eu-west").EventuallyServes(ana)
	mesh.RevokeNode("edge-1")
	mesh.In("eu-west").EventuallyRefuses(ana) // what the node minted counts no more
}

func TestARevokedAdministratorIsRefusedOnOpenConnections(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west")
	bob := *mesh.Profile()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := keyring.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	err = mesh.Try(func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		resp, err := iapmeshv1.NewAdminServiceClient(conn).IssueAdmin(ctx, &iapmeshv1.IssueAdminRequest{Name: "bob", Csr: csr}, o...)
		bob.Name, bob.Certificate = "bob", profile.CertificatePEM(resp.GetCertificate())
		bob.Key = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	client, err := bob.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.Patience = nodetest.Patience
	var stream grpc.ServerStreamingClient[iapmeshv1.WatchStatusResponse]
	whoAmI := func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		_, err := iapmeshv1.NewAdminServiceClient(conn).WhoAmI(ctx, &iapmeshv1.WhoAmIRequest{}, o...)
		return err
	}
	err = client.Call(t.Context(), func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		stream, err = iapmeshv1.NewClusterServiceClient(conn).WatchStatus(t.Context(), &iapmeshv1.WatchStatusRequest{}, o...)
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	})
	if err := errors.Join(err, client.Call(t.Context(), whoAmI)); err != nil {
		t.Fatalf("before the revocation: %v", err)
	}
	err = mesh.Try(func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		_, err := iapmeshv1.NewAdminServiceClient(conn).RevokeAdmin(ctx, &iapmeshv1.RevokeAdminRequest{Admin: "bob", Reason: "left"}, o...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	client.Patience = time.Second // nobody answers any more
	if err := client.Call(t.Context(), whoAmI); err == nil {
		t.Error("a call after the revocation is answered")
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for err := error(nil); err == nil; _, err = stream.Recv() {
		}
	}()
	select {
	case <-ended:
	case <-time.After(nodetest.Patience):
		t.Error("the stream goes on after the revocation")
	}
}

func TestAStoppedNodeLeaves(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west")
	edge := mesh.AddNode("edge", "proxy")
	state := func(name string) iapmeshv1.NodeState {
		for _, n := range mesh.Status().Nodes {
			if n.Node.Name == name {
				return n.Node.State
			}
		}
		return iapmeshv1.NodeState_NODE_STATE_UNSPECIFIED
	}
	mesh.AwaitVoters() // it has confirmed its join
	ana := edge.SignIn("ana@example.com")
	if err := edge.Leave(t.Context()); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "still runs") {
		t.Errorf("a running node leaves: %v", err)
	}
	if got := state("edge-1"); got != iapmeshv1.NodeState_NODE_STATE_ACTIVE {
		t.Fatalf("it is %s after it was refused to leave", got)
	}
	edge.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), nodetest.Patience)
	defer cancel()
	if err := edge.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	if got := state("edge-1"); got != iapmeshv1.NodeState_NODE_STATE_DEPARTED {
		t.Errorf("it is %s after it left", got)
	}
	mesh.In("eu-west").Serves(ana, http.StatusOK) // what it signed stays good
}

func TestAStoppedControlNodeLeavesAndVotesNoMore(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	away := mesh.In("ap-south")
	away.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), nodetest.Patience)
	defer cancel()
	if err := away.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	mesh.Eventually("it is departed and has no vote, and the others are what they were", func() bool {
		status, err := mesh.TryStatus() // it may have led
		for _, n := range status.GetNodes() {
			gone := n.Node.Name == "ap-south-1"
			if departed := n.Node.State == iapmeshv1.NodeState_NODE_STATE_DEPARTED; departed != gone || n.Voter == gone {
				return false
			}
		}
		return err == nil
	})
}

func cut(id string) (node, rest string, ok bool) { return strings.Cut(id, "/") }
