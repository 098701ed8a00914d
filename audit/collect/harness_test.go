package collect_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/collect"
	"github.com/iapmesh/iapmesh/audit/spool"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// patience bounds every wait; a test that works never reaches it.
const patience = 2 * time.Minute

// key is the key of a node or an aggregator, by its name.
func key(name string) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	return ed25519.NewKeyFromSeed(seed)
}

func public(name string) (ed25519.PublicKey, error) {
	if name == "stranger" {
		return nil, fault.New(fault.NotFound, "no node %s", name)
	}
	return key(name).Public().(ed25519.PublicKey), nil
}

func verifier() *audit.Verifier {
	agg, _ := public("agg")
	return &audit.Verifier{NodeKey: public, Aggregator: "agg", AggregatorKey: agg}
}

// open opens an aggregator whose callers name themselves in metadata: TLS is not what is tested here.
func open(t testing.TB, dir string) *collect.Aggregator {
	t.Helper()
	a, err := collect.Open(collect.Config{
		Dir: dir, Mesh: "m", Node: "agg", Signer: audit.SignWith(key("agg")), NodeKey: public, SegmentBytes: 64 << 10,
		Peer: func(ctx context.Context) (string, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			if v := md.Get("node"); len(v) == 1 {
				return v[0], nil
			}
			return "", fault.New(fault.Unauthenticated, "no certificate")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// server is an aggregator that listens.
type server struct {
	*collect.Aggregator
	listener *bufconn.Listener
	stop     func()
}

func serve(t testing.TB, dir string) *server {
	t.Helper()
	s := &server{Aggregator: open(t, dir), listener: bufconn.Listen(1 << 20)}
	g := grpc.NewServer(grpc.WaitForHandlers(true)) // a restart begins when the last stream has ended
	iapmeshv1.RegisterAuditIngestServiceServer(g, s)
	iapmeshv1.RegisterAuditServiceServer(g, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.Serve(s.listener)
	}()
	s.stop = sync.OnceFunc(func() {
		g.Stop()
		<-done
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(s.stop)
	return s
}

func (s *server) dial(t testing.TB) *grpc.ClientConn {
	t.Helper()
	conn, err := s.connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (s *server) connect() (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:agg", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.listener.DialContext(ctx) }))
}

// node is a spool and its shipper; current is the server that it ships to.
type node struct {
	*spool.Spool
	shipper *collect.Shipper
	stop    func()
}

func start(t testing.TB, name, dir string, current func() *server) *node {
	t.Helper()
	s, err := spool.Open(spool.Config{Dir: dir, Node: name, Region: "eu-west", Mesh: "m", Signer: audit.SignWith(key(name)), SegmentBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	shipper := collect.NewShipper(collect.ShipperConfig{Spool: s, MaxBackoff: 100 * time.Millisecond, Linger: time.Hour,
		Connect: func(ctx context.Context) (iapmeshv1.AuditIngestServiceClient, func(), error) {
			conn, err := current().connect()
			if err != nil {
				return nil, nil, err
			}
			return as{iapmeshv1.NewAuditIngestServiceClient(conn), name}, func() { conn.Close() }, nil
		}})
	spooling, endSpool := context.WithCancel(context.Background())
	shipping, endShipper := context.WithCancel(context.Background())
	var ground, wire sync.WaitGroup
	ground.Go(func() { _ = s.Run(spooling) })
	eventually(t, "segments ahead", func() bool { return s.Bytes() >= 3<<20 })
	wire.Go(func() { _ = shipper.Run(shipping) })
	n := &node{Spool: s, shipper: shipper, stop: sync.OnceFunc(func() {
		endShipper()
		wire.Wait()
		endSpool()
		ground.Wait()
	})}
	t.Cleanup(n.stop)
	return n
}

// as is a client that names itself.
type as struct {
	iapmeshv1.AuditIngestServiceClient
	node string
}

func (c as) Ship(ctx context.Context, opts ...grpc.CallOption) (iapmeshv1.AuditIngestService_ShipClient, error) {
	return c.AuditIngestServiceClient.Ship(metadata.AppendToOutgoingContext(ctx, "node", c.node), opts...)
}

func (n *node) append(t testing.TB, records ...audit.Record) {
	t.Helper()
	for i, r := range records {
		ticket, err := n.Append(&r)
		if err == nil && i == len(records)-1 {
			err = ticket.Wait(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func decisions(from, to int) (all []audit.Record) {
	for i := from; i < to; i++ {
		all = append(all, audit.Record{Kind: audit.KindDecision, Decision: audit.Allow, Route: "billing", Path: fmt.Sprint(i), RequestID: fmt.Sprint("r", i),
			Actor: audit.Actor{Subject: "okta/1", Email: "ana@example.com", ProvisioningKey: "key1"}})
	}
	return all
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

// paths are those of the decisions that a query finds.
func paths(t testing.TB, a *collect.Aggregator, f collect.Filter) (all []string) {
	t.Helper()
	for e, err := range a.Records(t.Context(), f) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Record.Kind == audit.KindDecision {
			all = append(all, e.Record.Path)
		}
	}
	return all
}

func numbers(from, to int) (all []string) {
	for i := from; i < to; i++ {
		all = append(all, fmt.Sprint(i))
	}
	return all
}
