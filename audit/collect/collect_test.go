package collect_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
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
	g := grpc.NewServer()
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
	shipper := collect.NewShipper(collect.ShipperConfig{Spool: s, MaxBackoff: 100 * time.Millisecond, Linger: 30 * time.Second,
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
	deadline := time.After(20 * time.Second)
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

func TestATrailArrivesWholeAndProved(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	agg := serve(t, dir)
	n := start(t, "n1", t.TempDir(), func() *server { return agg })
	n.append(t, decisions(0, 3000)...)
	eventually(t, "all acknowledged", func() bool { return n.Depth() == 0 })
	if got := paths(t, agg.Aggregator, collect.Filter{}); !slices.Equal(got, numbers(0, 3000)) {
		t.Errorf("%d decisions stored", len(got))
	}
	fetch, err := iapmeshv1.NewAuditServiceClient(agg.dial(t)).Fetch(t.Context(), &iapmeshv1.FetchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	remote, err := collect.VerifyFetch(fetch.Recv, verifier())
	if err != nil {
		t.Fatal(err)
	}
	local, err := collect.VerifyStore(dir, verifier())
	if err != nil {
		t.Fatal(err)
	}
	for where, r := range map[string]audit.Report{"fetched": remote, "stored": local} {
		if len(r.Runs) != 1 || len(r.Findings()) != 0 || r.Runs[0].Proved != 3001 || r.Runs[0].Countersigned != 3001 {
			t.Errorf("%s: %+v", where, r)
		}
	}
}

// Whatever a node has written when it is told to end is with the aggregator when it has, and where none is connected it does not wait.
func TestATrailIsShippedToItsEnd(t *testing.T) {
	t.Parallel()
	agg := serve(t, t.TempDir())
	n := start(t, "n1", t.TempDir(), func() *server { return agg })
	n.append(t, decisions(0, 10)...)
	if err := n.shipper.Drain(t.Context()); err != nil || n.Depth() != 0 {
		t.Errorf("drained: %v, and %d records are left", err, n.Depth())
	}
	n.append(t, decisions(10, 500)...)
	last := decisions(500, 501)[0]
	last.Kind = audit.KindOutcome // which is written when there is time
	if _, err := n.Append(&last); err != nil {
		t.Fatal(err)
	}
	n.stop()
	if n.Depth() != 0 {
		t.Errorf("%d records were left behind", n.Depth())
	}
	if got := paths(t, agg.Aggregator, collect.Filter{}); !slices.Equal(got, numbers(0, 500)) {
		t.Errorf("%d decisions stored when the node had ended, want 500", len(got))
	}
	alone := start(t, "n2", t.TempDir(), func() *server { return agg })
	eventually(t, "it is connected", func() bool { return alone.Depth() == 0 })
	agg.stop()
	alone.append(t, decisions(0, 10)...)
	brief, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := alone.shipper.Drain(brief); !fault.Is(err, fault.Unavailable) {
		t.Errorf("drained without an aggregator: %v", err)
	}
	began := time.Now()
	alone.stop()
	if took := time.Since(began); took > 15*time.Second { // it would linger for 30 s
		t.Errorf("it waited %v for nobody", took)
	}
}

func TestBrokenStreamsAndRestartsStoreEachRecordOnce(t *testing.T) {
	t.Parallel()
	store, spoolDir := t.TempDir(), t.TempDir()
	var mu sync.Mutex
	agg := serve(t, store)
	current := func() *server {
		mu.Lock()
		defer mu.Unlock()
		return agg
	}
	n := start(t, "n1", spoolDir, current)
	for round := range 4 {
		n.append(t, decisions(1000*round, 1000*round+1000)...)
		eventually(t, "something acknowledged", func() bool { return n.Depth() < 1000 })
		switch round {
		case 0, 2: // the aggregator restarts
			mu.Lock()
			agg.stop()
			agg = serve(t, store)
			mu.Unlock()
		case 1: // the node restarts, cleanly or not
			n.stop()
			n = start(t, "n1", spoolDir, current)
		case 3:
			n.Distrust()
			n.stop()
			n = start(t, "n1", spoolDir, current)
		}
	}
	n.append(t, decisions(4000, 4010)...)
	eventually(t, "all acknowledged", func() bool { return n.Depth() == 0 })
	if got := paths(t, current().Aggregator, collect.Filter{}); !slices.Equal(got, numbers(0, 4010)) {
		t.Errorf("%d decisions stored, want 4010", len(got))
	}
	r, err := collect.VerifyStore(store, verifier())
	if err != nil || len(r.Findings()) != 0 || len(r.Runs) != 2 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestWhatWasNotProvedWhenTheAggregatorDiedIsSentAgain(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	agg := serve(t, store)
	n := start(t, "n1", t.TempDir(), func() *server { return agg })
	n.append(t, decisions(0, 500)...)
	eventually(t, "all acknowledged", func() bool { return n.Depth() == 0 })
	n.stop()
	agg.stop()
	files := segmentsOf(t, store, "n1")
	last := files[len(files)-1]
	data, err := os.ReadFile(last)
	if err != nil {
		t.Fatal(err)
	}
	// A torn stretch: whole records, and half of one, that no checkpoint follows.
	var torn []byte
	run, _ := audit.ParseRun(n.RunName())
	for i := range 3 {
		torn = audit.AppendFrame(torn, audit.Frame{Run: run, Seq: uint64(501 + i), Body: []byte(`{"kind":"decision","path":"torn"}`)})
	}
	if err := os.WriteFile(last, append(data, torn[:len(torn)-5]...), 0o600); err != nil {
		t.Fatal(err)
	}
	again := open(t, store)
	defer again.Close()
	if got := paths(t, again, collect.Filter{}); !slices.Equal(got, numbers(0, 500)) {
		t.Errorf("%d decisions, last %v", len(got), got[len(got)-1])
	}
	if r, err := collect.VerifyStore(store, verifier()); err != nil || len(r.Findings()) != 0 {
		t.Errorf("%v, %v", r.Findings(), err)
	}
}

func segmentsOf(t testing.TB, dir, node string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, node, "*", "*.segment"))
	if err != nil || len(files) == 0 {
		t.Fatalf("segments: %v, %v", files, err)
	}
	return files
}

func TestAChangedStoreIsFound(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	agg := serve(t, store)
	n := start(t, "n1", t.TempDir(), func() *server { return agg })
	n.append(t, decisions(0, 2000)...)
	eventually(t, "all acknowledged", func() bool { return n.Depth() == 0 })
	n.append(t, decisions(2000, 2010)...)
	eventually(t, "all acknowledged", func() bool { return n.Depth() == 0 })
	agg.stop()
	file := segmentsOf(t, store, "n1")[0]
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func([]byte) []byte
		want   audit.FindingKind
	}{
		"one byte": {func(b []byte) []byte {
			b[bytes.Index(b, []byte(`"path":"77"`))+8] = '9'
			return b
		}, audit.FindingDamaged},
		"a record, checksum and all": {func(b []byte) []byte {
			var out []byte
			for at := 0; at < len(b); {
				f, n, err := audit.DecodeFrame(b[at:])
				if err != nil || n == 0 {
					break
				}
				at += n
				if f.Kind == audit.RecordFrame && f.Seq == 78 {
					f.Body = bytes.Replace(f.Body, []byte("ana@"), []byte("eve@"), 1)
				}
				out = audit.AppendFrame(out, f)
			}
			return out
		}, audit.FindingChanged},
		"cut off": {func(b []byte) []byte { return b[:bytes.Index(b, []byte(`"path":"77"`))] }, audit.FindingDamaged},
	} {
		if err := os.WriteFile(file, tc.change(bytes.Clone(whole)), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := collect.VerifyStore(store, verifier())
		if err != nil {
			t.Fatal(err)
		}
		if r.OK() || !slices.ContainsFunc(r.Findings(), func(f audit.Finding) bool { return f.Kind == tc.want }) {
			t.Errorf("%s: want %s, found %v", name, tc.want, r.Findings())
		}
		if name == "a record, checksum and all" && (r.Runs[0].Proved < 10 || r.Runs[0].Size != 2011) {
			t.Errorf("%s: the stretches after it are not proved: %+v", name, r.Runs[0])
		}
	}
}

func TestWhatANodeLostIsMissingAndTheRestIsProved(t *testing.T) {
	t.Parallel()
	first, second := serve(t, t.TempDir()), serve(t, t.TempDir())
	var mu sync.Mutex
	agg := first
	dir := t.TempDir()
	n := start(t, "n1", dir, func() *server {
		mu.Lock()
		defer mu.Unlock()
		return agg
	})
	// Enough for segments to be recycled once the first aggregator has them; the second has to begin in the middle.
	for i := range 8 {
		n.append(t, decisions(1000*i, 1000*i+1000)...)
		eventually(t, "all acknowledged", func() bool { return n.Depth() == 0 })
	}
	mu.Lock()
	agg = second
	mu.Unlock()
	first.stop()
	n.append(t, decisions(8000, 8100)...)
	eventually(t, "all acknowledged by the second", func() bool { return n.Depth() == 0 })
	var r audit.Report
	got := paths(t, second.Aggregator, collect.Filter{})
	if len(got) == 0 || len(got) >= 8100 || got[len(got)-1] != "8099" {
		t.Fatalf("%d decisions at the second aggregator", len(got))
	}
	fetch, err := iapmeshv1.NewAuditServiceClient(second.dial(t)).Fetch(t.Context(), &iapmeshv1.FetchRequest{Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	if r, err = collect.VerifyFetch(fetch.Recv, verifier()); err != nil {
		t.Fatal(err)
	}
	if len(r.Findings()) != 1 || r.Findings()[0].Kind != audit.FindingMissing || r.Runs[0].Proved != r.Runs[0].Records || r.Runs[0].Proved != uint64(len(got)) {
		t.Errorf("%+v", r)
	}
}

func TestAQueryFollows(t *testing.T) {
	t.Parallel()
	agg := serve(t, t.TempDir())
	n := start(t, "n1", t.TempDir(), func() *server { return agg })
	n.append(t, decisions(0, 5)...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []string
	var last error
	for e, err := range agg.Records(ctx, collect.Filter{Route: "billing", Follow: true}) {
		if err != nil {
			last = err
			break
		}
		got = append(got, e.Record.Path)
		if len(got) == 5 {
			n.append(t, decisions(5, 10)...)
		}
		if len(got) == 10 {
			other := start(t, "n2", t.TempDir(), func() *server { return agg })
			other.append(t, decisions(10, 11)...)
		}
		if len(got) == 11 {
			cancel()
		}
	}
	if !slices.Equal(got, numbers(0, 11)) || !errors.Is(last, context.Canceled) {
		t.Errorf("%v, %v", got, last)
	}
}
