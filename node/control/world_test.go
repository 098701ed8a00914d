package control_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/cluster/raftstore"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// patience is for how long a test waits for what is to come: on a machine that others use, too, seconds are nothing.
const patience = 2 * time.Minute

// clock is moved by hand.
type clock struct {
	mu sync.Mutex
	t  time.Time // guarded by mu
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// trail collects what is recorded.
type trail struct {
	mu      sync.Mutex
	records []*audit.Record // guarded by mu
}

func (tr *trail) Record(ctx context.Context, r *audit.Record) error {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.records = append(tr.records, r)
	return ctx.Err()
}

// with returns the records of a kind whose detail has that value under that name.
func (tr *trail) with(kind audit.Kind, name, value string) []*audit.Record {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	var out []*audit.Record
	for _, r := range tr.records {
		if r.Kind == kind && r.Detail[name] == value {
			out = append(out, r)
		}
	}
	return out
}

// alone is the transport of an engine without others.
type alone struct{ net.Listener }

func (alone) Dial(string, time.Duration) (net.Conn, error) { return nil, errors.New("alone") }

// watched is the store, with what a test wants to see of commits or to spoil.
type watched struct {
	*raftstore.Store
	mu    sync.Mutex
	spoil func(store.Txn) (after bool, err error) // guarded by mu; err is returned, after the commit or instead of it
}

func (w *watched) Commit(ctx context.Context, t store.Txn) (store.Revision, error) {
	w.mu.Lock()
	spoil := w.spoil
	w.mu.Unlock()
	if spoil == nil {
		return w.Store.Commit(ctx, t)
	}
	after, err := spoil(t)
	if err != nil && !after {
		return store.Revision{}, err
	}
	at, commitErr := w.Store.Commit(ctx, t)
	if commitErr == nil && err != nil {
		return store.Revision{}, err
	}
	return at, commitErr
}

func (w *watched) setSpoil(f func(store.Txn) (bool, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spoil = f
}

// world is a mesh whose first node leads in this process, by a real engine.
type world struct {
	*control.Controller
	t       testing.TB
	engine  *watched
	source  *state.Source
	clock   *clock
	trail   *trail
	founder *joiner
	admin   ed25519.PrivateKey         // ana's
	boot    keyring.ProvisioningSecret // control and proxy, 16 uses
	pin     [32]byte
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, clock: &clock{t: time.Now().UTC().Truncate(time.Second)}, trail: &trail{}}
	authority, caKey, err := keyring.NewAuthority(nil, w.clock.now(), "mesh.test")
	must(t, err)
	w.pin = keyring.Pin(authority.Certificate)
	w.boot, err = keyring.GenerateKey(w.pin, nil)
	must(t, err)
	key, err := keyring.IssueKey(keyring.BootstrapRequest(w.boot.PublicKey(), "init", w.clock.now()))
	must(t, err)
	w.founder = newJoiner(t, w.boot, "founder", "eu-west", iapmeshv1.Role_ROLE_CONTROL, iapmeshv1.Role_ROLE_PROXY)
	founder := &keyring.Node{
		ID: w.founder.id(), Name: "founder", Region: "eu-west", Roles: []keyring.Role{keyring.RoleControl, keyring.RoleProxy},
		Addresses: keyring.Addresses{Mesh: "127.0.0.1:1"}, PublicKey: public(w.founder.node), SealingPublicKey: w.founder.sealing.PublicKey(),
		SessionPublicKey: public(w.founder.session), ProvisioningKey: key.ID, BoundKey: key.ID, State: keyring.NodeActive, JoinID: "00",
		EnrolledAt: w.clock.now(), StateSince: w.clock.now(), CertExpiresAt: w.clock.now().Add(keyring.NodeCertLife),
	}
	w.admin = newKey(t)
	admin, err := keyring.NewAdmin("ana", public(w.admin), w.clock.now())
	must(t, err)

	dir := t.TempDir()
	sealer, err := seal.Create(t.Context(), dir, []string{seal.KeyFileURL(filepath.Join(dir, "seal.key"))})
	must(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	engine, err := raftstore.Open(raftstore.Config{
		Dir: filepath.Join(dir, "raft"), NodeID: founder.ID, Transport: alone{listener}, Seal: sealer, Bootstrap: true, Heartbeat: 100 * time.Millisecond,
		Lease: 80 * time.Millisecond, DiskStall: time.Hour, // no test is of the disk
	})
	must(t, err)
	w.engine = &watched{Store: engine}
	w.run(engine.Run)
	found := control.Founding{
		Mesh: keyring.Mesh{ID: "m-1", TrustDomain: "mesh.test", FoundedAt: w.clock.now()}, Authority: &authority, AuthorityKey: caKey,
		Node: founder, SealingKey: w.founder.sealing, Admin: &admin, Keys: []keyring.Key{key},
	}
	lead, stop := context.WithTimeout(t.Context(), patience)
	err = errors.New("the engine does not lead")
	_ = engine.Lead(lead, func(ctx context.Context, _ store.Term) error {
		defer stop()
		err = control.Found(ctx, engine, found)
		if again := control.Found(ctx, engine, found); !fault.Is(again, fault.Conflict) {
			t.Errorf("found twice: %v", again)
		}
		return err
	})
	must(t, err)

	w.source = state.NewSource(engine, slog.New(slog.DiscardHandler))
	w.run(w.source.Run)
	w.Controller = w.controller()
	return w
}

func (w *world) controller() *control.Controller {
	return control.New(control.Config{
		NodeID: w.founder.id(), Store: w.engine, Source: w.source, Secrets: seal.Member{Node: w.founder.id(), Key: w.founder.sealing},
		Epochs: w.engine, Leader: func() (string, string) { return "n-other", "127.0.0.1:2" }, Trail: w.trail, Logger: slog.New(slog.DiscardHandler),
		Now: w.clock.now, Tick: 20 * time.Millisecond,
	})
}

// start lets the controller lead.
func (w *world) start() *world {
	w.t.Helper()
	w.run(w.Controller.Run)
	w.awaitLead(w.Controller)
	return w
}

// lead lets a controller lead until stop.
func (w *world) lead(c *control.Controller) (stop func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	w.awaitLead(c)
	return func() { cancel(); <-done }
}

func (w *world) awaitLead(c *control.Controller) {
	w.t.Helper()
	w.eventually("the lead", func() bool { term, _ := c.Leading(); return term != 0 && w.source.Load() != nil })
}

func start(t testing.TB) *world { t.Helper(); return newWorld(t).start() }

func (w *world) run(f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			w.t.Errorf("run: %v", err)
		}
	})
}

