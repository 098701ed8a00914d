package peer_test

import (
	"sync"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// Over a connection that lingers a peer can still be told that it is out; it may ask for nothing.
func TestALingeringConnectionAdmitsNothing(t *testing.T) {
	t.Parallel()
	m, server, d, c := lingering(t, time.Hour)
	m.setState("n1", keyring.NodeRevoked)
	server.Recheck()
	server.Recheck()
	if err := echoes(c); err != nil {
		t.Errorf("it does not linger: %v", err)
	}
	if _, err := (<-server.accepted).Peer(); !fault.Is(err, fault.Denied) {
		t.Errorf("peer of it: %v", err)
	}
	if err := try(t, d, peer.ProtoMesh, "c1", server.addr); err == nil {
		t.Error("a revoked node connected")
	}
}

// Each further view rechecks, and it lingers no longer for that.
func TestALingeringConnectionEnds(t *testing.T) {
	t.Parallel()
	m, server, _, c := lingering(t, 50*time.Millisecond)
	m.setState("n1", keyring.NodeRevoked)
	over := make(chan struct{})
	var rechecking sync.WaitGroup
	rechecking.Go(func() {
		often := time.NewTicker(time.Millisecond)
		defer often.Stop()
		for {
			server.Recheck()
			select {
			case <-often.C:
			case <-over:
				return
			}
		}
	})
	defer rechecking.Wait()
	defer close(over)
	ended(t, c)
}

// lingering is a connection of n1 to a server that lets it linger for so long.
func lingering(t *testing.T, d time.Duration) (*mesh, *port, *peer.Dialer, *peer.Conn) {
	t.Helper()
	m := newMesh(t)
	server := m.port(m.node("c1", keyring.RoleControl), func(c *peer.Config) {
		c.Linger = map[string]time.Duration{peer.ProtoMesh: d}
	}, map[string]peer.Policy{peer.ProtoMesh: peer.AnyNode})
	dialer := m.dialer(m.node("n1", keyring.RoleProxy))
	return m, server, dialer, open(t, dialer, peer.ProtoMesh, server)
}
