package session_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/session"
	"github.com/iapmesh/iapmesh/node/state"
)

// leader is what the mesh does with announcements: keyring's own rules over the mesh's records. It is also the KeyViews that
// follow.
type leader struct {
	m       *mesh
	mu      sync.Mutex
	changed chan struct{}
	down    error // answered instead; guarded by mu
	asked   int   // guarded by mu
}

func newLeader(m *mesh) *leader { return &leader{m: m, changed: make(chan struct{})} }

func (l *leader) Load() *state.View {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.m.view
}

func (l *leader) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// commit changes records as the leader would.
func (l *leader) commit(change func(c *keyring.Contents)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.commitLocked(change)
}

func (l *leader) commitLocked(change func(c *keyring.Contents)) {
	l.m.commit(change)
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *leader) AnnounceSigningKey(_ context.Context, kid string, pub ed25519.PublicKey, proof []byte) (revision.Revision, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	if l.down != nil {
		return revision.Revision{}, l.down
	}
	if !ed25519.Verify(pub, keyring.AnnouncementMessage("eu"), proof) {
		return revision.Revision{}, fault.New(fault.Unauthenticated, "proof")
	}
	record, err := keyring.AnnounceSessionKey(*l.m.records.Nodes["eu"], pub, l.m.records.SigningKeys, time.Now())
	if err != nil {
		return revision.Revision{}, err
	}
	if record.KID != kid {
		return revision.Revision{}, fault.New(fault.Invalid, "kid %s, want %s", kid, record.KID)
	}
	l.commitLocked(func(c *keyring.Contents) {
		record.Revision = l.m.at
		c.SigningKeys[kid] = &record
	})
	return l.m.at, nil
}

func (l *leader) times() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked
}

// of returns the kids of eu's session keys in a state.
func (l *leader) of(s keyring.SigningState) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var kids []string
	for kid, k := range l.m.records.SigningKeys {
		if k.Node == "eu" && k.State == s {
			kids = append(kids, kid)
		}
	}
	return kids
}

func (l *leader) promote(kid string) {
	l.commit(func(c *keyring.Contents) {
		changed, err := keyring.Promote(*c.SigningKeys[kid], c.SigningKeys, time.Now())
		if err != nil {
			l.m.t.Error(err)
		}
		for i := range changed {
			c.SigningKeys[changed[i].KID] = &changed[i]
		}
	})
}

// rotating is a mesh within a synctest bubble whose node "eu" runs its keys.
type rotating struct {
	*leader
	dir  string
	keys *session.Keys
	stop func()
}

func startRotation(t *testing.T) *rotating {
	m := newMesh(t)
	m.now = time.Now()
	for _, k := range m.records.SigningKeys {
		k.ActiveAt = m.now
	}
	r := &rotating{leader: newLeader(m), dir: t.TempDir()}
	r.open(t)
	if err := r.keys.Add(m.private["eu"], m.records.SigningKeys[m.kid("eu")].Revision); err != nil {
		t.Fatal(err)
	}
	r.start(t)
	return r
}

func (r *rotating) open(t *testing.T) {
	keys, err := session.OpenKeys(session.KeysConfig{Node: "eu", Dir: r.dir, Sealer: sealer{}, Announcer: r.leader, Views: r.leader})
	if err != nil {
		t.Fatal(err)
	}
	r.keys = keys
}

func (r *rotating) start(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.keys.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	r.stop = func() { cancel(); wg.Wait() }
	synctest.Wait()
}

// signs returns the kid that a session is signed with now.
func (r *rotating) signs(t *testing.T) string {
	t.Helper()
	_, s, err := session.NewMinter(r.keys, nil).Mint(r.Load(), session.Grant{Identity: ana()})
	if err != nil {
		t.Fatal(err)
	}
	return s.KID
}

func (r *rotating) onDisk(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(r.dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range files {
		files[i] = filepath.Base(f)
	}
	return files
}

// announced → active → the old one verifies, then retires: at no time can the node not sign, and no private half is left behind.
func TestARotation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRotation(t)
		defer func() { r.stop() }()
		first := r.signs(t)
		time.Sleep(23 * time.Hour)
		if got := r.of(keyring.SigningAnnounced); len(got) != 0 {
			t.Fatalf("announced early: %v", got)
		}
		time.Sleep(time.Hour + time.Second)
		synctest.Wait()
		next := r.of(keyring.SigningAnnounced)
		if len(next) != 1 || r.signs(t) != first {
			t.Fatalf("announced %v, signs with %s", next, r.signs(t))
		}
		time.Sleep(time.Hour)
		if r.times() != 1 {
			t.Errorf("asked %d times while one is announced", r.times())
		}
		r.promote(next[0])
		synctest.Wait()
		if got := r.signs(t); got != next[0] {
			t.Errorf("signs with %s, want %s", got, next[0])
		}
		r.commit(func(c *keyring.Contents) {
			k := *c.SigningKeys[first]
			k.State = keyring.SigningRetired
			c.SigningKeys[first] = &k
		})
		synctest.Wait()
		if got := r.onDisk(t); len(got) != 1 || got[0] != next[0]+".key" {
			t.Errorf("on disk: %v", got)
		}
	})
}

