package replica_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/cluster/replica"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// audienceScope admits secret/x/… to the nodes that the entry audience/x names, as a control node's view does.
func audienceScope(s store.Reader) func(context.Context, string, store.Revision) (string, func(string) bool, error) {
	return func(ctx context.Context, node string, at store.Revision) (string, func(string) bool, error) {
		if err := s.Wait(ctx, at); err != nil {
			return "", nil, err
		}
		audiences, _, err := s.List(ctx, "audience/")
		if err != nil {
			return "", nil, err
		}
		version := ""
		for _, a := range audiences {
			if strings.Contains(string(a.Value), node) {
				version += strings.TrimPrefix(a.Key, "audience/") + ","
			}
		}
		return version, func(key string) bool {
			rest, secret := strings.CutPrefix(key, "secret/")
			audience, _, _ := strings.Cut(rest, "/")
			return !secret || strings.Contains(","+version, ","+audience+",")
		}, nil
	}
}

func TestASecretShowsWhenMembershipBeginsAndGoesWhenItEnds(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	src := serve(t, replica.ServerConfig{Reader: s, Scope: audienceScope(s)})
	cfg := config(t.TempDir(), dial(t, src))
	r, stop := open(t, cfg)
	secret := func(want string) {
		t.Helper()
		e, err := r.Get(t.Context(), "secret/proxies/refresh")
		if err != nil && !fault.Is(err, fault.NotFound) {
			t.Fatal(err)
		}
		if string(e.Value) != want {
			t.Fatalf("the secret is %q, want %q", e.Value, want)
		}
	}
	mustCommit(t, s, put("audience/proxies", "node-2", "secret/proxies/refresh", "one", "route", "1"))
	mustWait(t, r, mustCommit(t, s, put("route", "2")))
	secret("")

	// A commit of which the node may hold nothing is a revision all the same.
	mustWait(t, r, mustCommit(t, s, put("secret/proxies/refresh", "two")))
	secret("")

	// The entry that makes the node a member is the one that makes the secret visible.
	mustWait(t, r, mustCommit(t, s, put("audience/proxies", "node-2 node-1")))
	secret("two")
	mustWait(t, r, mustCommit(t, s, put("secret/proxies/refresh", "three")))
	secret("three")

	// While the node is away its membership ends: it must not resume with what it may no longer hold.
	stop()
	mustCommit(t, s, put("audience/proxies", "node-2"))
	rev := mustCommit(t, s, put("route", "3"))
	if r, err := replica.Open(cfg); err != nil {
		t.Fatal(err)
	} else {
		run(t, r.Run)
		mustWait(t, r, rev)
		if got := dump(t, r); strings.Contains(got, "secret") || !strings.Contains(got, "route=3") {
			t.Errorf("state after membership ended: %s", got)
		}
	}
}

// A node whose scope changed at the very revision that it has is told, and so are its watches.
func TestAScopeThatChangedMeanwhileResetsAtTheSameRevision(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	rev := mustCommit(t, s, put("secret/x", "v", "plain", "v"))
	scope := func(version string, secrets bool) replica.ServerConfig {
		return replica.ServerConfig{Reader: s, Scope: func(context.Context, string, store.Revision) (string, func(string) bool, error) {
			return version, func(key string) bool { return secrets || !strings.HasPrefix(key, "secret/") }, nil
		}}
	}
	without, with := serve(t, scope("without", false)), serve(t, scope("with", true))
	rotation := dial(t, without)
	r, _ := open(t, config(t.TempDir(), rotation))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var seen []string
	for c, err := range r.Watch(ctx, store.Revision{}) {
		if err != nil {
			t.Fatal(err)
		}
		if !c.Reset || c.Revision != rev {
			t.Fatalf("change %+v, want resets at %v", c, rev)
		}
		seen = append(seen, render(c.Entries))
		if len(seen) == 2 {
			break
		}
		rotation.add(t, with)
		without.server.Stop()
	}
	if strings.Contains(seen[0], "secret") || !strings.Contains(seen[1], "secret") {
		t.Errorf("resets: %q", seen)
	}
}

