package rotate_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/rotate"
	"github.com/iapmesh/iapmesh/node/sink"
)

const (
	period = 24 * time.Hour
	grace  = time.Hour
)

// world is a mesh whose leader decides by the rules, without a network; its rotator is real.
type world struct {
	failing func() []rotate.Failure // of the rotator that was started last
	t       *testing.T
	dir     string
	sealer  *seal.Sealer
	node    keyring.Node
	log     logged
	metrics *prometheus.Registry

	mu      sync.Mutex
	keys    *keyring.Snapshot // guarded by mu; replaced, never changed
	changed chan struct{}     // guarded by mu
	fail    map[string]error  // by step; guarded by mu
	behind  bool              // the view shows nothing new; guarded by mu
	next    *keyring.Snapshot // what the leader has; guarded by mu

	kept []string // by the sink, newest last; guarded by mu
}

// logged is what was logged.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), changed: make(chan struct{}), fail: map[string]error{}, metrics: prometheus.NewRegistry()}
	var err error
	w.sealer, err = seal.Create(t.Context(), w.dir, []string{seal.KeyFileURL(filepath.Join(w.dir, "seal.key"))})
	must(t, err)
	authority, _, err := keyring.NewAuthority(nil, time.Now(), "mesh.test")
	must(t, err)
	authority.State = keyring.AuthorityActive
	public, _, _ := ed25519.GenerateKey(nil)
	w.node = keyring.Node{ID: keyring.NodeID(public), Name: "rotator", State: keyring.NodeActive}
	first, err := keyring.GenerateKey(keyring.Pin(authority.Certificate), nil)
	must(t, err)
	k, err := keyring.IssueKey(keyring.KeyRequest{PublicKey: first.PublicKey(), Name: "edge", Grants: []keyring.Role{keyring.RoleProxy}, TTL: 4 * period, Now: time.Now()})
	must(t, err)
	k, err = keyring.ScheduleKey(k, keyring.Schedule{Every: period, Grace: grace, Rotator: w.node.ID}, &w.node)
	must(t, err)
	w.keys = &keyring.Snapshot{Contents: keyring.Contents{
		Keys: map[string]*keyring.Key{k.ID: &k}, Authorities: map[string]*keyring.Authority{authority.Serial: &authority},
	}}
	w.next = w.keys
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// put is a commit.
func (w *world) put(keys ...*keyring.Key) {
	next := *w.next
	next.Keys = maps.Clone(next.Keys)
	for _, k := range keys {
		if k != nil {
			next.Keys[k.ID] = k
		}
	}
	w.next = &next
	if !w.behind {
		w.show()
	}
}

func (w *world) show() {
	w.keys = w.next
	close(w.changed)
	w.changed = make(chan struct{})
}

// change is what an operator does to the key that is in use.
func (w *world) change(f func(k keyring.Key) (keyring.Key, error)) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	k, err := w.next.FindKey("edge")
	must(w.t, err)
	after, err := f(*k)
	must(w.t, err)
	w.put(&after)
}

func (w *world) setFail(step string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail[step] = err
}

func (w *world) current() keyring.Key {
	w.mu.Lock()
	defer w.mu.Unlock()
	k, err := w.next.FindKey("edge")
	must(w.t, err)
	return *k
}

func (w *world) proposals() (open, revoked int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range w.next.Keys {
		switch {
		case k.Proposed():
			open++
		case k.ProposedBy != "" && k.State == keyring.KeyRevoked:
			revoked++
		}
	}
	return open, revoked
}

// ProposeSuccessor is the leader's.
func (w *world) ProposeSuccessor(_ context.Context, key string, public ed25519.PublicKey) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.fail["propose"]; err != nil {
		return err
	}
	next, replaced, err := keyring.ProposeSuccessor(*w.next.Keys[key], keyring.ProposalRequest{SuccessorPublicKey: public, By: w.node, Open: w.next.OpenProposal(key), Now: time.Now()})
	if err != nil {
		return err
	}
	w.put(&next, replaced)
	return w.fail["propose: lost answer"]
}

// CompleteRotation is the leader's.
func (w *world) CompleteRotation(_ context.Context, key, successor string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.fail["complete"]; err != nil {
		return err
	}
	before, after, err := keyring.CompleteRotation(*w.next.Keys[key], *w.next.Keys[successor], keyring.CompletionRequest{By: w.node, Now: time.Now()})
	if err != nil {
		return err
	}
	w.put(&before, &after)
	return w.fail["complete: lost answer"]
}

// Put is the sink's.
func (w *world) Put(_ context.Context, secret keyring.ProvisioningSecret) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.fail["sink"]; err != nil {
		return err
	}
	w.kept = append(w.kept, secret.String())
	return w.fail["sink: lost answer"]
}

