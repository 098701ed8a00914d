package peer_test

import (
	"testing"

	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/keyring"
)

// BenchmarkPeer is what each call pays to learn its caller by the view of now.
func BenchmarkPeer(b *testing.B) {
	m := newMesh(b)
	server := m.port(m.node("c1", keyring.RoleControl), nil, allProtos)
	c, err := m.dialer(m.node("n1", keyring.RoleProxy)).Dial(b.Context(), peer.ProtoMesh, "c1", server.addr)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	accepted := <-server.accepted
	b.ReportAllocs()
	for b.Loop() {
		if _, err := accepted.Peer(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDial is a whole connection: TCP, TLS 1.3 with both certificates, both records, one echo.
func BenchmarkDial(b *testing.B) {
	m := newMesh(b)
	server := m.port(m.node("c1", keyring.RoleControl), nil, allProtos)
	go func() {
		for range server.accepted {
		}
	}()
	d := m.dialer(m.node("n1", keyring.RoleProxy))
	for b.Loop() {
		c, err := d.Dial(b.Context(), peer.ProtoMesh, "c1", server.addr)
		if err != nil {
			b.Fatal(err)
		}
		if err := echoes(c); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}
