// Package nodetest runs a whole mesh in one process, for tests that read as their scenario: real nodes with real TLS, raft and
// disks on loopback, a real OpenID provider and a real application, and a network between regions that the test cuts and heals.
//
//	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
//	ana := mesh.In("eu-west").SignIn("ana@example.com")
//	mesh.Cut("us-east")
//	mesh.In("eu-west").Revoke(ana)
//	mesh.In("us-east").Serves(ana, http.StatusOK) // cut off: it cannot know
//	mesh.Heal("us-east")
//	mesh.In("us-east").EventuallyRefuses(ana)
package nodetest

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/profile"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node"
)

// Patience bounds every wait: long enough for a machine that stands still for seconds, more than once, and for the elections and the 15 s
// of doubt of a new leader that this brings; never reached by a mesh that works.
const Patience = 2 * time.Minute

// unhurried is how often to ask where each question costs something.
const unhurried = 250 * time.Millisecond

// Mesh is a mesh under test. Its nodes end with the test.
type Mesh struct {
	t       testing.TB
	dir     string
	network *network
	ports   *ports
	world   *world
	offset  atomic.Int64 // of every node's clock from the real one
	drift   atomic.Int64 // the same, of those that run already, too
	founded *node.Founded
	keyFile string
	regions map[string]*Region
	order   []string
	joiners map[string]node.Config // TryJoin's, by name
}

// Region is one node, and the user's way in there.
type Region struct {
	mesh   *Mesh
	Name   string
	config node.Config
	stop   func()
	starts int           // how often it was started
	from   string        // the loopback address that it comes from; empty: any
	over   chan struct{} // closed when the node has ended
	ended  error         // why; set before over closes
}

// Start founds a mesh with a node of roles control and proxy in each region, the first an aggregator as well, and waits until
// all serve one configuration and vote.
func Start(t testing.TB, regions ...string) *Mesh {
	t.Helper()
	m := &Mesh{t: t, dir: t.TempDir(), network: newNetwork(), ports: reservePorts(t), regions: map[string]*Region{}, order: regions, joiners: map[string]node.Config{}}
	m.world = newWorld(m)
	for i, name := range regions {
		m.regions[name] = &Region{mesh: m, Name: name, config: m.config(name, i)}
		m.world.admit(m.regions[name])
	}
	m.world.startApplication()
	first := m.regions[regions[0]]
	founded, err := node.Init(t.Context(), node.InitConfig{Config: first.config, TrustDomain: "mesh.test", Admin: "root", Logger: m.logger()})
	m.must("found", err)
	m.founded = founded
	m.useKey("bootstrap", founded.Bootstrap)
	for _, name := range regions[1:] {
		m.regions[name].joinBy(first)
	}
	for _, name := range regions {
		m.regions[name].Start()
	}
	for _, name := range regions {
		m.regions[name].AwaitReady()
	}
	applied := m.configure()
	m.AwaitVoters()
	m.AwaitReceipt(applied) // by now the leader has heard everybody: whom it had not heard before, it did not wait for
	return m
}

// useKey lets nodes that join from here on join by a key.
func (m *Mesh) useKey(name string, secret keyring.ProvisioningSecret) {
	m.t.Helper()
	m.keyFile = filepath.Join(m.dir, name+".key")
	m.must("write the key", os.WriteFile(m.keyFile, []byte(secret.String()), 0o600))
}

// In returns a region.
func (m *Mesh) In(region string) *Region {
	r := m.regions[region]
	if r == nil {
		m.t.Fatalf("no region %q among %v", region, slices.Sorted(maps.Keys(m.regions)))
	}
	return r
}

// Regions lists all, in the order in which they were started.
func (m *Mesh) Regions() []*Region {
	var out []*Region
	for _, name := range m.order {
		out = append(out, m.regions[name])
	}
	return out
}

// AddNode joins a node of the given roles by the bootstrap key, and returns it as a region of its own name.
func (m *Mesh) AddNode(name string, roles ...string) *Region {
	return m.AddNodeBy(m.regions[m.order[0]], name, roles...)
}

// AddNodeBy is AddNode with another node to ask.
func (m *Mesh) AddNodeBy(known *Region, name string, roles ...string) *Region {
	return m.addNode(known, m.keyFile, name, roles)
}

// AddNodeWithKey is AddNode by another key than the bootstrap key, which lies in a file.
func (m *Mesh) AddNodeWithKey(keyFile, name string, roles ...string) *Region {
	return m.addNode(m.regions[m.order[0]], keyFile, name, roles)
}

func (m *Mesh) addNode(known *Region, keyFile, name string, roles []string) *Region {
	r := m.startNode(known, keyFile, name, roles)
	r.AwaitReady()
	return r
}

func (m *Mesh) startNode(known *Region, keyFile, name string, roles []string) *Region {
	r := &Region{mesh: m, Name: name, config: m.config(name, len(m.order))}
	r.config.Roles = roles
	r.joinBy(known)
	r.config.Join.Key.File = keyFile
	m.regions[name] = r
	m.order = append(m.order, name)
	m.world.admit(r)
	r.Start()
	return r
}