func (w *world) sunk() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.kept)
}

// start runs the rotator until stop.
func (w *world) start() (stop func()) {
	w.t.Helper()
	var registry prometheus.Registerer
	if w.metrics != nil {
		registry = w.metrics
		w.metrics = nil
	}
	r, err := rotate.New(rotate.Config{
		Node: w.node.ID, Jobs: []rotate.Job{{Key: "edge", Kind: sink.KindFile, Sink: w}}, Leader: w, Sealer: w.sealer, Dir: filepath.Join(w.dir, "rotate"),
		Keyring:   func() *keyring.Snapshot { w.mu.Lock(); defer w.mu.Unlock(); return w.keys },
		Changed:   func() <-chan struct{} { w.mu.Lock(); defer w.mu.Unlock(); return w.changed },
		WriteFile: func(path string, data []byte) error { return os.WriteFile(path, data, 0o600) }, Now: time.Now,
		Logger: slog.New(slog.NewTextHandler(&w.log, nil)), Registerer: registry,
	})
	must(w.t, err)
	w.failing = r.Failing
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	return func() {
		cancel()
		must(w.t, <-ended)
	}
}

// onDisk are the names of the secrets that wait on disk; none of them may be readable there.
func (w *world) onDisk() []string {
	w.t.Helper()
	entries, err := os.ReadDir(filepath.Join(w.dir, "rotate"))
	must(w.t, err)
	var names []string
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(w.dir, "rotate", e.Name()))
		must(w.t, err)
		w.closed(e.Name(), data)
		names = append(names, e.Name())
	}
	return names
}

// closed checks that what waits on disk is a secret for whoever has the seal, and for nobody else: not in its written form, not in that of
// the key itself, and not by another seal.
func (w *world) closed(name string, data []byte) {
	w.t.Helper()
	context := []byte("iapmesh/rotate/v1/" + w.node.ID + "/" + strings.TrimSuffix(name, ".sealed"))
	opened, err := w.sealer.Open(data, context)
	must(w.t, err)
	var e struct{ Secret string }
	must(w.t, json.Unmarshal(opened, &e))
	secret, err := keyring.ParseSecret(e.Secret)
	must(w.t, err)
	seed := secret.PrivateKey().Seed()
	for what, bytesOf := range map[string][]byte{
		"the prefix": []byte("iapk_"), "the body": []byte(e.Secret[len("iapk_")+17:]), "the seed": seed, "the seed in hex": []byte(hex.EncodeToString(seed)),
		"the seed in base64": []byte(base64.RawStdEncoding.EncodeToString(seed)), "the public half": secret.PublicKey(),
	} {
		if bytes.Contains(data, bytesOf) {
			w.t.Errorf("%s holds %s of a secret in the clear", name, what)
		}
	}
	own := w.t.TempDir()
	thief, err := seal.Create(w.t.Context(), own, []string{seal.KeyFileURL(filepath.Join(own, "seal.key"))})
	must(w.t, err)
	if _, err := thief.Open(data, context); err == nil {
		w.t.Errorf("%s opens by another seal", name)
	}
	if _, err := w.sealer.Open(data, []byte("iapmesh/rotate/v1/"+w.node.ID+"/")); err == nil {
		w.t.Errorf("%s opens as another key's", name)
	}
}

// rotated checks that first was succeeded by the one key that the sink holds, and that nothing is left over.
func (w *world) rotated(first keyring.Key) {
	w.t.Helper()
	w.mu.Lock()
	before := *w.next.Keys[first.ID]
	w.mu.Unlock()
	after, kept := w.current(), w.sunk()
	if before.State != keyring.KeyRetiring || before.Successor != after.ID || after.State != keyring.KeyActive {
		w.t.Fatalf("%s is %s, its successor %s is %s", before.ID, before.State, after.ID, after.State)
	}
	secret, err := keyring.ParseSecret(kept[len(kept)-1])
	if err != nil || secret.ID() != after.ID {
		w.t.Errorf("the sink holds %s (%v), the mesh %s", secret.ID(), err, after.ID)
	}
	if open, _ := w.proposals(); open != 0 {
		w.t.Errorf("%d proposals are open", open)
	}
	if left := w.onDisk(); len(left) != 0 {
		w.t.Errorf("left on disk: %v", left)
	}
	for _, s := range kept {
		if _, body, _ := strings.Cut(strings.TrimPrefix(s, "iapk_"), "_"); strings.Contains(w.log.String(), body) {
			w.t.Error("the log holds a secret")
		}
	}
}
