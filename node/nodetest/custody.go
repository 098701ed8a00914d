package nodetest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// RotateAuthority makes the next authority, and returns its serial.
func (m *Mesh) RotateAuthority() string {
	m.t.Helper()
	newest := func() string {
		all := m.Authorities()
		return all[len(all)-1].Authority.Serial
	}
	before := newest()
	var serial string
	err := m.Try(func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		resp, err := iapmeshv1.NewCustodyServiceClient(conn).RotateAuthority(ctx, &iapmeshv1.RotateAuthorityRequest{}, o...)
		serial = resp.GetAuthority().GetAuthority().GetSerial()
		return err
	})
	if fault.Is(err, fault.Conflict) { // the answer was lost, and the client has asked again
		serial = newest()
	}
	if err != nil && (serial == "" || serial == before) {
		m.t.Fatalf("rotate the CA: %v", err)
	}
	return serial
}

// Authorities lists all authorities, the oldest first.
func (m *Mesh) Authorities() []*iapmeshv1.AuthorityStatus {
	m.t.Helper()
	var all []*iapmeshv1.AuthorityStatus
	m.call("list the authorities", func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		resp, err := iapmeshv1.NewCustodyServiceClient(conn).ListAuthorities(ctx, &iapmeshv1.ListAuthoritiesRequest{}, o...)
		all = resp.GetAuthorities()
		return err
	})
	return all
}

// BootstrapPin is the root that the mesh was founded with, as its first key pins it.
func (m *Mesh) BootstrapPin() [32]byte { return m.founded.Bootstrap.Pin() }

// AddNodeUnder is AddNode with a key of its own, as it is written.
func (m *Mesh) AddNodeUnder(key, name string, roles ...string) *Region {
	m.t.Helper()
	r := &Region{mesh: m, Name: name, config: m.config(name, len(m.order))}
	r.config.Roles = roles
	r.joinBy(m.regions[m.order[0]])
	file := filepath.Join(m.dir, name+".key")
	m.must("write the key", os.WriteFile(file, []byte(key), 0o600))
	r.config.Join.Key = node.Credential{File: file}
	m.regions[name] = r
	m.order = append(m.order, name)
	m.world.admit(r)
	r.Start()
	r.AwaitReady()
	return r
}

// RotateGossipKey begins to replace the gossip key, and returns since when nothing of the kind had been begun.
func (m *Mesh) RotateGossipKey() (before time.Time) {
	m.t.Helper()
	before = m.GossipRing().BegunAt.AsTime()
	err := m.Try(func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		_, err := iapmeshv1.NewCustodyServiceClient(conn).RotateGossipKey(ctx, &iapmeshv1.RotateGossipKeyRequest{}, o...)
		return err
	})
	if !fault.Is(err, fault.Conflict) || !m.GossipRing().BegunAt.AsTime().After(before) { // else the answer was lost, and the client has asked again
		m.must("rotate the gossip key", err)
	}
	return before
}

// GossipRing is how far the ring of gossip keys is.
func (m *Mesh) GossipRing() *iapmeshv1.GossipRing {
	m.t.Helper()
	var ring *iapmeshv1.GossipRing
	m.call("show the gossip ring", func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		resp, err := iapmeshv1.NewCustodyServiceClient(conn).GetGossipRing(ctx, &iapmeshv1.GetGossipRingRequest{}, o...)
		ring = resp.GetRing()
		return err
	})
	return ring
}

// Members are those that the node hears of by gossip, as "pool/name state".
func (r *Region) Members() []string {
	r.mesh.t.Helper()
	var out []string
	r.mesh.callNode("list the members", r.config.Listen.Mesh, func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		out = nil
		resp, err := iapmeshv1.NewClusterServiceClient(conn).ListMembers(ctx, &iapmeshv1.ListMembersRequest{}, o...)
		for _, member := range resp.GetMembers() {
			out = append(out, fmt.Sprintf("%s/%s %s", member.Pool, member.Name, member.State))
		}
		return err
	})
	return out
}
