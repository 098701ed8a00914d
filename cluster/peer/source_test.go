package peer_test

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
)

// bound is a view in which nodes are bound to keys.
type bound struct {
	*mesh
	keys map[string]*keyring.Key // guarded by mu
	to   map[string]string       // node → key
}

func (b *bound) Snapshot() *keyring.Snapshot {
	contents := b.mesh.Snapshot().Contents
	b.mu.Lock()
	contents.Keys = b.keys
	b.mu.Unlock()
	nodes := map[string]*keyring.Node{}
	for id, n := range contents.Nodes {
		copied := *n
		copied.BoundKey = b.to[id]
		nodes[id] = &copied
	}
	contents.Nodes = nodes
	return keyring.NewSnapshot(revision.Revision{Epoch: 1, Index: 1}, contents)
}

// from dials as a node from a loopback address.
func (m *mesh) from(t *testing.T, d peer.DialConfig, source string) *peer.Dialer {
	t.Helper()
	d.Trust, d.Timeout = m, patience
	d.NetDial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
		return dialer.DialContext(ctx, network, addr)
	}
	out, err := peer.NewDialer(d)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A node speaks only from where its key says that its nodes come from: on every protocol, for as long as it is connected.
func TestANodeSpeaksFromItsKeysAddresses(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	server := m.node("n-server", keyring.RoleControl)
	narrow, free, lost := m.node("n-narrow", keyring.RoleProxy), m.node("n-free", keyring.RoleProxy), m.node("n-lost", keyring.RoleProxy)
	inside := &keyring.Key{ID: "inside", SourceCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/31")}}
	view := &bound{
		mesh: m, keys: map[string]*keyring.Key{"inside": inside, "open": {ID: "open"}},
		to: map[string]string{"n-server": "inside", "n-narrow": "inside", "n-free": "open", "n-lost": "gone"},
	}
	p := m.port(server, func(c *peer.Config) { c.Trust = view }, map[string]peer.Policy{peer.ProtoMesh: peer.AnyNode, peer.ProtoHop: peer.Role(keyring.RoleProxy), peer.ProtoJoin: peer.Nobody})
	dial := func(cert *peer.Identity, source, proto string) (*peer.Conn, error) {
		c, err := m.from(t, peer.DialConfig{Identity: cert}, source).Dial(t.Context(), proto, "n-server", p.addr)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { c.Close() })
		return c, echoes(c)
	}
	for name, tc := range map[string]struct {
		who    *peer.Identity
		source string
		proto  string
		admits bool
	}{
		"inside":                         {identity(t, narrow), "127.0.0.2", peer.ProtoMesh, true},
		"inside, at its end":             {identity(t, narrow), "127.0.0.3", peer.ProtoHop, true},
		"outside":                        {identity(t, narrow), "127.0.0.4", peer.ProtoMesh, false},
		"outside, by another protocol":   {identity(t, narrow), "127.0.0.4", peer.ProtoHop, false},
		"a key without sources":          {identity(t, free), "127.0.0.4", peer.ProtoMesh, true},
		"a key that the view lacks":      {identity(t, lost), "127.0.0.2", peer.ProtoMesh, false},
		"a stranger who joins, anywhere": {nil, "127.0.0.4", peer.ProtoJoin, true},
		"the node itself, anywhere":      {identity(t, server), "127.0.0.4", peer.ProtoMesh, true},
	} {
		if _, err := dial(tc.who, tc.source, tc.proto); (err == nil) != tc.admits {
			t.Errorf("%s: %v", name, err)
		}
	}

	// What is open ends when the node is bound to a key of other addresses.
	open, err := dial(identity(t, narrow), "127.0.0.2", peer.ProtoMesh)
	if err != nil {
		t.Fatal(err)
	}
	stays, err := dial(identity(t, free), "127.0.0.2", peer.ProtoMesh)
	if err != nil {
		t.Fatal(err)
	}
	moved := *inside
	moved.SourceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	view.mu.Lock()
	view.keys = map[string]*keyring.Key{"inside": &moved, "open": {ID: "open"}}
	view.mu.Unlock()
	p.Recheck()
	ended(t, open)
	if err := echoes(stays); err != nil {
		t.Errorf("a node under another key: %v", err)
	}
}