// eventually waits for what stays once it has come about, since a look at it may come at any time; and whoever needs what was seen
// then takes it from that look, since the leader goes on.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	deadline, tick := time.After(patience), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("no %s within %v", what, patience)
		}
	}
}

func (w *world) view() *state.View { return w.source.Load() }

func (w *world) key(id string) *keyring.Key { return w.view().Keyring.Keys[id] }

func (w *world) node(j *joiner) *keyring.Node { return w.view().Keyring.Nodes[j.id()] }

// written is the revision at which a record was last written; the leader's own duties write others all the while.
func (w *world) written(path string) store.Revision {
	w.t.Helper()
	e, err := w.engine.Get(w.t.Context(), path)
	must(w.t, err)
	return e.Revision
}

// pass lets time go by, in which all report but some: never so long at once that the leader could take another for silent in between.
func (w *world) pass(d time.Duration, without ...*joiner) {
	for d > 0 {
		step := min(d, keyring.LapseAfter/2)
		w.clock.advance(step)
		w.everybodyReports(without...)
		d -= step
	}
}

// settled lets the leader come round: what it would do by now, it has done. It prunes a revocation in the middle of a round: all that
// comes after lies between two of these, and all that comes before, too.
func (w *world) settled() {
	w.t.Helper()
	const value = "is-over"
	for range 2 {
		w.write(state.PutRevocation(&keyring.Revocation{Kind: keyring.RevokeSession, Value: value, At: w.clock.now(), ExpiresAt: w.clock.now()}))
		w.eventually("a round of the leader", func() bool { return w.view().Keyring.Revocations[keyring.RevokeSession][value] == nil })
	}
}

// everybodyReports lets every trusted node, but those left out, say that it serves the newest view.
func (w *world) everybodyReports(without ...*joiner) { w.everybodyReportsOf(w.view(), without...) }

func (w *world) everybodyReportsOf(v *state.View, without ...*joiner) {
	for id, n := range v.Keyring.Nodes {
		silent := !n.Trusted()
		for _, j := range without {
			silent = silent || j.id() == id
		}
		if !silent {
			w.Reports.Set(id, &iapmeshv1.NodeReport{Revision: state.RevisionProto(v.Revision)})
		}
	}
}

