package gossip_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/cluster/gossip"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// patience bounds every wait; a test that works never reaches it.
const patience = 2 * time.Minute

func newKey() []byte {
	k := make([]byte, 32)
	_, _ = rand.Read(k)
	return k
}

// world is what the nodes of a test share: the addresses that a view would hold.
type world struct {
	t   testing.TB
	key []byte

	mu    sync.Mutex
	addrs map[string]string // node id → gossip address
}

func newWorld(t testing.TB) *world { return &world{t: t, key: newKey(), addrs: map[string]string{}} }

func (w *world) seeds(string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, a := range w.addrs {
		out = append(out, a)
	}
	return out
}

type node struct {
	*gossip.Mesh
	id   string
	stop func() // graceful
	kill func() // its network goes first, so that nobody hears a good-bye

	mu  sync.Mutex
	got []string
}

func (n *node) received() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.got...)
}

// start runs a node of a region on a new port.
func (w *world) start(id, region string, change func(*gossip.Config)) *node {
	w.t.Helper()
	l, pc, err := gossip.Listen("127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.addrs[id] = l.Addr().String()
	w.mu.Unlock()
	n := &node{id: id}
	config := gossip.Config{
		MeshID: "m1", Self: gossip.Self{NodeID: id, Region: region, Version: "1.0.0", MeshAddr: "127.0.0.1:7443", Roles: []iapmeshv1.Role{iapmeshv1.Role_ROLE_PROXY}},
		Listener: l, PacketConn: pc, Keys: [][]byte{w.key}, Seeds: w.seeds,
		ProbeInterval: 100 * time.Millisecond, RejoinInterval: 100 * time.Millisecond, ReclaimTime: 200 * time.Millisecond, LeaveTimeout: patience,
		Receive: func(msg []byte) bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.got = append(n.got, string(msg))
			return !strings.HasPrefix(string(msg), "forged")
		},
	}
	if change != nil {
		change(&config)
	}
	if n.Mesh, err = gossip.New(config); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("run %s: %v", id, err)
		}
	})
	n.kill = func() {
		l.Close()
		pc.Close()
		n.stop()
	}
	w.t.Cleanup(n.stop)
	return n
}

// sees waits until n lists exactly these members, as "pool/id state".
func (n *node) sees(t testing.TB, want ...string) {
	t.Helper()
	deadline := time.After(patience)
	for {
		changed := n.Changed()
		var got []string
		for _, m := range n.Members() {
			got = append(got, fmt.Sprintf("%s/%s %s", m.Pool, m.NodeID, m.State))
		}
		diff := cmp.Diff(want, got)
		if diff == "" {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("members that %s sees (-want +got):\n%s", n.id, diff)
		}
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("still waiting for %s", what)
		case <-tick.C:
		}
	}
}

// tell has a node spread a message until all the others have it: again now and then, since gossip promises nothing.
func (n *node) tell(t *testing.T, msg string, others ...*node) {
	t.Helper()
	polls := 0
	until(t, fmt.Sprintf("%.20q at all", msg), func() bool {
		if polls%200 == 0 {
			if err := n.Broadcast([]byte(msg)); err != nil {
				t.Fatal(err)
			}
		}
		polls++
		return !slices.ContainsFunc(others, func(o *node) bool { return !slices.Contains(o.received(), msg) })
	})
}

func TestThreeMeetOneDiesAndComesBackElsewhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	registry := prometheus.NewRegistry()
	a := w.start("a", "r1", func(c *gossip.Config) { c.Registerer = registry })
	b := w.start("b", "r1", nil)
	c := w.start("c", "r1", nil)
	for _, n := range []*node{a, b, c} {
		n.sees(t, "region/a alive", "region/b alive", "region/c alive")
	}
	m := a.Members()[1]
	want := gossip.Self{NodeID: "b", Region: "r1", Version: "1.0.0", MeshAddr: "127.0.0.1:7443", Roles: []iapmeshv1.Role{iapmeshv1.Role_ROLE_PROXY}}
	if diff := cmp.Diff(want, m.Self); diff != "" || m.Addr.String() != b.Addr() {
		t.Errorf("member b at %s (-want +got):\n%s", m.Addr, diff)
	}

	before := c.Addr()
	c.kill()
	a.sees(t, "region/a alive", "region/b alive", "region/c dead")
	if held, err := net.Listen("tcp", before); err == nil { // so that it gets another port
		defer held.Close()
	}
	again := w.start("c", "r1", nil)
	a.sees(t, "region/a alive", "region/b alive", "region/c alive")
	b.sees(t, "region/a alive", "region/b alive", "region/c alive")
	until(t, "the new address", func() bool { return a.Members()[2].Addr.String() == again.Addr() })

	b.stop()
	a.sees(t, "region/a alive", "region/b left", "region/c alive")
	until(t, "the gauges", func() bool {
		got := gauges(t, registry, "iapmesh_gossip_members")
		return got["region/alive"] == 2 && got["region/left"] == 1
	})
}

