package node_test

import (
	"context"
	"crypto/x509"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/nodetest"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

const (
	active  = iapmeshv1.AuthorityState_AUTHORITY_STATE_ACTIVE
	retired = iapmeshv1.AuthorityState_AUTHORITY_STATE_RETIRED
)

// The profile by which the test calls the mesh is that of its founding throughout: it knows the first root alone.
func TestTheCARotatesWhileTheMeshServes(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	edge := mesh.AddNode("edge", "proxy")
	ana := mesh.In("eu-west").SignIn("ana@example.com")
	mesh.Eventually("the follower serves", func() bool {
		return ana.Get(edge, nodetest.EchoHost, "/whoami").StatusCode == http.StatusOK
	})
	edge.Stop()
	pins := [][32]byte{mesh.BootstrapPin()}
	for n := range 2 {
		serial := mesh.RotateAuthority()
		var next *iapmeshv1.AuthorityStatus
		mesh.Eventually("the next authority issues", func() bool {
			for _, region := range mesh.Regions()[:3] {
				region.Serves(ana, http.StatusOK) // at each step
				for i, pin := range pins {
					if _, err := presents(region, pin); err != nil {
						t.Fatalf("rotation %d: a joiner that pins root %d: %v", n, i, err)
					}
				}
			}
			all := mesh.Authorities()
			next = all[len(all)-1]
			if next.Authority.Serial != serial {
				t.Fatalf("the newest is %s", next.Authority.Serial)
			}
			return next.Authority.State == active && all[len(all)-2].Authority.State == retired
		})
		pins = append(pins, [32]byte(next.Pin))
		mesh.Eventually("every node has a certificate of it, and is known by any root", func() bool {
			for _, region := range mesh.Regions()[:3] {
				for i, pin := range pins {
					leaf, err := presents(region, pin)
					if err != nil {
						t.Fatalf("rotation %d: a joiner that pins root %d: %v", n, i, err)
					}
					if !slices.Equal(leaf.AuthorityKeyId, issuerKeyID(t, next)) {
						return false
					}
				}
			}
			return true
		})
	}
	old := mesh.AddNode("old-pin", "proxy")
	old.Serves(ana, http.StatusOK)
	mesh.AddNodeUnder(issueKey(t, mesh, "after", pins[2]), "new-pin", "proxy").Serves(ana, http.StatusOK)

	edge.Start() // it was off all the while, and knows the first root alone
	edge.AwaitReady()
	edge.Serves(ana, http.StatusOK)
	mesh.Eventually("the follower has a certificate of the newest", func() bool {
		leaf, err := presents(edge, pins[2])
		return err == nil && slices.Equal(leaf.AuthorityKeyId, issuerKeyID(t, mesh.Authorities()[2]))
	})
	leader := mesh.Leader()
	leader.Stop() // what the others know by now, they know without it
	leader.Start()
	leader.AwaitReady()
	for i, pin := range pins {
		if _, err := presents(leader, pin); err != nil {
			t.Errorf("after a restart, a joiner that pins root %d: %v", i, err)
		}
	}
	leader.Serves(ana, http.StatusOK)
}

func TestTheGossipKeyIsReplacedAndNobodyIsTakenForDead(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	count := func(members []string) (alive int) {
		for _, m := range members {
			if strings.HasSuffix(m, " alive") {
				alive++
			}
		}
		return alive
	}
	mesh.Eventually("everybody knows all", func() bool {
		return !slices.ContainsFunc(mesh.Regions(), func(r *nodetest.Region) bool { return count(r.Members()) != 4 }) // itself in its region, three between regions
	})
	for range 2 {
		before := mesh.GossipRing()
		mesh.RotateGossipKey()
		mesh.Eventually("the gossip key is replaced", func() bool {
			for _, region := range mesh.Regions() {
				if members := region.Members(); count(members) != 4 || len(members) != 4 {
					t.Fatalf("%s sees %v", region.Name, members)
				}
			}
			ring := mesh.GossipRing()
			return ring.Phase == iapmeshv1.GossipRingPhase_GOSSIP_RING_PHASE_STEADY && ring.BegunAt.AsTime().After(before.BegunAt.AsTime())
		})
	}
	late := mesh.AddNode("late", "control", "proxy")
	mesh.Eventually("a node that joins finds the others by the new key", func() bool { return count(late.Members()) == 5 })
}

func issuerKeyID(t *testing.T, a *iapmeshv1.AuthorityStatus) []byte {
	t.Helper()
	cert, err := x509.ParseCertificate(a.Authority.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	return cert.SubjectKeyId
}

// issueKey issues a provisioning key for proxies that pins a root, and returns it as it is written.
func issueKey(t *testing.T, mesh *nodetest.Mesh, name string, pin [32]byte) string {
	t.Helper()
	secret, err := keyring.GenerateKey(pin, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = mesh.Try(func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		_, err := iapmeshv1.NewKeyServiceClient(conn).IssueKey(ctx, &iapmeshv1.IssueKeyRequest{
			PublicKey: secret.PublicKey(), Name: name, Grants: []iapmeshv1.Role{iapmeshv1.Role_ROLE_PROXY},
		}, o...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return secret.String()
}

// presents connects as a joiner does who knows nothing but a root's pin, and returns the certificate that the node proves itself by.
func presents(r *nodetest.Region, pin [32]byte) (*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := peer.Pinned{Pin: pin, AnyNode: true}.Dial(ctx, r.API())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0], nil
}
