package node_test

import (
	"context"
	"crypto/x509"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
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
	edge.EventuallyServes(ana)
	edge.Stop()
	pins := [][32]byte{mesh.BootstrapPin()}
	var next *iapmeshv1.AuthorityStatus
	for n := range 2 {
		serial := mesh.RotateAuthority()
		mesh.Eventually("the next authority issues", func() bool {
			for _, region := range mesh.Regions()[:3] {
				region.Serves(ana, http.StatusOK) // at each step
				for i, pin := range pins {
					if _, err := presents(mesh, region, pin); err != nil {
						t.Fatalf("rotation %d: a joiner that pins root %d: %v", n, i, err)
					}
				}
			}
			all := mesh.Authorities()
			i := slices.IndexFunc(all, func(a *iapmeshv1.AuthorityStatus) bool { return a.Authority.Serial == serial })
			switch {
			case i < 1:
				return false // of a leader that is new, and whose view is behind
			case i != len(all)-1:
				t.Fatalf("the newest is %s", all[len(all)-1].Authority.Serial)
			}
			next = all[i]
			return next.Authority.State == active && all[i-1].Authority.State == retired
		})
		pins = append(pins, [32]byte(next.Pin))
		mesh.Eventually("every node has a certificate of it, and is known by any root", func() bool {
			for _, region := range mesh.Regions()[:3] {
				for i, pin := range pins {
					leaf, err := presents(mesh, region, pin)
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
		leaf, err := presents(mesh, edge, pins[2])
		return err == nil && slices.Equal(leaf.AuthorityKeyId, issuerKeyID(t, next))
	})
	leader := mesh.Leader()
	leader.Stop() // what the others know by now, they know without it
	leader.Start()
	leader.AwaitReady()
	for i, pin := range pins {
		if _, err := presents(mesh, leader, pin); err != nil {
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
		before := mesh.RotateGossipKey()
		mesh.Eventually("the gossip key is replaced", func() bool {
			for _, region := range mesh.Regions() {
				if members := region.Members(); count(members) != 4 || len(members) != 4 {
					t.Fatalf("%s sees %v", region.Name, members)
				}
			}
			ring := mesh.GossipRing()
			return ring.Phase == iapmeshv1.GossipRingPhase_GOSSIP_RING_PHASE_STEADY && ring.BegunAt.AsTime().After(before)
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
	mesh.Issue(name, secret.PublicKey(), func(r *iapmeshv1.IssueKeyRequest) { r.MaxUses = nil })
	return secret.String()
}

// presents connects as a joiner does who knows nothing but a root's pin, and returns the certificate that the node proves itself by. It
// comes again while nobody answers: a handshake takes ten seconds at most.
func presents(mesh *nodetest.Mesh, r *nodetest.Region, pin [32]byte) (leaf *x509.Certificate, err error) {
	mesh.Eventually(r.Name+" answers", func() bool {
		var conn *peer.Conn
		if conn, err = (peer.Pinned{Pin: pin, AnyNode: true}).Dial(context.Background(), r.API()); err == nil {
			leaf = conn.ConnectionState().PeerCertificates[0]
			conn.Close()
		}
		return !fault.Is(err, fault.Unavailable)
	})
	return leaf, err
}
