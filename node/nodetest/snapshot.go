package nodetest

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/internal/backup"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/profile"
	"github.com/iapmesh/iapmesh/internal/snapshotfile"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Snapshot is one in a file, and the key that opens it.
type Snapshot struct{ Path, Keeper string }

// client is an administrator's, for what takes as long as it takes.
func (m *Mesh) client() *profile.Client {
	client, err := m.Profile().Dial()
	m.must("dial", err)
	m.t.Cleanup(func() { client.Close() })
	client.Patience = Patience
	return client
}

// Save takes a snapshot of the mesh into a file.
func (m *Mesh) Save(name string) Snapshot {
	m.t.Helper()
	s, err := backup.Save(m.t.Context(), m.client())
	m.must("save a snapshot", err)
	out := Snapshot{Path: filepath.Join(m.dir, name), Keeper: "file://" + filepath.Join(m.dir, name+".key")}
	m.must("write the snapshot", snapshotfile.Create(m.t.Context(), out.Path, node.SealedDirectory("", []string{out.Keeper}, 0), s))
	return out
}

// Open reads a snapshot's file.
func (m *Mesh) Open(s Snapshot) *snapshotfile.Snapshot {
	m.t.Helper()
	out, err := snapshotfile.Open(m.t.Context(), s.Path, node.SealedDirectory("", []string{s.Keeper}, 0))
	m.must("open the snapshot", err)
	return out
}

// Restore gives a snapshot back to the running mesh, with what the caller remembers.
func (m *Mesh) Restore(s Snapshot, remembered ...keyring.Denial) *iapmeshv1.RestorationStatus {
	m.t.Helper()
	status, err := m.TryRestore(s, remembered...)
	m.must("restore", err)
	return status
}

// TryRestore is Restore where it may be refused.
func (m *Mesh) TryRestore(s Snapshot, remembered ...keyring.Denial) (*iapmeshv1.RestorationStatus, error) {
	m.t.Helper()
	client := m.client()
	now, err := backup.Pending(m.t.Context(), client)
	if err != nil {
		return nil, err
	}
	snapshot := m.Open(s)
	statement, err := backup.Statement(snapshot, now, m.now())
	if err != nil {
		return nil, err
	}
	signature, err := backup.Sign(m.Profile(), statement)
	m.must("sign", err)
	resp, err := backup.Restore(m.t.Context(), client, backup.Restoring{Snapshot: snapshot, Statement: statement, Signature: signature, Remembered: remembered})
	return resp.GetStatus(), err
}

// Pending is what awaits confirmation.
func (m *Mesh) Pending() *iapmeshv1.RestorationStatus {
	m.t.Helper()
	status, err := backup.Pending(m.t.Context(), m.client())
	m.must("pending", err)
	return status
}

// Confirm confirms the list of now, but for the exceptions.
func (m *Mesh) Confirm(except ...string) {
	m.t.Helper()
	resp, err := backup.Confirm(m.t.Context(), m.client(), m.Pending().ListDigest, except)
	m.must("confirm", err)
	m.AwaitReceipt(resp.Receipt)
}

// UseKey issues a key for any number of nodes, and writes it into a file of its name; nodes that join from here on use it.
func (m *Mesh) UseKey(name string, roles ...iapmeshv1.Role) (id string) {
	m.t.Helper()
	secret := m.NewSecret()
	m.issue(name, secret, func(r *iapmeshv1.IssueKeyRequest) { r.Grants = roles })
	m.useKey(name, secret)
	return secret.ID()
}

// Block revokes a user for good.
func (m *Mesh) Block(subject string) {
	m.t.Helper()
	m.call("block "+subject, func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		_, err := iapmeshv1.NewRevocationServiceClient(conn).Revoke(ctx, &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_USER, Value: subject, Block: true, Reason: "test"}, o...)
		return err
	})
}

// Visit is what a new browser gets when it navigates to a page of a host.
func (r *Region) Visit(host, path string) *http.Response {
	r.mesh.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	r.mesh.t.Cleanup(cancel)
	resp, err := r.mesh.world.browser().Get(ctx, r.URL(host, path))
	r.mesh.must("visit "+r.URL(host, path), err)
	return resp
}

// TrySignIn signs a user in by the browser and returns where it ended; status 0 if the way there led in circles, as when the session
// that was just made counts no more.
func (r *Region) TrySignIn(user string) *http.Response {
	r.mesh.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	r.mesh.t.Cleanup(cancel)
	resp, err := r.mesh.world.browser().SignIn(ctx, r.URL(EchoHost, "/whoami"), user, r.mesh.world.password(user))
	if fault.Is(err, fault.Unauthenticated) {
		return &http.Response{Header: http.Header{}}
	}
	r.mesh.must("sign in as "+user+" in "+r.Name, err)
	return resp
}

