package node_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/cluster/enroll"
	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/nodetest"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// joiners asks a mesh for admission without running a node.
type joiners struct {
	mesh   *nodetest.Mesh
	secret keyring.ProvisioningSecret
}

// newJoiners issues a key for proxies of so many uses.
func newJoiners(t *testing.T, mesh *nodetest.Mesh, uses uint32) *joiners {
	t.Helper()
	secret := mesh.NewSecret()
	mesh.Issue("racers", secret.PublicKey(), func(r *iapmeshv1.IssueKeyRequest) { r.MaxUses = &uses })
	return &joiners{mesh, secret}
}

// join asks for a node of its own, by clock; it asks the regions in the order given.
func (j *joiners) join(ctx context.Context, name string, clock func() time.Time, regions ...*nodetest.Region) (*enroll.Enrollment, error) {
	_, nodeKey, err := ed25519.GenerateKey(nil)
	_, sessionKey, err2 := ed25519.GenerateKey(nil)
	sealing, err3 := seal.GenerateSealingKey()
	if err := errors.Join(err, err2, err3); err != nil {
		return nil, err
	}
	r := enroll.Request{
		Secret: j.secret, NodeKey: nodeKey, SessionKey: sessionKey, SealingKey: sealing.PublicKey(), Name: name, Region: "eu-west",
		Roles: []iapmeshv1.Role{iapmeshv1.Role_ROLE_PROXY}, Logger: slog.New(slog.DiscardHandler), RetryEvery: 50 * time.Millisecond,
		Pinned: func(pin [32]byte) peer.Pinned { return peer.Pinned{Pin: pin, Clock: clock} },
	}
	rand.Read(r.JoinID[:])
	for _, region := range regions {
		r.Addresses = append(r.Addresses, region.API())
	}
	return enroll.Join(ctx, r)
}

// record is the key as the leader has it, and the nodes under it.
func (j *joiners) record() *iapmeshv1.GetKeyResponse { return j.mesh.Key(j.secret.ID()) }

func TestTenJoinersRaceForThreeUsesByThreeControlNodes(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	j := newJoiners(t, mesh, 3)
	ctx, cancel := context.WithTimeout(t.Context(), nodetest.Patience)
	defer cancel()
	outcomes := make([]error, 10)
	regions := mesh.Regions()
	var racing sync.WaitGroup
	for i := range outcomes {
		racing.Go(func() {
			_, outcomes[i] = j.join(ctx, fmt.Sprint("racer-", i), time.Now, regions[i%3], regions[(i+1)%3], regions[(i+2)%3])
		})
	}
	racing.Wait()
	admitted := map[string]bool{}
	var key *iapmeshv1.GetKeyResponse
	mesh.Eventually("the key is used up, also in the view of a leader that is new", func() bool {
		key = j.record()
		return key.Key.State == iapmeshv1.KeyState_KEY_STATE_EXHAUSTED
	})
	for _, use := range key.Key.RecentUses {
		admitted[use.Name] = true
	}
	won := 0
	for i, err := range outcomes {
		name := fmt.Sprint("racer-", i)
		switch {
		case err == nil:
			won++
			if !admitted[name] {
				t.Errorf("%s was admitted, the key does not say so: %v", name, key.Key.RecentUses)
			}
		case !fault.Is(err, fault.Exhausted):
			t.Errorf("%s: %v, want exhausted", name, err)
		default:
			for winner := range admitted { // told by whom the uses were taken
				if !strings.Contains(err.Error(), "("+winner+") at ") {
					t.Errorf("%s is not told of %s: %v", name, winner, err)
				}
			}
		}
	}
	if won != 3 || key.Key.Uses != 3 || len(key.Nodes) != 3 {
		t.Errorf("%d were admitted; the key: %v, %d nodes", won, key.Key, len(key.Nodes))
	}
}

// Whoever is in the midst of a handshake when the leader is lost gets its node all the same, and no use is burnt for it.
func TestJoinsGoOnWhenTheLeaderIsLost(t *testing.T) {
	t.Parallel()
	const many = 8
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	j := newJoiners(t, mesh, 0)
	ctx, cancel := context.WithTimeout(t.Context(), nodetest.Patience)
	defer cancel()
	leader := mesh.Leader()
	var others []*nodetest.Region
	for _, r := range mesh.Regions() {
		if r != leader {
			others = append(others, r)
		}
	}
	begun := make(chan struct{}, many)
	outcomes := make([]error, many)
	var joining sync.WaitGroup
	for i := range outcomes {
		joining.Go(func() {
			begun <- struct{}{}
			_, outcomes[i] = j.join(ctx, fmt.Sprint("late-", i), time.Now, others[i%2], others[(i+1)%2])
		})
		if i == many/2 {
			<-begun
			mesh.Cut(leader.Name) // with half of them under way
		}
	}
	joining.Wait()
	mesh.Heal(leader.Name)
	for i, err := range outcomes {
		if err != nil {
			t.Errorf("late-%d: %v", i, err)
		}
	}
	var key *iapmeshv1.GetKeyResponse
	mesh.Eventually("whoever is asked, the healed one too, knows of every join", func() bool {
		key = j.record()
		return len(key.Nodes) >= many
	})
	if key.Key.Uses != many || len(key.Nodes) != many {
		t.Errorf("%d uses for %d nodes, want %d of each", key.Key.Uses, len(key.Nodes), many)
	}
}

// A joiner's clock decides nothing but whether it believes the server's certificate; one that is too far off is told so.
func TestJoiningWithAWrongClock(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west")
	j := newJoiners(t, mesh, 0)
	for name, off := range map[string]time.Duration{"behind": -5 * time.Minute, "ahead": 23 * time.Hour} {
		clock := func() time.Time { return time.Now().Add(off) }
		if _, err := j.join(t.Context(), "clock-"+name, clock, mesh.In("eu-west")); err != nil {
			t.Errorf("%v off: %v", off, err)
		}
	}
	for _, off := range []time.Duration{-30 * time.Minute, 26 * time.Hour} {
		clock := func() time.Time { return time.Now().Add(off) }
		_, err := j.join(t.Context(), "clock-wrong", clock, mesh.In("eu-west"))
		if !fault.Is(err, fault.Unauthenticated) || !strings.Contains(err.Error(), "is this machine's clock right?") {
			t.Errorf("%v off: %v, want to be told of the clock", off, err)
		}
	}
	if key := j.record(); key.Key.Uses != 2 {
		t.Errorf("%d uses: one that was never asked for was counted", key.Key.Uses)
	}
}
