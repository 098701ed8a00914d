package node_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/internal/profile"
	"github.com/iapmesh/iapmesh/node/nodetest"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// The benchmarks of a whole mesh: three real nodes in one process, TLS, raft and disks on loopback, no distance between regions.
// Each does a fixed number of rounds, whatever -benchtime says, and reports their median and their worst or 99th percentile in
// milliseconds of wall time, for that is what their budgets are in, with the machine's load beside them.

// BenchmarkRevocationRefused measures from the call that revokes a user (so the commit is within) until every region has answered
// one of the user's requests with 401. Clients ask all the time, one per region.
func BenchmarkRevocationRefused(b *testing.B) {
	const rounds = 40
	mesh := nodetest.Start(b, "eu-west", "us-east", "ap-south")
	admin := dialMesh(b, mesh)
	for b.Loop() {
		var all, committed []time.Duration
		for range rounds {
			ana := mesh.In("eu-west").SignIn("ana@example.com")
			var asking, ended sync.WaitGroup
			refused := make([]time.Time, 3)
			for i, region := range mesh.Regions() {
				asking.Add(1)
				ended.Go(func() {
					first := sync.OnceFunc(asking.Done)
					defer first()
					for deadline := time.Now().Add(nodetest.Patience); time.Now().Before(deadline); {
						status := ana.Poll(region, nodetest.EchoHost, "/hello")
						first()
						if status == http.StatusUnauthorized {
							refused[i] = time.Now()
							return
						}
					}
				})
			}
			asking.Wait()
			start := time.Now()
			admin.revoke(ana.Subject)
			committed = append(committed, time.Since(start))
			ended.Wait()
			last := slices.MaxFunc(refused, time.Time.Compare)
			if slices.ContainsFunc(refused, time.Time.IsZero) {
				b.Fatal("a region goes on serving what was revoked")
			}
			all = append(all, last.Sub(start))
		}
		milliseconds(b, "refused", all)
		milliseconds(b, "committed", committed)
	}
	load(b)
}

// BenchmarkStreamCut measures from the call that revokes a user until that user's event streams in all regions have ended.
// Budget: 250 ms and one way, of which there is none here.
func BenchmarkStreamCut(b *testing.B) {
	const rounds = 40
	mesh := nodetest.Start(b, "eu-west", "us-east", "ap-south")
	admin := dialMesh(b, mesh)
	for b.Loop() {
		var all []time.Duration
		for range rounds {
			ana := mesh.In("eu-west").SignIn("ana@example.com")
			var streams []<-chan struct{}
			for _, region := range mesh.Regions() {
				streams = append(streams, region.Stream(ana))
			}
			start := time.Now()
			admin.revoke(ana.Subject)
			for _, ended := range streams {
				select {
				case <-ended:
				case <-time.After(nodetest.Patience):
					b.Fatal("a stream goes on after the revocation")
				}
			}
			all = append(all, time.Since(start))
		}
		milliseconds(b, "cut", all)
	}
	load(b)
}

// BenchmarkRotation measures from the request for new signing keys until each has been acknowledged by every node and signs, and
// the old ones verify only: those of sessions, then those of assertions too, which by design wait twice the age (1 s here) to
// which applications may keep the published keys. A session from before and one signed by each new key are served everywhere.
func BenchmarkRotation(b *testing.B) {
	const rounds = 5
	mesh := nodetest.Start(b, "eu-west", "us-east", "ap-south")
	before := mesh.In("eu-west").SignIn("ana@example.com")
	for b.Loop() {
		var sessions, all []time.Duration
		for range rounds {
			start := time.Now()
			old := mesh.RotateSigningKeys()
			mesh.Eventually("every new session key signs", func() bool {
				return replaced(mesh.SigningKeys(), old, iapmeshv1.SigningKeyKind_SIGNING_KEY_KIND_SESSION)
			})
			sessions = append(sessions, time.Since(start))
			mesh.Eventually("every new key signs", func() bool {
				return replaced(mesh.SigningKeys(), old, iapmeshv1.SigningKeyKind_SIGNING_KEY_KIND_UNSPECIFIED)
			})
			all = append(all, time.Since(start))
			for _, region := range mesh.Regions() {
				after := region.SignIn("bob@example.com")
				for _, other := range mesh.Regions() {
					other.Serves(before, http.StatusOK)
					other.EventuallyServes(after)
				}
			}
		}
		milliseconds(b, "sessions", sessions)
		milliseconds(b, "all", all)
	}
	load(b)
}

