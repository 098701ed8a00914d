package raftstore_test

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/cluster/raftstore"
	"github.com/iapmesh/iapmesh/cluster/store"
)

// patience bounds every wait; a test that works never reaches it.
const patience = 30 * time.Second

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

// network is loopback TCP whose members can be cut off.
type network struct {
	mu    sync.Mutex
	cut   map[string]bool                     // by address
	conns map[net.Conn][2]string              // dialed, and not yet closed: from, to
	delay func(from, to string) time.Duration // one way; nil: none
}

func newNetwork() *network {
	return &network{cut: map[string]bool{}, conns: map[net.Conn][2]string{}}
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

func (n *network) listen(addr string) (*transport, error) {
	l, err := net.Listen("tcp", addr)
	return &transport{Listener: l, network: n}, err
}

type transport struct {
	net.Listener
	network *network
}

func (t *transport) Dial(addr string, timeout time.Duration) (net.Conn, error) {
	n, from := t.network, t.Addr().String()
	c, err := net.DialTimeout("tcp", addr, timeout)
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
}

// newGroup starts n voters. adjust, if not nil, changes each member's configuration.
func newGroup(t testing.TB, n int, adjust func(i int, c *raftstore.Config)) *group {
	t.Helper()
	g := &group{t: t, net: newNetwork()}
	dir := t.TempDir()
	for i := range n {
		cfg := raftstore.Config{
			Dir: filepath.Join(dir, fmt.Sprint(i)), NodeID: fmt.Sprintf("node-%d", i), Seal: newSeal(), Bootstrap: i == 0,
			Heartbeat: 300 * time.Millisecond, RPCTimeout: 2 * time.Second,
		}
		if adjust != nil {
			adjust(i, &cfg)
		}
		g.members = append(g.members, g.start(cfg, "127.0.0.1:0"))
	}
	g.leader()
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
	g.t.Cleanup(func() {
		stop()
		m.done <- <-m.done
	})
	return m, nil
}

// end stops a member and waits for it.
func (m *member) end(t testing.TB) {
	t.Helper()
	m.stop()
	err := <-m.done
	m.done <- err
	if err != nil {
		t.Errorf("run of %s: %v", m.cfg.NodeID, err)
	}
}

// leader waits for a member that leads, other than those left out.
func (g *group) leader(without ...*member) *member {
	g.t.Helper()
	var leader *member
	eventually(g.t, "a leader", func() bool {
		for _, m := range g.members {
			if m.State().Role == "leader" && !contains(without, m) && m.QuorumRound(g.t.Context()) == nil {
				leader = m
				return true
			}
		}
		return false
	})
	return leader
}

func contains(list []*member, m *member) bool {
	for _, x := range list {
		if x == m {
			return true
		}
	}
	return false
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