// TryJoin lets a new proxy ask to join by the newest key, or by the one in a file of the mesh's directory, and says how that ended.
func (m *Mesh) TryJoin(name, key string, patience time.Duration) error {
	m.t.Helper()
	c := m.config(name, len(m.order))
	c.Roles = []string{"proxy"}
	c.Join = node.Join{Addresses: []string{m.In(m.order[0]).config.Listen.Mesh}, Key: node.Credential{File: filepath.Join(m.dir, key+".key")}, Timeout: node.Duration(patience)}
	n, err := node.NewIn(m.t.Context(), c, node.Env{Logger: m.logger(), NetDial: m.network.dialFrom(c.Listen.Mesh, ""), Now: m.now})
	m.must("open node "+name, err)
	ctx, cancel := context.WithTimeout(m.t.Context(), patience+2*time.Second)
	defer cancel()
	return n.Run(ctx)
}

// ForgeKey writes a key that pins the mesh's root, and that the mesh does not know, into a file of the mesh's directory.
func (m *Mesh) ForgeKey(name string) {
	m.t.Helper()
	m.must("write the key", os.WriteFile(filepath.Join(m.dir, name+".key"), []byte(m.NewSecret().String()), 0o600))
}

// Configuration is the mesh.yaml that the mesh began with.
func (m *Mesh) Configuration() string { return m.world.yaml() }

// Trail is what the first node's aggregator remembers as refused since a time.
func (m *Mesh) Trail(since time.Time) []keyring.Denial {
	m.t.Helper()
	out, err := backup.Remembered(m.t.Context(), m.client(), []string{m.In(m.order[0]).config.Listen.Mesh}, since, m.writers())
	m.must("read the trail", err)
	return out
}

func (m *Mesh) writers() backup.Writers {
	out := backup.Writers{}
	for _, n := range m.Status().Nodes {
		out[n.Node.Id] = slices.Contains(n.Node.Roles, iapmeshv1.Role_ROLE_CONTROL)
	}
	return out
}

// Node is a node as the leader shows it.
func (m *Mesh) Node(name string) *iapmeshv1.NodeStatus {
	m.t.Helper()
	for _, n := range m.Status().Nodes {
		if n.Node.Name == name {
			return n
		}
	}
	m.t.Fatalf("the mesh knows no node %s", name)
	return nil
}

func (m *Mesh) sign(s *keyring.RestorationStatement) ([]byte, error) {
	return backup.Sign(m.Profile(), s)
}

// Recover founds the mesh anew from this node, which is stopped. Aggregators, if any is asked, say what is remembered.
func (r *Region) Recover(remembered ...keyring.Denial) (*node.Recovered, error) {
	ask := func(_ context.Context, q node.Question) []keyring.Denial {
		if q.Since.IsZero() || q.Since.After(r.mesh.now()) || slices.Contains(q.Aggregators, r.config.Listen.Mesh) || len(q.Control) == 0 {
			r.mesh.t.Errorf("asked what was refused: %+v", q)
		}
		return remembered
	}
	return node.Recover(r.mesh.t.Context(), node.RecoverConfig{Config: r.config, Sign: r.mesh.sign, Ask: ask, Logger: r.mesh.logger(), Now: r.mesh.now})
}

// Wipe takes away all that a stopped node has, and lets it join anew at another, by the newest key.
func (r *Region) Wipe(known *Region) {
	r.mesh.t.Helper()
	r.mesh.must("wipe "+r.Name, os.RemoveAll(r.config.DataDir))
	r.joinBy(known)
}

// Refound founds the mesh anew from a snapshot, in a new control node at this one's addresses, which lost all that it had.
func (r *Region) Refound(s Snapshot, remembered ...keyring.Denial) {
	m := r.mesh
	m.t.Helper()
	m.must("wipe "+r.Name, os.RemoveAll(r.config.DataDir))
	made, err := node.Refound(m.t.Context(), node.RefoundConfig{
		Config: r.config, Snapshot: m.Open(s), Sign: m.sign, Remembered: remembered, Logger: m.logger(), Now: m.now,
	})
	m.must("found the mesh anew", err)
	if made.MeshID != m.founded.MeshID {
		m.t.Fatalf("mesh %s, want %s", made.MeshID, m.founded.MeshID)
	}
}

// Answer is which answer of its own (X-Iapmesh-Response) the node gives to a new browser; empty if it is none, or the node does not answer.
func (r *Region) Answer(host, path string) string {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	resp, err := r.mesh.world.browser().Get(ctx, r.URL(host, path))
	if err != nil {
		return ""
	}
	return resp.Header.Get("X-Iapmesh-Response")
}
