package raftstore_test

import (
	"cmp"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/iapmesh/iapmesh/cluster/raftstore"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

const (
	// patience bounds every wait; a test that works never reaches it.
	patience = 2 * time.Minute
	// steady is a heartbeat timeout that no machine misses, however loaded: most tests want no elections of their own. Nobody waits
	// for it: see elect.
	steady = 30 * time.Second
)

// brisk adjusts a group in which a leader is lost: the next comes soon. On a loaded machine that happens without cause, too.
func brisk(_ int, c *raftstore.Config) {
	c.Heartbeat, c.RPCTimeout = 300*time.Millisecond, 2*time.Second
}

// seal is AES-256-GCM under a random key.
type seal struct{ cipher.AEAD }

func newSeal() seal {
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return seal{aead}
}

func (s seal) Seal(plaintext, context []byte) ([]byte, error) {
	return s.AEAD.Seal(nil, nil, plaintext, context), nil
}

func (s seal) Open(sealed, context []byte) ([]byte, error) {
	return s.AEAD.Open(nil, nil, sealed, context)
}

// network is loopback TCP whose members can be cut off. Addresses are names: a member that is started again has the one that it had,
// and may listen on another port, since somebody else may have taken the old one.
type network struct {
	mu    sync.Mutex
	ports map[string]string                   // where who listens, by address
	names int                                 // given so far
	cut   map[string]bool                     // by address
	conns map[net.Conn][2]string              // dialed, and not yet closed: from, to
	delay func(from, to string) time.Duration // one way; nil: none
}

func newNetwork() *network {
	return &network{ports: map[string]string{}, cut: map[string]bool{}, conns: map[net.Conn][2]string{}}
}

func (n *network) Cut(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[addr] = true
	for c, ends := range n.conns {
		if ends[0] == addr || ends[1] == addr {
			c.Close()
			delete(n.conns, c)
		}
	}
}

func (n *network) Heal(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, addr)
}

// listen listens at an address, or at a new one if it is empty.
func (n *network) listen(addr string) (*transport, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if addr == "" {
		n.names++
		addr = fmt.Sprintf("member-%d:7443", n.names)
	}
	n.ports[addr] = l.Addr().String()
	return &transport{Listener: l, network: n, addr: address(addr)}, nil
}

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

type transport struct {
	net.Listener
	network *network
	addr    address
}

func (t *transport) Addr() net.Addr { return t.addr }

func (t *transport) Close() error {
	n := t.network
	n.mu.Lock()
	if n.ports[t.addr.String()] == t.Listener.Addr().String() {
		delete(n.ports, t.addr.String())
	}
	n.mu.Unlock()
	return t.Listener.Close()
}

func (t *transport) Dial(addr string, timeout time.Duration) (net.Conn, error) {
	n, from := t.network, t.Addr().String()
	n.mu.Lock()
	port := n.ports[addr]
	n.mu.Unlock()
	if port == "" {
		return nil, fmt.Errorf("nobody listens at %s", addr)
	}
	c, err := net.DialTimeout("tcp", port, timeout)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut[addr] || n.cut[from] {
		return nil, errors.Join(errors.New("cut off"), c.Close())
	}
	n.conns[c] = [2]string{from, addr}
	if n.delay == nil {
		return c, nil
	}
	return newSlowConn(c, n.delay(from, addr)), nil
}

// member is one store and its Run.
type member struct {
	*raftstore.Store
	cfg  raftstore.Config
	addr string
	stop context.CancelFunc
	done chan error // Run's result
}

// group is a raft group in one process.
type group struct {
	t       testing.TB
	net     *network
	members []*member

	mu      sync.Mutex
	started []*member // ever; guarded by mu
}

// newGroup starts n voters, the first of which leads. adjust, if not nil, changes each member's configuration.
func newGroup(t testing.TB, n int, adjust func(i int, c *raftstore.Config)) *group {
	t.Helper()
	g := &group{t: t, net: newNetwork()}
	dir := t.TempDir()
	for i := range n {
		cfg := raftstore.Config{
			Dir: filepath.Join(dir, fmt.Sprint(i)), NodeID: fmt.Sprintf("node-%d", i), Seal: newSeal(), Bootstrap: i == 0,
			Heartbeat: steady, RPCTimeout: patience, DiskStall: time.Hour, // a slow disk is not what most tests are about
		}
		if adjust != nil {
			adjust(i, &cfg)
		}
		g.members = append(g.members, g.start(cfg, ""))
	}
	g.elect(g.members[0])
	for _, m := range g.members[1:] {
		eventually(t, "voter "+m.cfg.NodeID, func() bool { // a leader may be lost meanwhile
			return g.leader().AddVoter(t.Context(), m.cfg.NodeID, m.addr) == nil
		})
	}
	return g
}