func TestWhoCannotJoin(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*gossip.Config){
		"another key":    func(c *gossip.Config) { c.Keys = [][]byte{newKey()} },
		"another mesh":   func(c *gossip.Config) { c.MeshID = "m2" },
		"another region": func(c *gossip.Config) { c.Self.Region = "r2" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			a := w.start("a", "r1", nil)
			b := w.start("b", "r1", nil)
			stranger := w.start("x", "r1", change)
			if err := stranger.Broadcast([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			a.sees(t, "region/a alive", "region/b alive")
			// The stranger has tried each seed several times by the time that a message has gone round.
			for i := range 10 {
				a.tell(t, fmt.Sprintf("message %d", i), b)
			}
			a.sees(t, "region/a alive", "region/b alive")
			stranger.sees(t, "region/x alive")
			if got := a.received(); len(got) != 0 {
				t.Errorf("received from a stranger: %q", got)
			}
		})
	}
}

func TestMessagesReachEveryRegion(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	control := func(c *gossip.Config) { c.WAN = true }
	a1 := w.start("a1", "r1", control)
	a2 := w.start("a2", "r1", nil)
	b1 := w.start("b1", "r2", control)
	b2 := w.start("b2", "r2", nil)
	a1.sees(t, "region/a1 alive", "region/a2 alive", "wan/a1 alive", "wan/b1 alive")
	b1.sees(t, "region/b1 alive", "region/b2 alive", "wan/a1 alive", "wan/b1 alive")
	a2.sees(t, "region/a1 alive", "region/a2 alive")
	b2.sees(t, "region/b1 alive", "region/b2 alive")

	big := strings.Repeat("x", gossip.MaxMessage)
	for _, msg := range []string{"deny ana", big} {
		a2.tell(t, msg, a1, b1, b2)
	}
	for _, msg := range []string{"", big + "x"} {
		if err := a2.Broadcast([]byte(msg)); !fault.Is(err, fault.Invalid) {
			t.Errorf("a message of %d bytes: %v", len(msg), err)
		}
	}
	// Once each, and none came back to its sender.
	b2.tell(t, "deny bob", a2, a1, b1)
	for _, n := range []*node{a1, b1} {
		if got := n.received(); len(got) != 3 {
			t.Errorf("%s received %d messages of three", n.id, len(got))
		}
	}
	if got := a2.received(); len(got) != 1 || got[0] != "deny bob" {
		t.Errorf("the sender received %q", got)
	}
}

func TestAForgedMessageIsNotPassedOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// The liar reaches the far node through the pool between regions only, so through the honest one.
	honest := w.start("b", "r2", func(c *gossip.Config) { c.WAN = true })
	far := w.start("c", "r2", nil)
	liar := w.start("a", "r1", func(c *gossip.Config) { c.WAN = true })
	honest.sees(t, "region/b alive", "region/c alive", "wan/a alive", "wan/b alive")
	liar.tell(t, "forged", honest)
	liar.tell(t, "genuine", honest, far)
	if got := far.received(); len(got) != 1 || got[0] != "genuine" {
		t.Errorf("passed on: %q", got)
	}
}

func TestANodeThatWasAwayHearsWhatStillCounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start("a", "r1", func(c *gossip.Config) {
		c.Messages = func() [][]byte {
			return [][]byte{[]byte("deny ana"), nil, bytes.Repeat([]byte("x"), gossip.MaxMessage+1)}
		}
	})
	late := w.start("b", "r1", nil)
	until(t, "the message", func() bool { return len(late.received()) > 0 })
	if got := late.received(); len(got) != 1 || got[0] != "deny ana" {
		t.Errorf("heard %q", got)
	}
}

func TestKeysRotate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.start("a", "r1", nil), w.start("b", "r1", nil)
	a.sees(t, "region/a alive", "region/b alive")
	b.sees(t, "region/a alive", "region/b alive")
	next := newKey()
	for _, keys := range [][][]byte{{w.key, next}, {next, w.key}, {next}} {
		for _, n := range []*node{a, b} {
			if err := n.SetKeys(keys); err != nil {
				t.Fatal(err)
			}
		}
	}
	a.tell(t, "under the new key", b)
	old := w.start("x", "r1", nil) // has the old key alone
	c := w.start("c", "r1", func(c *gossip.Config) { c.Keys = [][]byte{next} })
	c.sees(t, "region/a alive", "region/b alive", "region/c alive")
	old.sees(t, "region/x alive")
	if err := a.SetKeys(nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("no keys: %v", err)
	}
	if err := a.SetKeys([][]byte{next[:16]}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a short key: %v", err)
	}
}

func TestAnUpdateIsSeen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.start("a", "r1", nil), w.start("b", "r1", nil)
	a.sees(t, "region/a alive", "region/b alive")
	b.sees(t, "region/a alive", "region/b alive")
	if err := b.Update(gossip.Self{Version: "2.0.0", MeshAddr: "127.0.0.1:9"}); err != nil {
		t.Fatal(err)
	}
	until(t, "the new version", func() bool { return a.Members()[1].Version == "2.0.0" })
	early := w.start("c", "r1", nil)
	if err := early.Update(gossip.Self{Version: "3.0.0"}); err != nil { // perhaps before it takes part at all
		t.Fatal(err)
	}
	until(t, "the third version", func() bool { all := a.Members(); return len(all) == 3 && all[2].Version == "3.0.0" })
	if err := b.Update(gossip.Self{Version: strings.Repeat("v", 65)}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a version of 65 bytes: %v", err)
	}
}

func TestStrangersStreamsAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	registry := prometheus.NewRegistry()
	a := w.start("a", "r1", func(c *gossip.Config) { c.Registerer = registry })
	pc, err := net.Dial("udp", a.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	for _, packet := range []string{"\xf4", "\xf4\x00", "\xf4\xffshort", "\xf4\x03abcdef", "nothing", "\xf4\x0cm1/region/r1"} {
		if _, err := pc.Write([]byte(packet)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "refused packets", func() bool { return gauges(t, registry, "iapmesh_gossip_refused_total")["label"] >= 5 })
	until(t, "a malformed one", func() bool { return gauges(t, registry, "iapmesh_gossip_refused_total")["malformed"] >= 1 })
	// More than one address may hold, however long the machine takes: those that say nothing end after a while.
	until(t, "refusals", func() bool {
		c, err := net.Dial("tcp", a.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return gauges(t, registry, "iapmesh_gossip_refused_total")["streams"] >= 16
	})
}

// A holder of the gossip key, such as a node that is quarantined and whose keys have not been rotated yet, can seal what
// memberlist 0.7.0 panics on when it opens it.
func TestAnInsiderCannotCrashANode(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	registry := prometheus.NewRegistry()
	a := w.start("a", "r1", func(c *gossip.Config) { c.Registerer = registry })
	b := w.start("b", "r1", nil)
	a.sees(t, "region/a alive", "region/b alive")

	block, err := aes.NewCipher(w.key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	const label = "m1/region/r1"
	header := append([]byte{244, byte(len(label))}, label...)
	seal := func(version byte, plain, data []byte) []byte {
		nonce := make([]byte, 12)
		_, _ = rand.Read(nonce)
		return gcm.Seal(append([]byte{version}, nonce...), nonce, plain, data)
	}
	overlong := bytes.Repeat([]byte{0xff}, 16) // as padding: 255 of 16 bytes

	udp, err := net.Dial("udp", a.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for _, packet := range [][]byte{seal(0, overlong, []byte(label)), seal(0, nil, []byte(label)), seal(1, nil, []byte(label))} {
		if _, err := udp.Write(append(bytes.Clone(header), packet...)); err != nil {
			t.Fatal(err)
		}
	}
	stream := func(version byte, plain []byte, size uint32) {
		if size == 0 {
			size = uint32(29 + len(plain))
		}
		c, err := net.Dial("tcp", a.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		frame := binary.BigEndian.AppendUint32([]byte{10}, size) // encryptMsg
		sealed := seal(version, plain, append(bytes.Clone(frame), label...))
		_, _ = c.Write(append(append(bytes.Clone(header), frame...), sealed...)) // it may be closed meanwhile
		_, _ = io.Copy(io.Discard, c)
	}
	stream(1, nil, 0)
	stream(0, overlong, 0)
	stream(1, []byte("x"), 16<<20)
	until(t, "six refusals", func() bool { return gauges(t, registry, "iapmesh_gossip_refused_total")["malformed"] >= 6 })
	b.tell(t, "still there", a)
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	l, pc, err := gossip.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); pc.Close() })
	for name, change := range map[string]func(*gossip.Config){
		"no mesh":       func(c *gossip.Config) { c.MeshID = "" },
		"no listener":   func(c *gossip.Config) { c.Listener = nil },
		"no key":        func(c *gossip.Config) { c.Keys = nil },
		"short key":     func(c *gossip.Config) { c.Keys = [][]byte{make([]byte, 16)} },
		"no id":         func(c *gossip.Config) { c.Self.NodeID = "" },
		"no region":     func(c *gossip.Config) { c.Self.Region = "" },
		"control bytes": func(c *gossip.Config) { c.Self.Version = "1\n" },
		"any address":   func(c *gossip.Config) { c.Advertise = "0.0.0.0:7946" },
		"no port":       func(c *gossip.Config) { c.Advertise = "10.0.0.1" },
		"too many bytes": func(c *gossip.Config) {
			c.Self.MeshAddr, c.Self.ProxyAddr = strings.Repeat("m", 250), strings.Repeat("p", 250)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := gossip.Config{MeshID: "m1", Self: gossip.Self{NodeID: "a", Region: "r1"}, Listener: l, PacketConn: pc, Keys: [][]byte{newKey()}}
			change(&c)
			if _, err := gossip.New(c); !fault.Is(err, fault.Invalid) {
				t.Errorf("%v, want invalid", err)
			}
		})
	}
}

// gauges returns a metric's values by its label values, joined by slashes.
func gauges(t *testing.T, g prometheus.Gatherer, name string) map[string]float64 {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, s := range f.GetMetric() {
			var labels []string
			for _, l := range s.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			out[strings.Join(labels, "/")] = s.GetGauge().GetValue() + s.GetCounter().GetValue()
		}
	}
	return out
}
