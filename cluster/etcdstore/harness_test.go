package etcdstore_test

import (
	"context"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/iapmesh/iapmesh/cluster/etcdstore"
	"github.com/iapmesh/iapmesh/cluster/store"
)

const (
	patience = 2 * time.Minute // bounds every wait; a test that works never reaches it
	history  = 32              // small, so that the suite outruns it quickly
)

// startEtcd runs a real etcd of one member and returns its address.
func startEtcd(t testing.TB) string {
	t.Helper()
	loopback := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	cfg := embed.NewConfig()
	cfg.Dir = t.TempDir()
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{loopback}, []url.URL{loopback}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{loopback}, []url.URL{loopback}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.InitialClusterToken = cfg.Dir // each is a cluster of its own
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.UnsafeNoFsync = true // these tests cut no power
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatalf("start etcd: %v", err)
	}
	t.Cleanup(server.Close)
	select {
	case <-server.Server.ReadyNotify():
	case err := <-server.Err():
		t.Fatalf("etcd: %v", err)
	case <-time.After(patience):
		t.Fatal("etcd is not ready")
	}
	return server.Clients[0].Addr().String()
}

// member is one store and its Run.
type member struct {
	*etcdstore.Store
	stop func()
}

// open opens and runs a store, and waits until it knows the state; the test's end stops it.
func open(t testing.TB, cfg etcdstore.Config) member {
	t.Helper()
	cfg.History = history
	s, err := etcdstore.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	mustWait(t, s, store.Revision{Epoch: 1})
	return member{s, stop}
}

// config is a store's that loses neither its connection nor its lease when the machine stands still for a while.
func config(addr, prefix, node string) etcdstore.Config {
	return etcdstore.Config{
		Client: clientv3.Config{Endpoints: []string{addr}, DialTimeout: patience, DialKeepAliveTime: patience, DialKeepAliveTimeout: patience},
		Prefix: prefix, NodeID: node, Address: node + ".example:7443", LeaseTTL: 30 * time.Second,
	}
}

// way is a TCP way to an etcd that can be cut, and lead elsewhere after.
type way struct {
	addr string

	mu     sync.Mutex
	target string // empty: cut
	conns  map[net.Conn]struct{}
}

func newWay(t testing.TB, target string) *way {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	w := &way{addr: l.Addr().String(), target: target, conns: map[net.Conn]struct{}{}}
	t.Cleanup(w.Cut)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go w.carry(c)
		}
	}()
	return w
}

func (w *way) carry(c net.Conn) {
	defer c.Close()
	w.mu.Lock()
	target := w.target
	w.mu.Unlock()
	if target == "" {
		return
	}
	far, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer far.Close()
	w.mu.Lock()
	cut := w.target != target
	w.conns[c], w.conns[far] = struct{}{}, struct{}{}
	w.mu.Unlock()
	if cut {
		return
	}
	go func() {
		io.Copy(far, c)
		far.Close()
	}()
	io.Copy(c, far)
}

func (w *way) Cut() { w.Heal("") }

func (w *way) Heal(target string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.target = target
	for c := range w.conns {
		c.Close()
	}
	clear(w.conns)
}

func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func put(pairs ...string) store.Txn {
	var t store.Txn
	for i := 0; i < len(pairs); i += 2 {
		t.Puts = append(t.Puts, store.Entry{Key: pairs[i], Value: []byte(pairs[i+1])})
	}
	return t
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

func mustWait(t testing.TB, r store.Reader, at store.Revision) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := r.Wait(ctx, at); err != nil {
		t.Fatalf("wait for %v: %v", at, err)
	}
}

func value(t testing.TB, r store.Reader, key string) string {
	t.Helper()
	e, err := r.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("get %s: %v", key, err)
	}
	return string(e.Value)
}