// start opens and runs a member; the test's end stops it.
func (g *group) start(cfg raftstore.Config, addr string) *member {
	g.t.Helper()
	m, err := g.tryStart(cfg, addr)
	if err != nil {
		g.t.Fatalf("open: %v", err)
	}
	return m
}

func (g *group) tryStart(cfg raftstore.Config, addr string) (*member, error) {
	trans, err := g.net.listen(addr)
	if err != nil {
		return nil, err
	}
	cfg.Transport = trans
	s, err := raftstore.Open(cfg)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	m := &member{Store: s, cfg: cfg, addr: trans.Addr().String(), stop: stop, done: make(chan error, 1)}
	go func() { m.done <- s.Run(ctx) }()
	g.mu.Lock()
	g.started = append(g.started, m)
	g.mu.Unlock()
	g.t.Cleanup(func() { g.end() })
	return m, nil
}

// end stops a member and waits for it.
func (m *member) end(t testing.TB) {
	t.Helper()
	if err := m.wait(); err != nil {
		t.Errorf("run of %s: %v", m.cfg.NodeID, err)
	}
}

func (m *member) wait() error {
	m.stop()
	err := <-m.done
	m.done <- err
	return err
}

// end stops all that was started, and returns what went wrong. The others go before the leader: to whom it handed over while they
// stop would wait for a quorum that is no more.
func (g *group) end() error {
	g.mu.Lock()
	started := slices.Clone(g.started)
	g.mu.Unlock()
	var errs []error
	for _, leaders := range []bool{false, true} {
		for _, m := range started {
			if leaders || m.State().Role != "leader" {
				errs = append(errs, m.wait())
			}
		}
	}
	return errors.Join(errs...)
}

// caller speaks raft's own protocol, and is no member.
type caller struct{ *transport }

func (c caller) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return c.transport.Dial(string(addr), timeout)
}

// elect has the one of the members with the longest log stand for election at once, as a leader does that hands over, and waits until one
// of them leads.
func (g *group) elect(members ...*member) *member {
	g.t.Helper()
	for _, m := range members {
		eventually(g.t, m.cfg.NodeID+" runs", func() bool { return m.State().Role != "shutdown" })
	}
	best := slices.MaxFunc(members, func(a, b *member) int { return cmp.Compare(a.State().LastIndex, b.State().LastIndex) })
	trans, err := g.net.listen("")
	if err != nil {
		g.t.Fatal(err)
	}
	out := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: caller{trans}, MaxPool: 1, Timeout: patience, Logger: hclog.NewNullLogger()})
	defer out.Close()
	stand := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}}
	if err := out.TimeoutNow(raft.ServerID(best.cfg.NodeID), raft.ServerAddress(best.addr), stand, &raft.TimeoutNowResponse{}); err != nil {
		g.t.Fatalf("have %s stand for election: %v", best.cfg.NodeID, err)
	}
	return g.leader(slices.DeleteFunc(slices.Clone(g.members), func(m *member) bool { return slices.Contains(members, m) })...)
}

// commit commits wherever the leader is, and again if it is lost over that.
func (g *group) commit(txn store.Txn, without ...*member) (rev store.Revision) {
	g.t.Helper()
	g.attempt(without, func(leader *member) (err error) {
		rev, err = leader.Commit(g.t.Context(), txn)
		return err
	})
	return rev
}

// attempt asks the leader, other than those left out, until it says neither that it does not lead nor that it does not know.
func (g *group) attempt(without []*member, ask func(leader *member) error) {
	g.t.Helper()
	eventually(g.t, "an answer of the leader", func() bool {
		err := ask(g.leader(without...))
		if err != nil && !fault.Is(err, fault.Unavailable) {
			g.t.Fatal(err)
		}
		return err == nil
	})
}

// leader waits for a member that leads, other than those left out.
func (g *group) leader(without ...*member) *member {
	g.t.Helper()
	var leader *member
	eventually(g.t, "a leader", func() bool {
		for _, m := range g.members {
			if m.State().Role == "leader" && !slices.Contains(without, m) && m.QuorumRound(g.t.Context()) == nil {
				leader = m
				return true
			}
		}
		return false
	})
	return leader
}

// others returns all members but one.
func (g *group) others(m *member) []*member {
	var rest []*member
	for _, x := range g.members {
		if x != m {
			rest = append(rest, x)
		}
	}
	return rest
}

func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func put(key, value string) store.Txn {
	return store.Txn{Puts: []store.Entry{{Key: key, Value: []byte(value)}}}
}

func mustCommit(t testing.TB, s store.Store, txn store.Txn) store.Revision {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	rev, err := s.Commit(ctx, txn)
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	return rev
}

func mustWait(t testing.TB, s store.Store, at store.Revision) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.Wait(ctx, at); err != nil {
		t.Fatalf("wait for %v: %v", at, err)
	}
}

func value(t testing.TB, s store.Store, key string) string {
	t.Helper()
	e, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("get %s: %v", key, err)
	}
	return string(e.Value)
}
