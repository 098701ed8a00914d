package rotate_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/rotate"
	"github.com/iapmesh/iapmesh/node/sink"
)

const (
	week  = 7 * 24 * time.Hour
	grace = time.Hour
)

// world is a mesh whose leader decides by the rules, without a network; its rotator is real.
type world struct {
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
	k, err := keyring.IssueKey(keyring.KeyRequest{PublicKey: first.PublicKey(), Name: "edge", Grants: []keyring.Role{keyring.RoleProxy}, TTL: 4 * week, Now: time.Now()})
	must(t, err)
	k, err = keyring.ScheduleKey(k, keyring.Schedule{Every: week, Grace: grace, Rotator: w.node.ID}, &w.node)
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
		if bytes.Contains(data, []byte("iapk_")) {
			w.t.Errorf("%s holds a secret in the clear", e.Name())
		}
		names = append(names, e.Name())
	}
	return names
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

func TestAKeyIsRotatedWhenItsTimeComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.current()
		defer w.start()()
		time.Sleep(week - time.Minute)
		if len(w.sunk()) != 0 || w.current().ID != first.ID {
			t.Fatal("rotated before its time")
		}
		time.Sleep(2 * time.Minute)
		w.rotated(first)
		second := w.current()
		time.Sleep(week)
		w.rotated(second)
		if len(w.sunk()) != 2 {
			t.Errorf("the sink took %d secrets, want 2", len(w.sunk()))
		}
	})
}

func TestAnOperatorAsksForARotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.current()
		defer w.start()()
		time.Sleep(time.Hour)
		w.change(keyring.RequestKeyRotation)
		time.Sleep(time.Second)
		w.rotated(first)
	})
}

func TestAKeyThatExpiredWhileTheNodeWasOffIsRotated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.current()
		time.Sleep(10 * week)
		w.change(func(k keyring.Key) (keyring.Key, error) { k, _ = keyring.SweepKey(k, time.Now()); return k, nil })
		if w.current().State != keyring.KeyExpired {
			t.Fatal("the key has not expired")
		}
		defer w.start()()
		time.Sleep(time.Second)
		w.rotated(first)
	})
}

// A sink that fails leaves the predecessor as it was, and the successor admits nobody; once it works, the same secret goes there.
func TestASinkThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		metrics := w.metrics
		first := w.current()
		w.setFail("sink", errors.New("disk full"))
		defer w.start()()
		time.Sleep(week + time.Hour)
		if k := w.current(); k.ID != first.ID || k.State != keyring.KeyActive || k.Successor != "" {
			t.Fatalf("the predecessor is %s, successor %q", k.State, k.Successor)
		}
		open, revoked := w.proposals()
		if open != 1 || revoked != 0 || len(w.onDisk()) != 1 {
			t.Fatalf("%d proposals open, %d revoked, %v on disk: want one, which waits", open, revoked, w.onDisk())
		}
		if !strings.Contains(w.log.String(), "disk full") {
			t.Error("the log does not say why")
		}
		got, err := testutil.GatherAndCount(metrics, "iapmesh_key_rotation_failures_total")
		if err != nil || got != 1 {
			t.Errorf("failures: %d series, %v", got, err)
		}
		if err := testutil.GatherAndCompare(metrics, strings.NewReader(`
# HELP iapmesh_key_rotation_overdue_seconds For how long a key that this node rotates has been due; 0: it is not.
# TYPE iapmesh_key_rotation_overdue_seconds gauge
iapmesh_key_rotation_overdue_seconds{key="edge"} 3600
`), "iapmesh_key_rotation_overdue_seconds"); err != nil {
			t.Error(err)
		}
		if n := strings.Count(w.log.String(), "put off"); n < 40 || n > 90 {
			t.Errorf("%d attempts in an hour: want them to grow rarer, and not to end", n)
		}
		w.setFail("sink", nil)
		time.Sleep(10 * time.Minute)
		w.rotated(first)
	})
}

// The node may stop, or an answer get lost, between any two steps; the next process goes on with the same secret.
func TestARestartBetweenTheSteps(t *testing.T) {
	for _, at := range []string{"propose", "propose: lost answer", "sink", "sink: lost answer", "complete", "complete: lost answer"} {
		t.Run(at, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				first := w.current()
				w.setFail(at, fault.New(fault.Unavailable, "gone"))
				stop := w.start()
				time.Sleep(week + 10*time.Second)
				stop()
				if at != "complete: lost answer" && len(w.onDisk()) != 1 {
					t.Fatalf("on disk: %v, want the secret", w.onDisk())
				}
				w.setFail(at, nil)
				stop = w.start()
				time.Sleep(10 * time.Second)
				stop()
				defer w.start()() // once more, with nothing to do
				time.Sleep(10 * time.Second)
				w.rotated(first)
				for _, s := range w.sunk() {
					if s != w.sunk()[0] {
						t.Error("the sink took two secrets for one rotation")
					}
				}
				if _, revoked := w.proposals(); revoked != 0 {
					t.Errorf("%d proposals were given up", revoked)
				}
			})
		})
	}
}

func TestAViewThatLagsMakesNoSecondSuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.current()
		w.behind = true
		defer w.start()()
		time.Sleep(week + 10*time.Minute)
		if strings.Contains(w.log.String(), "put off") || len(w.onDisk()) != 0 {
			t.Error("it went on with a rotation that is complete")
		}
		w.mu.Lock()
		w.behind = false
		w.show()
		w.mu.Unlock()
		time.Sleep(10 * time.Minute)
		w.rotated(first)
		if len(w.sunk()) != 1 {
			t.Errorf("the sink took %d secrets", len(w.sunk()))
		}
	})
}

// Somebody may have to agree to a key before it is completed: until then the sink is left alone.
func TestACompletionThatMustWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.current()
		w.setFail("complete", fault.New(fault.Conflict, "it waits for a second administrator"))
		defer w.start()()
		time.Sleep(week + time.Hour)
		if w.current().ID != first.ID || len(w.sunk()) != 1 || len(w.onDisk()) != 1 {
			t.Errorf("the sink took %d secrets, on disk: %v", len(w.sunk()), w.onDisk())
		}
		w.setFail("complete", nil)
		time.Sleep(2 * time.Minute)
		w.rotated(first)
		if len(w.sunk()) != 1 {
			t.Errorf("the sink took %d secrets", len(w.sunk()))
		}
	})
}

// What ends a rotation that is under way, and what becomes of its secret.
func TestWhatEndsARotation(t *testing.T) {
	other := keyring.Node{ID: "n-other", State: keyring.NodeActive}
	for name, tc := range map[string]struct {
		change func(k keyring.Key) (keyring.Key, error)
		onDisk int
	}{
		"the key is revoked": {func(k keyring.Key) (keyring.Key, error) {
			after, _, err := keyring.RevokeKey(k, nil, keyring.RevokeRequest{Cascade: keyring.CascadeKeep, Now: time.Now()})
			return after, err
		}, 0},
		"its schedule is taken away": {func(k keyring.Key) (keyring.Key, error) { return keyring.ScheduleKey(k, keyring.Schedule{}, nil) }, 0},
		"another node is named": {func(k keyring.Key) (keyring.Key, error) {
			return keyring.ScheduleKey(k, keyring.Schedule{Every: week, Rotator: other.ID}, &other)
		}, 0},
		"the key is suspended": {func(k keyring.Key) (keyring.Key, error) { return keyring.SuspendKey(k, "") }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				first := w.current()
				w.setFail("complete", fault.New(fault.Unavailable, "no leader"))
				defer w.start()()
				time.Sleep(week + time.Second)
				w.change(tc.change)
				w.setFail("complete", nil)
				time.Sleep(time.Hour)
				if k := w.current(); k.ID != first.ID || k.Successor != "" {
					t.Errorf("it was rotated all the same: %+v", k)
				}
				if got := w.onDisk(); len(got) != tc.onDisk {
					t.Errorf("on disk: %v, want %d", got, tc.onDisk)
				}
			})
		})
	}
}

func TestASecretThatIsLostWithTheDiskIsMadeAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.current()
		w.setFail("sink", errors.New("away"))
		stop := w.start()
		time.Sleep(week + time.Second)
		stop()
		for _, name := range w.onDisk() {
			must(t, os.WriteFile(filepath.Join(w.dir, "rotate", name), []byte("damaged"), 0o600))
		}
		w.setFail("sink", nil)
		defer w.start()()
		time.Sleep(time.Second)
		w.rotated(first)
		if open, revoked := w.proposals(); open != 0 || revoked != 1 {
			t.Errorf("%d proposals open, %d revoked: want the lost one revoked", open, revoked)
		}
	})
}

func TestAJobThatIsConfiguredNoMoreLeavesNoSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.setFail("sink", errors.New("away"))
		stop := w.start()
		time.Sleep(week + time.Second)
		stop()
		if len(w.onDisk()) != 1 {
			t.Fatal("no secret to lose")
		}
		r, err := rotate.New(rotate.Config{
			Node: w.node.ID, Leader: w, Sealer: w.sealer, Dir: filepath.Join(w.dir, "rotate"), Logger: slog.New(slog.DiscardHandler),
			Jobs: []rotate.Job{{Key: "another", Sink: w}}, Now: time.Now,
			Keyring: func() *keyring.Snapshot { return nil }, Changed: func() <-chan struct{} { return nil },
		})
		must(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		must(t, r.Run(ctx))
		if left := w.onDisk(); len(left) != 0 {
			t.Errorf("left on disk: %v", left)
		}
	})
}