// issue makes a provisioning key by the API.
func (w *world) issue(adjust func(*iapmeshv1.IssueKeyRequest)) keyring.ProvisioningSecret {
	w.t.Helper()
	secret, err := keyring.GenerateKey(w.pin, nil)
	must(w.t, err)
	req := &iapmeshv1.IssueKeyRequest{PublicKey: secret.PublicKey(), Name: "key-" + secret.ID()[:8], Grants: []iapmeshv1.Role{iapmeshv1.Role_ROLE_PROXY}, MaxUses: proto.Uint32(0)}
	if adjust != nil {
		adjust(req)
	}
	_, _, err = w.IssueKey(w.t.Context(), "admin/ana", req)
	must(w.t, err)
	return secret
}

// joiner is a node that joins: its keys are made once.
type joiner struct {
	t             testing.TB
	secret        keyring.ProvisioningSecret
	node, session ed25519.PrivateKey
	sealing       seal.SealingKey
	body          *iapmeshv1.JoinBody
	source        netip.Addr
}

func newJoiner(t testing.TB, secret keyring.ProvisioningSecret, name, region string, roles ...iapmeshv1.Role) *joiner {
	t.Helper()
	j := &joiner{t: t, secret: secret, node: newKey(t), session: newKey(t), source: netip.MustParseAddr("192.0.2.7")}
	var err error
	j.sealing, err = seal.GenerateSealingKey()
	must(t, err)
	id := make([]byte, 16)
	rand.Read(id)
	if len(roles) == 0 {
		roles = []iapmeshv1.Role{iapmeshv1.Role_ROLE_PROXY}
	}
	j.body = &iapmeshv1.JoinBody{
		Version: 1, JoinId: id, KeyId: secret.ID(), SessionPublicKey: public(j.session), SealingPublicKey: j.sealing.PublicKey(),
		Name: name, Region: region, Roles: roles, Addresses: &iapmeshv1.Addresses{Mesh: "127.0.0.1:9"},
	}
	j.body.Csr, err = keyring.NewCSR(j.node)
	must(t, err)
	return j
}

func (j *joiner) id() string { return keyring.NodeID(public(j.node)) }

// attempt signs the body for a new connection.
func (j *joiner) attempt() control.JoinAttempt {
	j.t.Helper()
	a := control.JoinAttempt{Source: j.source}
	rand.Read(a.EKM[:])
	body, err := proto.Marshal(j.body)
	must(j.t, err)
	a.Request = &iapmeshv1.JoinRequest{Body: body}
	for signer, s := range map[keyring.JoinSigner]struct {
		key  ed25519.PrivateKey
		into *[]byte
	}{
		keyring.SignerProvisioning: {j.secret.PrivateKey(), &a.Request.ProvisioningSignature},
		keyring.SignerNode:         {j.node, &a.Request.NodeSignature},
		keyring.SignerSession:      {j.session, &a.Request.SessionSignature},
	} {
		*s.into, err = keyring.SignJoin(signer, s.key, a.EKM, body)
		must(j.t, err)
	}
	return a
}

// joined is a node that has joined and confirmed.
func (w *world) joined(secret keyring.ProvisioningSecret, name, region string, roles ...iapmeshv1.Role) *joiner {
	w.t.Helper()
	j := newJoiner(w.t, secret, name, region, roles...)
	if _, err := w.Join(w.t.Context(), j.attempt()); err != nil {
		w.t.Fatal(err)
	}
	_, err := w.Confirm(w.t.Context(), j.id())
	must(w.t, err)
	return j
}

// opens reports whether a node can open the audience as it is now.
func (w *world) opens(j *joiner, audience string) bool {
	a := w.view().Keyring.Audiences[audience]
	if a == nil {
		return false
	}
	_, err := seal.OpenAudience(*a, j.id(), j.sealing)
	return err == nil
}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, k, err := ed25519.GenerateKey(nil)
	must(t, err)
	return k
}

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantKind checks that an error is of a kind and says what it should.
func wantKind(t testing.TB, what string, err error, kind fault.Kind, says string) {
	t.Helper()
	if !fault.Is(err, kind) || !strings.Contains(fmt.Sprint(err), says) {
		t.Errorf("%s: %v, want %v, with %q", what, err, kind, says)
	}
}

func after(a, b revision.Revision) bool { return b.Before(a) }