func TestWhatAsksForASuccessor(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(r *rotating, k *keyring.SigningKey){
		"an operator's rotation": func(_ *rotating, k *keyring.SigningKey) { k.RotateRequested = true },
		"a revoked key":          func(_ *rotating, k *keyring.SigningKey) { k.State = keyring.SigningRevoked },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startRotation(t)
				defer func() { r.stop() }()
				first := r.signs(t)
				r.commit(func(c *keyring.Contents) {
					k := *c.SigningKeys[first]
					change(r, &k)
					c.SigningKeys[first] = &k
				})
				synctest.Wait()
				if got := append(r.of(keyring.SigningAnnounced), r.of(keyring.SigningActive)...); r.times() != 1 {
					t.Errorf("asked %d times; %v", r.times(), got)
				}
				r.signs(t) // a revoked key's successor signs at once
			})
		})
	}
}

// A leader that is away is asked again, for the same key, also after a restart.
func TestALeaderThatIsAwayIsAskedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRotation(t)
		defer func() { r.stop() }()
		first := r.signs(t)
		r.mu.Lock()
		r.down = errors.New("no leader")
		r.mu.Unlock()
		time.Sleep(24*time.Hour + 10*time.Minute)
		files := r.onDisk(t)
		if n := r.times(); len(files) != 2 || n < 5 || n > 60 {
			t.Fatalf("%v on disk, asked %d times in ten minutes", files, n)
		}
		r.stop()
		r.open(t)
		r.mu.Lock()
		r.down = nil
		r.mu.Unlock()
		r.start(t)
		next := r.of(keyring.SigningAnnounced)
		if len(next) != 1 || len(r.onDisk(t)) != 2 || !bytes.Contains([]byte(files[0]+files[1]), []byte(next[0])) {
			t.Errorf("announced %v, had %v", next, files)
		}
		if r.signs(t) != first {
			t.Error("signs with a key that is only announced")
		}
	})
}

// The state was restored from before the key: its private half goes, and the node asks for a new one.
func TestAKeyThatTheStateForgot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRotation(t)
		defer func() { r.stop() }()
		first := r.signs(t)
		r.commit(func(c *keyring.Contents) { delete(c.SigningKeys, first) })
		synctest.Wait()
		active := r.of(keyring.SigningActive)
		if len(active) != 1 || active[0] == first || r.signs(t) != active[0] || len(r.onDisk(t)) != 1 {
			t.Errorf("active %v, on disk %v", active, r.onDisk(t))
		}
	})
}

func TestPrivateHalvesOnDisk(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	dir := filepath.Join(t.TempDir(), "session-keys")
	open := func(node string) (*session.Keys, error) {
		return session.OpenKeys(session.KeysConfig{Node: node, Dir: dir, Sealer: sealer{}})
	}
	keys, err := open("eu")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := keys.Add(m.private["eu"], m.at); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, m.kid("eu")+".key")
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info.Mode(), err)
	}
	content, err := os.ReadFile(path)
	if err != nil || bytes.Contains(content, m.private["eu"].Seed()) || bytes.Contains(content, []byte(`"version":1`)) {
		t.Error("not sealed")
	}
	reopened, err := open("eu")
	if err != nil {
		t.Fatal(err)
	}
	if _, s, err := session.NewMinter(reopened, m.clock).Mint(m.view, session.Grant{Identity: ana()}); err != nil || s.KID != m.kid("eu") {
		t.Errorf("after a restart: %v", err)
	}
	if _, err := open("bill"); err == nil {
		t.Error("another node's file opened")
	}
	moved := filepath.Join(dir, m.kid("bill")+".key")
	if err := os.Rename(path, moved); err != nil {
		t.Fatal(err)
	}
	if _, err := open("eu"); err == nil {
		t.Error("a file under another name opened")
	}
	if err := os.Remove(moved); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".new-1"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open("eu"); err != nil {
		t.Errorf("a torn file of a crash: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestOnlyAProxyAsksForKeys(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRotation(t)
		defer func() { r.stop() }()
		r.commit(func(c *keyring.Contents) {
			c.SigningKeys = maps.Clone(c.SigningKeys)
			n := *c.Nodes["eu"]
			n.State = keyring.NodeQuarantined
			c.Nodes["eu"] = &n
		})
		time.Sleep(48 * time.Hour)
		if r.times() != 0 {
			t.Errorf("a quarantined node asked %d times", r.times())
		}
	})
}