// AwaitReady waits until the node says that it is ready to serve.
func (r *Region) AwaitReady() {
	r.mesh.t.Helper()
	r.mesh.Eventually(r.Name+" is ready", func() bool {
		resp, err := http.Get("http://" + r.config.Listen.Ops + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// Cut separates a region's node from all others, in both directions; its users still reach it.
func (m *Mesh) Cut(region string) { m.network.cut(m.In(region).config.Listen.Mesh) }

// Heal undoes Cut.
func (m *Mesh) Heal(region string) { m.network.heal(m.In(region).config.Listen.Mesh) }

// MoveAway makes every new connection of a region with another take a while.
func (m *Mesh) MoveAway(region string) { m.network.moveAway(m.In(region).config.Listen.Mesh) }

// Advance moves the clock of nodes that are started from now on.
func (m *Mesh) Advance(d time.Duration) { m.offset.Add(int64(d)) }

// Drift moves the clock of every node, also of those that run.
func (m *Mesh) Drift(d time.Duration) { m.drift.Add(int64(d)) }

func (m *Mesh) now() time.Time {
	return time.Now().Add(time.Duration(m.offset.Load() + m.drift.Load()))
}

func (m *Mesh) logger() *slog.Logger {
	if os.Getenv("IAPMESH_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (m *Mesh) must(what string, err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("%s: %v", what, err)
	}
}

func (m *Mesh) config(name string, i int) node.Config {
	c := node.DefaultConfig()
	c.Name, c.Region, c.Roles, c.DataDir = name+"-1", name, []string{"control", "proxy"}, filepath.Join(m.dir, name)
	if i == 0 {
		c.Roles = append(c.Roles, "aggregator")
	}
	c.Listen = node.Listen{Mesh: m.ports.next(), Gossip: m.ports.next(), Proxy: m.ports.next(), Ops: m.ports.next()}
	c.TLS.Certificates = []node.CertificateFiles{m.world.certificate}
	c.Control.PromoteAfter = node.Duration(500 * time.Millisecond)
	c.Audit = node.Audit{SegmentBytes: 1 << 20, MaxBytes: 64 << 20}
	return c
}

func (r *Region) joinBy(first *Region) {
	r.config.Join = node.Join{Addresses: []string{first.config.Listen.Mesh}, Key: node.Credential{File: r.mesh.keyFile}}
}

// Start runs the node; it ends with the test, or by Stop.
func (r *Region) Start() {
	m := r.mesh
	offset := time.Duration(m.offset.Load())
	n, err := node.NewIn(context.WithoutCancel(m.t.Context()), r.config, node.Env{
		Logger: m.logger(), NetDial: m.network.dialFrom(r.config.Listen.Mesh, r.from), Now: func() time.Time { return time.Now().Add(offset + time.Duration(m.drift.Load())) },
	})
	m.must("open node "+r.Name, err)
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	r.starts++
	r.over, r.ended = over, nil
	go func() {
		r.ended = n.Run(ctx)
		close(over)
	}()
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		<-over
		var turnedAway *node.TurnedAwayError // as it should, once a test has seen to that
		if err := r.ended; err != nil && !errors.Is(err, context.Canceled) && !errors.As(err, &turnedAway) {
			m.t.Errorf("node %s ended: %v", r.Name, err)
		}
	}
	m.t.Cleanup(r.stop)
}

// API is where the node takes calls of administrators.
func (r *Region) API() string { return r.config.Listen.Mesh }

// Config is the node's node.yaml.
func (r *Region) Config() node.Config { return r.config }

// BootstrapKey is the provisioning key that the mesh was founded with.
func (m *Mesh) BootstrapKey() string {
	m.t.Helper()
	text, err := os.ReadFile(m.keyFile)
	m.must("read the bootstrap key", err)
	return string(text)
}

// Stop ends the node, in order.
func (r *Region) Stop() { r.stop() }

// Leave lets the node, which is stopped, leave the mesh.
func (r *Region) Leave(ctx context.Context) error {
	_, err := node.Leave(ctx, r.config, node.Env{Logger: r.mesh.logger(), NetDial: r.mesh.network.dialFrom(r.config.Listen.Mesh, r.from), Now: r.mesh.now})
	return err
}

// Profile is the administrator's way into the mesh.
func (m *Mesh) Profile() *profile.Profile {
	p := m.founded.Profile
	p.ControlNodes, p.Clock = nil, m.now
	for _, r := range m.Regions() {
		if slices.Contains(r.config.Roles, "control") {
			p.ControlNodes = append(p.ControlNodes, r.config.Listen.Mesh)
		}
	}
	return &p
}

// Eventually waits until ok holds. What ok has seen may be otherwise a moment later: assert on what it saw, not on what is read anew.
func (m *Mesh) Eventually(what string, ok func() bool) {
	m.t.Helper()
	if !await(20*time.Millisecond, ok) {
		m.t.Fatalf("%s: not within %s", what, Patience)
	}
}

// await asks at a pace until ok holds, and reports whether it does.
func await(pace time.Duration, ok func() bool) bool {
	deadline := time.NewTimer(Patience)
	defer deadline.Stop()
	ticker := time.NewTicker(pace)
	defer ticker.Stop()
	for !ok() {
		select {
		case <-ticker.C:
		case <-deadline.C:
			return false
		}
	}
	return true
}
