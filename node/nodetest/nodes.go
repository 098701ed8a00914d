package nodetest

import (
	"context"
	"crypto/ed25519"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/profile"
	"github.com/iapmesh/iapmesh/internal/revision"
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
	m.Issue(name, secret.PublicKey(), adjust)
	return m.keep(secret)
}

// Issue is IssueKey for a public half of the caller's.
func (m *Mesh) Issue(name string, public ed25519.PublicKey, adjust func(*iapmeshv1.IssueKeyRequest)) *iapmeshv1.ProvisioningKey {
	m.t.Helper()
	req := &iapmeshv1.IssueKeyRequest{PublicKey: public, Name: name, Grants: []iapmeshv1.Role{iapmeshv1.Role_ROLE_PROXY}, MaxUses: proto.Uint32(0)}
	if adjust != nil {
		adjust(req)
	}
	var key *iapmeshv1.ProvisioningKey
	err := m.Try(func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		resp, err := iapmeshv1.NewKeyServiceClient(conn).IssueKey(ctx, req, o...)
		key = resp.GetKey()
		return err
	})
	if id := keyring.KeyID(public); fault.Is(err, fault.Conflict) && strings.Contains(err.Error(), id+" is there already") {
		key, err = m.Key(id).Key, nil // the answer was lost, and the client has asked again: nobody else has this key
	}
	m.must("issue key "+name, err)
	return key
}

// Key is a provisioning key as the leader has it, and the nodes under it.
func (m *Mesh) Key(id string) *iapmeshv1.GetKeyResponse {
	m.t.Helper()
	var out *iapmeshv1.GetKeyResponse
	m.look("show key "+id, func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) (err error) {
		out, err = iapmeshv1.NewKeyServiceClient(conn).GetKey(ctx, &iapmeshv1.GetKeyRequest{Key: id}, o...)
		return err
	})
	return out
}

// look makes a call of the leader about what is there. One that is new may answer by a view that does not have it yet.
func (m *Mesh) look(what string, f profile.Func) {
	m.t.Helper()
	var err error
	await(unhurried, func() bool {
		err = m.Try(f)
		return !fault.Is(err, fault.NotFound)
	})
	m.must(what, err)
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
	r.mesh.look("show node "+r.config.Name, func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
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

// Release lets the node, which runs, come back, and waits until it serves by that: one that has not heard yet that it was put out would
// say that it is ready.
func (r *Region) Release() {
	m := r.mesh
	m.t.Helper()
	var at *iapmeshv1.Revision
	err := m.Try(func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		resp, err := iapmeshv1.NewNodeServiceClient(conn).ReleaseNode(ctx, &iapmeshv1.ReleaseNodeRequest{Node: r.config.Name, Reason: "test"}, o...)
		at = resp.GetReceipt().GetRevision()
		return err
	})
	if !fault.Is(err, fault.Conflict) { // else the answer was lost, and the client has asked again
		m.must("release "+r.Name, err)
	}
	m.Eventually(r.Name+" serves by its release", func() bool {
		status := m.Status()
		for _, n := range status.Nodes {
			if n.Node.Name != r.config.Name || n.Node.State != iapmeshv1.NodeState_NODE_STATE_ACTIVE {
				continue
			}
			if at == nil {
				at = status.Revision
			}
			return n.Live && !revisionOf(n.Report.GetRevision()).Before(revisionOf(at))
		}
		return false
	})
}

func revisionOf(p *iapmeshv1.Revision) revision.Revision {
	return revision.Revision{Epoch: p.GetEpoch(), Index: p.GetIndex()}
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

// Status makes a program's request with a session token of the caller's making, and returns the answer's status: again while the node
// says that it cannot answer now, as where billing is asked for and the last answer of the leader is 3 s old.
func (r *Region) Status(token, host, path string) (status int) {
	r.mesh.t.Helper()
	await(unhurried, func() bool {
		resp := r.browse("request "+host+path, func(ctx context.Context) (*http.Response, error) {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL(host, path), nil)
			if err != nil {
				return nil, err
			}
			req.Header.Set("Accept", "application/json")
			req.Header.Set("Cookie", "__Host-iapmesh_session="+token)
			resp, err := r.mesh.world.browser().Client.Do(req)
			if err == nil {
				resp.Body.Close()
			}
			return resp, err
		})
		status = resp.StatusCode
		return status != http.StatusServiceUnavailable && !late(resp)
	})
	return status
}
