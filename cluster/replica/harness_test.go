package replica_test

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/iapmesh/iapmesh/cluster/raftstore"
	"github.com/iapmesh/iapmesh/cluster/replica"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

const (
	patience = 2 * time.Minute // bounds every wait; a test that works never reaches it
	history  = 32              // small, so that the suite outruns it quickly
	mesh     = "mesh-1"
)

// seal is AES-256-GCM under a key that the name stands for.
type seal struct{ cipher.AEAD }

func newSeal(name string) seal {
	key := make([]byte, 32)
	copy(key, name)
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

type tcp struct{ net.Listener }

func (tcp) Dial(addr string, timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", addr, timeout)
}

// newStore runs an engine of one member.
func newStore(t testing.TB) *raftstore.Store {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := raftstore.Open(raftstore.Config{
		Dir: t.TempDir(), NodeID: "control-1", Transport: tcp{l}, Seal: newSeal("store"), Bootstrap: true,
		Heartbeat: 300 * time.Millisecond, History: history, DiskStall: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, s.Run)
	eventually(t, "a leader", func() bool { return s.QuorumRound(t.Context()) == nil })
	return s
}

// run runs f until the returned function is called or the test ends, and waits for it.
func run(t testing.TB, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// source is a control node as followers see it.
type source struct {
	iapmeshv1.UnimplementedMeshServiceServer
	addr    string
	follow  func(node string, stream grpc.BidiStreamingServer[iapmeshv1.FollowRequest, iapmeshv1.FollowResponse]) error
	streams atomic.Int32 // ever begun
	server  *grpc.Server
}

func (s *source) Follow(stream grpc.BidiStreamingServer[iapmeshv1.FollowRequest, iapmeshv1.FollowResponse]) error {
	s.streams.Add(1)
	md, _ := metadata.FromIncomingContext(stream.Context())
	return s.follow(strings.Join(md.Get("node"), ""), stream)
}

// serve starts a source; without a configuration's scope, everybody may hold everything.
func serve(t testing.TB, cfg replica.ServerConfig) *source {
	t.Helper()
	if cfg.MeshID == "" {
		cfg.MeshID = mesh
	}
	if cfg.Scope == nil {
		cfg.Scope = func(context.Context, string, store.Revision) (string, func(string) bool, error) {
			return "all", func(string) bool { return true }, nil
		}
	}
	server, err := replica.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return listen(t, &source{follow: server.Follow})
}

func listen(t testing.TB, s *source) *source {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	s.server = grpc.NewServer(grpc.StreamInterceptor(fault.StreamServer))
	iapmeshv1.RegisterMeshServiceServer(s.server, s)
	go s.server.Serve(l)
	t.Cleanup(s.server.Stop)
	return s
}

// client connects to a source as a node.
func client(t testing.TB, addr, node string) iapmeshv1.MeshServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
			return next(metadata.AppendToOutgoingContext(ctx, "node", node), d, cc, method, o...)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return iapmeshv1.NewMeshServiceClient(conn)
}

// rotation dials sources in turn.
type rotation struct {
	mu      sync.Mutex
	clients []iapmeshv1.MeshServiceClient
	addrs   []string
	next    int
}

func dial(t testing.TB, sources ...*source) *rotation {
	r := &rotation{}
	for _, s := range sources {
		r.add(t, s)
	}
	return r
}

func (r *rotation) add(t testing.TB, s *source) {
	c := client(t, s.addr, "node-1")
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clients, r.addrs = append(r.clients, c), append(r.addrs, s.addr)
}

func (r *rotation) Dial(context.Context) (iapmeshv1.MeshServiceClient, string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.clients) == 0 {
		return nil, "", errors.New("no control node is known")
	}
	i := r.next % len(r.clients)
	r.next++
	return r.clients[i], r.addrs[i], nil
}

// config is a replica's that leaves no source for its silence: a loaded machine is silent for a second now and then.
func config(dir string, r *rotation) replica.Config {
	return replica.Config{Dir: dir, Seal: newSeal("node"), MeshID: mesh, Dial: r.Dial, History: history, PingEvery: 50 * time.Millisecond, Silence: patience}
}

// open opens a replica and runs it.
func open(t testing.TB, cfg replica.Config) (r *replica.Replica, stop func()) {
	t.Helper()
	r, err := replica.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r, run(t, r.Run)
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

// dump shows the whole state as key=value@revision.
func dump(t testing.TB, r store.Reader) string {
	t.Helper()
	entries, _, err := r.List(t.Context(), "")
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	return render(entries)
}

func render(entries []store.Entry) string {
	var b strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&b, "%s=%s@%v ", e.Key, e.Value, e.Revision)
	}
	return b.String()
}