func TestAResumedStreamSendsNoStateAgain(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	for i := range 10 {
		mustCommit(t, s, put(fmt.Sprintf("k/%d", i), strings.Repeat("v", 100<<10)))
	}
	src := serve(t, replica.ServerConfig{Reader: s})
	cfg := config(t.TempDir(), dial(t, src))
	r, stop := open(t, cfg)
	mustWait(t, r, mustCommit(t, s, put("k", "1")))
	stop()
	rev := mustCommit(t, s, put("k", "2"))

	// The second time, everything that arrives is counted.
	var bytes atomic.Int64
	server, err := replica.NewServer(replica.ServerConfig{Reader: s, MeshID: mesh, Scope: func(context.Context, string, store.Revision) (string, func(string) bool, error) {
		return "all", func(string) bool { return true }, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	counting := listen(t, &source{follow: func(node string, stream grpc.BidiStreamingServer[iapmeshv1.FollowRequest, iapmeshv1.FollowResponse]) error {
		return server.Follow(node, &countingStream{stream, &bytes})
	}})
	cfg.Dial = dial(t, counting).Dial
	r, _ = open(t, cfg)
	mustWait(t, r, rev)
	if n := bytes.Load(); n == 0 || n > 1<<10 {
		t.Errorf("%d bytes of entries were sent to a follower that lacked one", n)
	}
}

type countingStream struct {
	grpc.BidiStreamingServer[iapmeshv1.FollowRequest, iapmeshv1.FollowResponse]
	bytes *atomic.Int64
}

func (s *countingStream) Send(m *iapmeshv1.FollowResponse) error {
	for _, e := range m.GetChange().GetEntries() {
		s.bytes.Add(int64(len(e.GetKey()) + len(e.GetValue())))
	}
	return s.BidiStreamingServer.Send(m)
}

// A state larger than a message arrives whole.
func TestALargeStateComesInParts(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	var rev store.Revision
	for i := range 12 {
		rev = mustCommit(t, s, put(fmt.Sprintf("k/%02d", i), strings.Repeat("v", 900<<10)))
	}
	r, _ := open(t, config(t.TempDir(), dial(t, serve(t, replica.ServerConfig{Reader: s}))))
	for c, err := range r.Watch(t.Context(), store.Revision{}) {
		if err != nil || len(c.Entries) != 12 || c.Revision != rev {
			t.Fatalf("the first state: %d entries at %v (%v), want 12 at %v", len(c.Entries), c.Revision, err, rev)
		}
		break
	}
}

func TestASlowFollowerHoldsUpNobody(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	src := serve(t, replica.ServerConfig{Reader: s})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// This one reads how it begins, and then nothing.
	f := replica.NewFollower()
	resets := 0
	slow, err := client(t, src.addr, "slow").Follow(ctx)
	if err == nil {
		err = slow.Send(&iapmeshv1.FollowRequest{Message: &iapmeshv1.FollowRequest_Start{Start: &iapmeshv1.FollowStart{MeshId: mesh}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	read := func() {
		t.Helper()
		m, err := slow.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetChange().GetReset_() && !m.GetChange().GetMore() {
			resets++
		}
		if err := f.Add(m.GetChange()); err != nil {
			t.Fatal(err)
		}
	}
	read()
	quick, _ := open(t, config(t.TempDir(), dial(t, src)))
	var rev store.Revision
	for i := range 3 * history {
		rev = mustCommit(t, s, put("k", strings.Repeat("v", 64<<10), "n", fmt.Sprint(i)))
		mustWait(t, quick, rev)
	}
	// Once it reads, it gets what it missed as one state, and then it is up to date.
	for f.Revision() != rev {
		read()
	}
	if got, want := render(f.Entries()), dump(t, quick); got != want || resets < 2 {
		t.Errorf("after %d resets the slow follower differs from the quick one", resets)
	}
}

func TestAnotherSourceTakesOver(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	first, second := serve(t, replica.ServerConfig{Reader: s}), serve(t, replica.ServerConfig{Reader: s})
	rotation := dial(t, first, second)
	r, _ := open(t, config(t.TempDir(), rotation))
	mustWait(t, r, mustCommit(t, s, put("k", "1")))
	if first.streams.Load() != 1 || second.streams.Load() != 0 {
		t.Fatalf("streams: %d and %d, want the first source only", first.streams.Load(), second.streams.Load())
	}
	first.server.Stop()
	start := time.Now()
	mustWait(t, r, mustCommit(t, s, put("k", "2")))
	t.Logf("followed the second source after %v", time.Since(start))
	if second.streams.Load() == 0 {
		t.Error("no stream from the second source")
	}
}

// silent accepts streams and says nothing.
func silent(_ string, stream grpc.BidiStreamingServer[iapmeshv1.FollowRequest, iapmeshv1.FollowResponse]) error {
	<-stream.Context().Done()
	return stream.Context().Err()
}

func TestASilentSourceIsLeft(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	mute := listen(t, &source{follow: silent})
	var log strings.Builder // Run's alone
	rotation := dial(t, mute)
	cfg := config(t.TempDir(), rotation)
	cfg.Silence = time.Second
	cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	r, stop := open(t, cfg)
	eventually(t, "a stream from the silent source", func() bool { return mute.streams.Load() > 0 })
	rotation.add(t, serve(t, replica.ServerConfig{Reader: s}))
	mustWait(t, r, mustCommit(t, s, put("k", "1")))
	stop()
	if !strings.Contains(log.String(), "said nothing for 1s") {
		t.Errorf("log: %s", log.String())
	}
}

func TestAStateNeverGoesBack(t *testing.T) {
	t.Parallel()
	ahead, behind := newStore(t), newStore(t)
	for i := range 20 {
		mustCommit(t, ahead, put("k", fmt.Sprint(i)))
	}
	rev := mustCommit(t, ahead, put("k", "new"))
	mustCommit(t, behind, put("k", "old"))
	good, bad := serve(t, replica.ServerConfig{Reader: ahead}), serve(t, replica.ServerConfig{Reader: behind})
	// One more source that is behind, and pushes what it has nevertheless.
	old := func(_ string, stream grpc.BidiStreamingServer[iapmeshv1.FollowRequest, iapmeshv1.FollowResponse]) error {
		entries, at, err := behind.List(stream.Context(), "")
		if err != nil {
			return err
		}
		for _, p := range replica.Parts(store.Change{Revision: at, Reset: true, Entries: entries}, "all") {
			if err := stream.Send(&iapmeshv1.FollowResponse{Message: &iapmeshv1.FollowResponse_Change{Change: p}}); err != nil {
				return err
			}
		}
		return silent("", stream)
	}
	pushy := listen(t, &source{follow: old})
	rotation := dial(t, good)
	cfg := config(t.TempDir(), rotation)
	cfg.Silence = time.Second // for so long a source may be behind
	r, _ := open(t, cfg)
	mustWait(t, r, rev)
	rotation.add(t, bad)
	rotation.add(t, pushy)
	good.server.Stop()
	eventually(t, "both stale sources were asked, and left", func() bool {
		return bad.streams.Load() > 1 && pushy.streams.Load() > 1
	})
	e, err := r.Get(t.Context(), "k")
	if err != nil || string(e.Value) != "new" || r.Revision() != rev {
		t.Errorf("k = %q at %v (%v), want it new at %v", e.Value, r.Revision(), err, rev)
	}
}

func TestAnotherMeshIsRefused(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	src := serve(t, replica.ServerConfig{Reader: s, MeshID: "mesh-2"})
	stream, err := client(t, src.addr, "node-1").Follow(t.Context())
	if err == nil {
		err = stream.Send(&iapmeshv1.FollowRequest{Message: &iapmeshv1.FollowRequest_Start{Start: &iapmeshv1.FollowStart{MeshId: mesh}}})
	}
	if err == nil {
		_, err = stream.Recv()
	}
	if err := fault.FromStatus(err); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "mesh-2") {
		t.Errorf("following another mesh: %v", err)
	}
	r, _ := open(t, config(t.TempDir(), dial(t, src)))
	eventually(t, "it was asked", func() bool { return src.streams.Load() > 2 })
	if !r.Revision().IsZero() {
		t.Errorf("a state of another mesh was taken: %v", r.Revision())
	}
}

func TestARefusedNodeIsCutOff(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	var refused atomic.Bool
	src := serve(t, replica.ServerConfig{Reader: s, Recheck: func(node string) error {
		if refused.Load() {
			return fault.New(fault.Denied, "%s is revoked", node)
		}
		return nil
	}})
	r, _ := open(t, config(t.TempDir(), dial(t, src)))
	rev := mustCommit(t, s, put("k", "1"))
	mustWait(t, r, rev)
	refused.Store(true)
	mustCommit(t, s, put("k", "2"))
	eventually(t, "it was cut off and tried again", func() bool { return src.streams.Load() > 2 })
	if r.Revision() != rev {
		t.Errorf("a revoked node has %v, want no more than %v", r.Revision(), rev)
	}
}

func TestPongsTellAgeAndLeader(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	rev := mustCommit(t, s, put("k", "1"))
	type pong struct {
		asked time.Time
		at    store.Revision
		age   time.Duration
	}
	var mu sync.Mutex
	var pongs []pong
	var known atomic.Bool
	src := serve(t, replica.ServerConfig{
		Reader: s, Age: func() (time.Duration, bool) { return 1500*time.Millisecond + 1, known.Load() },
		Leader: func() (string, string) { return "control-1", "192.0.2.1:7443" },
	})
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	cfg := config(t.TempDir(), dial(t, src))
	cfg.Now = func() time.Time { return now }
	cfg.OnPong = func(asked time.Time, at store.Revision, age time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		pongs = append(pongs, pong{asked, at, age})
	}
	r, _ := open(t, cfg)
	eventually(t, "a leader", func() bool { id, addr := r.Leader(); return id == "control-1" && addr == "192.0.2.1:7443" })
	mu.Lock()
	if len(pongs) > 0 {
		t.Errorf("an answer without an age was passed on: %+v", pongs)
	}
	mu.Unlock()
	known.Store(true)
	eventually(t, "an answer", func() bool { mu.Lock(); defer mu.Unlock(); return len(pongs) > 0 })
	mu.Lock()
	defer mu.Unlock()
	if want := (pong{now, rev, 1501 * time.Millisecond}); pongs[0] != want {
		t.Errorf("answer %+v, want %+v: an age is rounded up", pongs[0], want)
	}
}

// A node's second stream ends its first, so that a connection that died unnoticed costs nothing.
func TestANewerStreamEndsTheOlder(t *testing.T) {
	t.Parallel()
	src := serve(t, replica.ServerConfig{Reader: newStore(t)})
	begin := func() grpc.BidiStreamingClient[iapmeshv1.FollowRequest, iapmeshv1.FollowResponse] {
		stream, err := client(t, src.addr, "node-1").Follow(t.Context())
		if err == nil {
			err = stream.Send(&iapmeshv1.FollowRequest{Message: &iapmeshv1.FollowRequest_Start{Start: &iapmeshv1.FollowStart{MeshId: mesh}}})
		}
		if err == nil {
			_, err = stream.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	first := begin()
	begin()
	var err error
	for err == nil {
		_, err = first.Recv()
	}
	if !fault.Is(fault.FromStatus(err), fault.Unavailable) || errors.Is(err, context.Canceled) {
		t.Errorf("the first stream ended with %v", err)
	}
}
