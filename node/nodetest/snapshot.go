package nodetest

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
	out, err := open(m.t.Context(), s)
	m.must("open the snapshot", err)
	return out
}

func open(ctx context.Context, s Snapshot) (*snapshotfile.Snapshot, error) {
	return snapshotfile.Open(ctx, s.Path, node.SealedDirectory("", []string{s.Keeper}, 0))
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
	client, err := m.Profile().Dial() // it fails nothing by itself: a test may restore beside what else it does
	if err != nil {
		return nil, err
	}
	defer client.Close()
	client.Patience = Patience
	now, err := backup.Pending(m.t.Context(), client)
	if err != nil {
		return nil, err
	}
	snapshot, err := open(m.t.Context(), s)
	if err != nil {
		return nil, err
	}
	statement, err := backup.Statement(snapshot, now, m.now())
	if err != nil {
		return nil, err
	}
	signature, err := backup.Sign(m.Profile(), statement)
	if err != nil {
		return nil, err
	}
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

// TryConfirm confirms the list of now, but for the exceptions.
func (m *Mesh) TryConfirm(except ...string) error {
	m.t.Helper()
	_, err := backup.Confirm(m.t.Context(), m.client(), m.Pending().ListDigest, except, false)
	return err
}

// Confirm is TryConfirm once it is not refused, when every node that would be released has told what it remembers.
func (m *Mesh) Confirm(except ...string) {
	m.t.Helper()
	var resp *iapmeshv1.ConfirmRestorationResponse
	var err error
	await(unhurried, func() bool {
		resp, err = backup.Confirm(m.t.Context(), m.client(), m.Pending().ListDigest, except, false)
		return !fault.Is(err, fault.Conflict) // else a node has told what it remembers since the list was read
	})
	m.must("confirm", err)
	m.AwaitReceipt(resp.Receipt)
}

// UseKey issues a key for any number of nodes, and writes it into a file of its name; nodes that join from here on use it.
func (m *Mesh) UseKey(name string, roles ...iapmeshv1.Role) (id string) {
	m.t.Helper()
	secret := m.NewSecret()
	m.Issue(name, secret.PublicKey(), func(r *iapmeshv1.IssueKeyRequest) { r.Grants = roles })
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
	return r.browse("visit "+host+path, func(ctx context.Context) (*http.Response, error) {
		return r.mesh.world.browser().Get(ctx, r.URL(host, path))
	})
}

// TrySignIn signs a user in by the browser and returns where it ended; status 0 if the way there led in circles, as when the session
// that was just made counts no more.
func (r *Region) TrySignIn(user string) *http.Response {
	r.mesh.t.Helper()
	return r.browse("sign in as "+user, func(ctx context.Context) (*http.Response, error) {
		resp, err := r.mesh.world.browser().SignIn(ctx, r.URL(EchoHost, "/whoami"), user, r.mesh.world.password(user))
		if fault.Is(err, fault.Unauthenticated) {
			return &http.Response{Header: http.Header{}}, nil
		}
		return resp, err
	})
}

// TryJoin lets a new proxy ask to join by the key in a file of the mesh's directory until it has an answer, and says which: it is admitted,
// refused, or told to await an operator. It runs no longer than that.
func (m *Mesh) TryJoin(name, key string) (err error) {
	m.t.Helper()
	c, known := m.joiners[name]
	if !known {
		c = m.config(name, len(m.order))
		m.joiners[name] = c
	}
	c.Roles = []string{"proxy"}
	c.Join = node.Join{
		Addresses: []string{m.In(m.order[0]).config.Listen.Mesh}, Key: node.Credential{File: filepath.Join(m.dir, key+".key")}, Timeout: node.Duration(5 * time.Second),
	}
	await(unhurried, func() bool {
		err = m.runUntilJoined(c)
		return !fault.Is(err, fault.Unavailable) || strings.Contains(err.Error(), keyring.ErrAwaitsOperator.Error())
	})
	return err
}

// runUntilJoined runs a node until it has joined, or cannot.
func (m *Mesh) runUntilJoined(c node.Config) error {
	m.t.Helper()
	n, err := node.NewIn(m.t.Context(), c, node.Env{Logger: m.logger(), NetDial: m.network.dialFrom(c.Listen.Mesh, ""), Now: m.now})
	m.must("open node "+c.Name, err)
	ctx, cancel := context.WithCancel(m.t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-ticker.C:
		}
		var id struct {
			Node string `json:"node_id"`
		}
		if data, err := os.ReadFile(filepath.Join(c.DataDir, "node.json")); err == nil && json.Unmarshal(data, &id) == nil && id.Node != "" {
			cancel()
			<-ended // by whatever part of it was just beginning
			return nil
		}
	}
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
	client, writers := m.client(), m.writers()
	var out []keyring.Denial
	var err error
	await(unhurried, func() bool {
		out, err = backup.Remembered(m.t.Context(), client, backup.Trail{Aggregators: []string{m.In(m.order[0]).config.Listen.Mesh}, Since: since, Writers: writers})
		return !fault.Is(err, fault.Unavailable)
	})
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

// Node is a node as the leader shows it, once it knows the node.
func (m *Mesh) Node(name string) (node *iapmeshv1.NodeStatus) {
	m.t.Helper()
	m.Eventually("the mesh knows node "+name, func() bool {
		for _, n := range m.Status().Nodes {
			if n.Node.Name == name {
				node = n
			}
		}
		return node != nil
	})
	return node
}

func (m *Mesh) sign(s *keyring.RestorationStatement) ([]byte, error) {
	return backup.Sign(m.Profile(), s)
}

// Recover founds the mesh anew from this node, which is stopped. Aggregators, if any is asked, say what is remembered; the node's own
// store is read.
func (r *Region) Recover(remembered ...keyring.Denial) (*node.Recovered, error) {
	ask := func(ctx context.Context, q node.Question) []keyring.Denial {
		if q.Since.IsZero() || q.Since.After(r.mesh.now()) || slices.Contains(q.Aggregators, r.config.Listen.Mesh) || len(q.Control) == 0 {
			r.mesh.t.Errorf("asked what was refused: %+v", q)
		}
		own, err := backup.Remembered(ctx, nil, backup.Trail{Store: q.Store, Since: q.Since, Writers: q.Control})
		if err != nil {
			r.mesh.t.Errorf("read the node's own trails: %v", err)
		}
		return slices.Concat(remembered, own)
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
