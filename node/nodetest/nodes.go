package nodetest

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Key is a provisioning key, and the file that holds it.
type Key struct {
	ID, File string
}

// IssueKey issues a key for any number of proxies, by default.
func (m *Mesh) IssueKey(name string, adjust func(*iapmeshv1.IssueKeyRequest)) Key {
	m.t.Helper()
	secret := m.NewSecret()
	m.issue(name, secret, adjust)
	return m.keep(secret)
}

func (m *Mesh) issue(name string, secret keyring.ProvisioningSecret, adjust func(*iapmeshv1.IssueKeyRequest)) {
	m.t.Helper()
	req := &iapmeshv1.IssueKeyRequest{PublicKey: secret.PublicKey(), Name: name, Grants: []iapmeshv1.Role{iapmeshv1.Role_ROLE_PROXY}, MaxUses: proto.Uint32(0)}
	if adjust != nil {
		adjust(req)
	}
	m.call("issue key "+name, func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		_, err := iapmeshv1.NewKeyServiceClient(conn).IssueKey(ctx, req, o...)
		return err
	})
}

// RotateKey gives a key a successor, and returns it.
func (m *Mesh) RotateKey(id string) Key {
	m.t.Helper()
	secret := m.NewSecret()
	m.call("rotate key "+id, func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		_, err := iapmeshv1.NewKeyServiceClient(conn).RotateKey(ctx, &iapmeshv1.RotateKeyRequest{Key: id, SuccessorPublicKey: secret.PublicKey()}, o...)
		return err
	})
	return m.keep(secret)
}

// RevokeKey revokes a key, and waits until every live node knows.
func (m *Mesh) RevokeKey(id string, cascade iapmeshv1.Cascade) {
	m.t.Helper()
	var receipt *iapmeshv1.Receipt
	m.call("revoke key "+id, func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		resp, err := iapmeshv1.NewKeyServiceClient(conn).RevokeKey(ctx, &iapmeshv1.RevokeKeyRequest{Key: id, Cascade: cascade, Reason: "test"}, o...)
		receipt = resp.GetReceipt()
		return err
	})
	m.AwaitReceipt(receipt)
}

func (m *Mesh) keep(secret keyring.ProvisioningSecret) Key {
	k := Key{ID: secret.ID(), File: filepath.Join(m.dir, secret.ID()+".key")}
	m.must("write key "+k.ID, os.WriteFile(k.File, []byte(secret.String()), 0o600))
	return k
}

// NodeOptions are how a node is added that is not like the others.
type NodeOptions struct {
	Key    Key // the bootstrap key if empty
	Roles  []string
	Region string // its name if empty
	From   string // the loopback address that it comes from; empty: any
}

// AddNodeWith joins a node, and returns it as a region of its own name.
func (m *Mesh) AddNodeWith(name string, o NodeOptions) *Region {
	m.t.Helper()
	r := &Region{mesh: m, Name: name, config: m.config(name, len(m.order)), from: o.From}
	if r.config.Roles = o.Roles; len(o.Roles) == 0 {
		r.config.Roles = []string{"proxy"}
	}
	if o.Region != "" {
		r.config.Region = o.Region
	}
	r.joinBy(m.regions[m.order[0]])
	if o.Key.File != "" {
		r.config.Join.Key = node.Credential{File: o.Key.File}
	}
	m.regions[name] = r
	m.order = append(m.order, name)
	m.world.admit(r)
	r.Start()
	r.AwaitReady()
	return r
}

// Node is a node's record, as the leader has it.
func (r *Region) Node() *iapmeshv1.Node {
	r.mesh.t.Helper()
	var out *iapmeshv1.Node
	r.mesh.call("show node "+r.config.Name, func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		resp, err := iapmeshv1.NewNodeServiceClient(conn).GetNode(ctx, &iapmeshv1.GetNodeRequest{Node: r.config.Name}, o...)
		out = resp.GetNode().GetNode()
		return err
	})
	return out
}

// NodeID is the node's id.
func (r *Region) NodeID() string { return r.Node().Id }

// DataDir is the node's data directory.
func (r *Region) DataDir() string { return r.config.DataDir }

// Quarantine cuts the node off, and waits until every live node knows.
func (r *Region) Quarantine() {
	r.mesh.t.Helper()
	receipt, err := r.TryQuarantine()
	r.mesh.must("quarantine "+r.Name, err)
	r.mesh.AwaitReceipt(receipt)
}

// TryQuarantine is Quarantine where it may be refused.
func (r *Region) TryQuarantine() (receipt *iapmeshv1.Receipt, err error) {
	err = r.mesh.Try(func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		resp, err := iapmeshv1.NewNodeServiceClient(conn).QuarantineNode(ctx, &iapmeshv1.QuarantineNodeRequest{Node: r.config.Name, Reason: "test"}, o...)
		receipt = resp.GetReceipt()
		return err
	})
	return receipt, err
}

// Release lets the node come back.
func (r *Region) Release() {
	r.mesh.t.Helper()
	r.mesh.call("release "+r.Name, func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		_, err := iapmeshv1.NewNodeServiceClient(conn).ReleaseNode(ctx, &iapmeshv1.ReleaseNodeRequest{Node: r.config.Name, Reason: "test"}, o...)
		return err
	})
}

// Remove says that the node is gone.
func (r *Region) Remove() {
	r.mesh.t.Helper()
	r.mesh.must("remove "+r.Name, r.TryRemove())
}

// TryRemove is Remove where it may be refused.
func (r *Region) TryRemove() error {
	return r.mesh.Try(func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		_, err := iapmeshv1.NewNodeServiceClient(conn).RemoveNode(ctx, &iapmeshv1.RemoveNodeRequest{Node: r.config.Name, Reason: "test"}, o...)
		return err
	})
}

// AllowRebind lets the node bind to a key.
func (r *Region) AllowRebind(key Key) error {
	return r.mesh.Try(func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		_, err := iapmeshv1.NewNodeServiceClient(conn).AllowRebind(ctx, &iapmeshv1.AllowRebindRequest{Node: r.config.Name, Key: key.ID, Reason: "test"}, o...)
		return err
	})
}

// ComeFrom lets the node, when it is next started, come from another loopback address.
func (r *Region) ComeFrom(address string) { r.from = address }

// Ends waits until the node has ended by itself, and returns why.
func (r *Region) Ends() error {
	r.mesh.t.Helper()
	select {
	case <-r.over:
		return r.ended
	case <-time.After(Patience):
		r.mesh.t.Fatalf("%s: still runs after %s", r.Name, Patience)
		return nil
	}
}

// Running reports whether the node has not ended.
func (r *Region) Running() bool {
	select {
	case <-r.over:
		return false
	default:
		return true
	}
}

// Status makes a program's request with a session token of the caller's making, and returns the answer's status.
func (r *Region) Status(token, host, path string) int {
	m := r.mesh
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL(host, path), nil)
	m.must("make a request", err)
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Cookie", "__Host-iapmesh_session="+token)
	resp, err := m.world.browser().Client.Do(req)
	m.must("request "+r.URL(host, path), err)
	resp.Body.Close()
	return resp.StatusCode
}