// replaced reports whether none of the old keys of a kind signs and as many others do; unspecified: of all kinds.
func replaced(keys []*iapmeshv1.SigningKeyStatus, old []string, kind iapmeshv1.SigningKeyKind) bool {
	var were, are int
	for _, k := range keys {
		if kind != iapmeshv1.SigningKeyKind_SIGNING_KEY_KIND_UNSPECIFIED && k.Key.Kind != kind {
			continue
		}
		signs := k.Key.State == iapmeshv1.SigningKeyState_SIGNING_KEY_STATE_ACTIVE
		switch {
		case !slices.Contains(old, k.Key.Kid):
			if signs {
				are++
			}
		case k.Key.State != iapmeshv1.SigningKeyState_SIGNING_KEY_STATE_VERIFY_ONLY:
			return false
		default:
			were++
		}
	}
	return were > 0 && are == were
}

// BenchmarkJoin measures from the start of a node that has nothing but a bootstrap key until it has served a user's request with a
// session of another region. Budget: 1 s.
func BenchmarkJoin(b *testing.B) {
	const rounds = 10 // the bootstrap key has 16 uses, two of which the mesh has had
	mesh := nodetest.Start(b, "eu-west", "us-east", "ap-south")
	ana := mesh.In("eu-west").SignIn("ana@example.com")
	joined := 0
	for b.Loop() {
		var all []time.Duration
		for range rounds {
			joined++
			if joined > 14 {
				b.Fatal("the bootstrap key is used up: -benchtime=1x")
			}
			start := time.Now()
			edge := mesh.AddNode(fmt.Sprint("edge-", joined), "proxy")
			for status := 0; status != http.StatusOK; status = ana.Poll(edge, nodetest.EchoHost, "/hello") {
				if time.Since(start) > nodetest.Patience {
					b.Fatalf("the node that joined answers %d", status)
				}
			}
			all = append(all, time.Since(start))
			edge.Stop()
		}
		milliseconds(b, "join", all)
	}
	load(b)
}

// BenchmarkLeaderLost measures from the moment at which the leader is cut off from all others without a word until the next
// write of an administrator has been committed, asked of the others in turn. Budget: 1.5 s at p50, in three regions: distance is
// in cluster/raftstore's BenchmarkFailover.
func BenchmarkLeaderLost(b *testing.B) {
	const rounds = 10
	mesh := nodetest.Start(b, "eu-west", "us-east", "ap-south")
	for b.Loop() {
		var all []time.Duration
		for round := range rounds {
			leader := mesh.Leader()
			admin := dialMesh(b, mesh)
			mesh.Cut(leader.Name)
			start := time.Now()
			for err := error(io.EOF); err != nil; {
				if time.Since(start) > nodetest.Patience {
					b.Fatalf("no leader: %v", err)
				}
				for _, region := range mesh.Regions() {
					if region.Name == leader.Name {
						continue
					}
					if err = admin.tryRevoke(region, fmt.Sprintf("dev/nobody-%d", round)); err == nil {
						break
					}
				}
			}
			all = append(all, time.Since(start))
			mesh.Heal(leader.Name)
			mesh.AwaitVoters()
		}
		milliseconds(b, "written", all)
	}
	load(b)
}

// meshAdmin is an administrator whose connections stand before the clock runs.
type meshAdmin struct {
	b      *testing.B
	client *profile.Client
}

func dialMesh(b *testing.B, mesh *nodetest.Mesh) *meshAdmin {
	b.Helper()
	client, err := mesh.Profile().Dial()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { client.Close() })
	err = client.Call(b.Context(), func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		_, err := iapmeshv1.NewClusterServiceClient(conn).GetStatus(ctx, &iapmeshv1.GetStatusRequest{}, o...)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return &meshAdmin{b, client}
}

func (a *meshAdmin) revoke(subject string) {
	a.b.Helper()
	if err := a.client.Call(a.b.Context(), revokeUser(subject)); err != nil {
		a.b.Fatal(err)
	}
}

func (a *meshAdmin) tryRevoke(r *nodetest.Region, subject string) error {
	ctx, cancel := context.WithTimeout(a.b.Context(), 250*time.Millisecond)
	defer cancel()
	return a.client.CallNode(ctx, r.API(), revokeUser(subject))
}

func revokeUser(subject string) profile.Func {
	return func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		req := &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_USER, Value: subject, Reason: "benchmark"}
		_, err := iapmeshv1.NewRevocationServiceClient(conn).Revoke(ctx, req, o...)
		return err
	}
}

// milliseconds reports the median, and the 99th percentile or, of fewer than 30, the worst.
func milliseconds(b *testing.B, name string, d []time.Duration) {
	slices.Sort(d)
	report := func(what string, d time.Duration) {
		b.ReportMetric(float64(d.Microseconds())/1000, name+"-"+what+"-ms")
	}
	report("p50", d[len(d)/2])
	if len(d) < 30 {
		report("max", d[len(d)-1])
	} else {
		report("p99", d[len(d)*99/100])
	}
}

// load reports the machine's load of the last minute, where the system tells it.
func load(b *testing.B) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return
	}
	var one float64
	if _, err := fmt.Sscan(strings.TrimSpace(string(text)), &one); err == nil {
		b.ReportMetric(one, "load")
	}
}
