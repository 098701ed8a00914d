package peer_test

import (
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/keyring"
)

// Over a connection that lingers a peer can still be told that it is out; it may ask for nothing, and soon the connection ends.
func TestALingeringConnectionAdmitsNothingAndEnds(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	server := m.port(m.node("c1", keyring.RoleControl), func(c *peer.Config) {
		c.Linger = map[string]time.Duration{peer.ProtoMesh: 300 * time.Millisecond}
	}, map[string]peer.Policy{peer.ProtoMesh: peer.AnyNode})
	d := m.dialer(m.node("n1", keyring.RoleProxy))
	c, err := d.Dial(t.Context(), peer.ProtoMesh, "c1", server.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := echoes(c); err != nil {
		t.Fatal(err)
	}
	m.setState("n1", keyring.NodeRevoked)
	began := time.Now()
	server.Recheck()
	server.Recheck() // each further view rechecks: it lingers no longer for that
	if err := echoes(c); err != nil {
		t.Errorf("it does not linger: %v", err)
	}
	if err := try(t, d, peer.ProtoMesh, "c1", server.addr); err == nil {
		t.Error("a revoked node connected")
	}
	ended(t, c)
	if lingered := time.Since(began); lingered > 5*time.Second {
		t.Errorf("it lingered for %s", lingered)
	}
}
