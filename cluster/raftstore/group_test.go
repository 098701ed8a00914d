package raftstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/iapmesh/iapmesh/cluster/raftstore"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

func TestWritesResumeWithoutTheLeader(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 3, brisk)
	type reign struct {
		of   *member
		term store.Term
		over <-chan struct{}
	}
	reigns := make(chan reign)
	for _, m := range g.members {
		go m.Lead(t.Context(), func(ctx context.Context, term store.Term) error {
			select {
			case reigns <- reign{m, term, ctx.Done()}:
			case <-ctx.Done():
			}
			<-ctx.Done()
			return ctx.Err()
		})
	}
	first := <-reigns
	old := first.of
	mustWait(t, old, g.commit(put("before", "cut")))

	g.net.Cut(old.addr)
	rev := g.commit(put("after", "cut"), old)
	<-first.over // the old leader noticed by itself
	if _, err := old.Commit(t.Context(), put("lost", "write")); !fault.Is(err, fault.Unavailable) {
		t.Errorf("commit at the leader that was cut off: %v, want unavailable", err)
	}
	if got := value(t, old, "before"); got != "cut" {
		t.Errorf("the member that is cut off reads %q", got)
	}
	fenced := put("after", "fenced")
	fenced.Term = first.term
	g.attempt([]*member{old}, func(leader *member) error {
		_, err := leader.Commit(t.Context(), fenced)
		switch {
		case err == nil:
			t.Error("commit under the old term: it was taken")
		case fault.Is(err, fault.Conflict):
			err = nil
		}
		return err
	})

	g.net.Heal(old.addr)
	for _, m := range g.members {
		mustWait(t, m, rev)
	}
	for _, m := range g.others(old) {
		if got, want := dump(t, m), dump(t, old); got != want {
			t.Errorf("after healing %s has %s, want %s", m.cfg.NodeID, got, want)
		}
	}
}

func TestCallsOutliveDeadConnections(t *testing.T) {
	t.Parallel()
	// A socket that outlives its listener: nobody else can listen there.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s")})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	_, refused := net.Dial("unix", l.Addr().String())
	if !errors.Is(refused, syscall.ECONNREFUSED) {
		t.Fatal(refused)
	}
	for name, tc := range map[string]struct {
		failing error
		calls   int
	}{
		"connection closed":  {fmt.Errorf("decode: %w", io.EOF), 4},
		"connection reset":   {&net.OpError{Op: "write", Err: syscall.ECONNRESET}, 4},
		"nobody listens":     {refused, 1},
		"refused by a peer":  {errors.New("not now"), 1},
		"reset when dialing": {&net.OpError{Op: "dial", Err: syscall.ECONNRESET}, 1},
	} {
		calls := 0
		err := raftstore.Retry(func() error {
			if calls++; calls <= 3 {
				return tc.failing
			}
			return nil
		})
		if calls != tc.calls || (err == nil) != (tc.calls == 4) {
			t.Errorf("%s: %d calls, error %v, want %d calls", name, calls, err, tc.calls)
		}
	}
	endless := 0
	if err := raftstore.Retry(func() error { endless++; return io.EOF }); !errors.Is(err, io.EOF) || endless > 10 {
		t.Errorf("a member that closes every connection: %d calls, %v", endless, err)
	}
}

func TestOthersNameTheLeader(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 3, nil)
	leader := g.leader()
	rev := mustCommit(t, leader, put("k", "v"))
	for _, m := range g.others(leader) {
		mustWait(t, m, rev)
		_, commitErr := m.Commit(t.Context(), put("k", "w"))
		_, syncErr := m.Sync(t.Context())
		for what, err := range map[string]error{
			"commit": commitErr, "sync": syncErr,
			"add voter": m.AddVoter(t.Context(), "node-7", "127.0.0.1:1"),
			"transfer":  m.TransferLeadership(t.Context()),
		} {
			var elsewhere *raftstore.NotLeaderError
			if !errors.As(err, &elsewhere) || elsewhere.ID != leader.cfg.NodeID || elsewhere.Addr != leader.addr || !fault.Is(err, fault.Unavailable) {
				t.Errorf("%s at %s: %v, want the leader's name and address", what, m.cfg.NodeID, err)
			}
		}
		if st := m.State(); st.Role != "follower" || st.LeaderID != leader.cfg.NodeID || st.Revision != rev || st.LastContact < 0 || st.Term == 0 {
			t.Errorf("state of %s: %+v", m.cfg.NodeID, st)
		}
	}
}

func TestALoneVoterOfThreeNeitherCommitsNorSyncs(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 3, brisk)
	leader := g.leader()
	rev := g.commit(put("k", "v"))
	mustWait(t, leader, rev)
	for _, m := range g.others(leader) {
		m.end(t)
	}
	// It may not have noticed yet: then the commit is in doubt, and the round does not come back.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := leader.Commit(ctx, put("k", "w")); !fault.Is(err, fault.Unavailable) {
		t.Errorf("commit: %v", err)
	}
	if err := leader.QuorumRound(ctx); !fault.Is(err, fault.Unavailable) || ctx.Err() != nil {
		t.Errorf("quorum round: %v", err)
	}
	if e, err := leader.Get(t.Context(), "k"); err != nil || e.Revision != rev {
		t.Errorf("local read: %+v, %v", e, err)
	}
}

func TestACommitWhoseContextEndsIsInDoubt(t *testing.T) {
	t.Parallel()
	disk := newDisk()
	g := newGroup(t, 1, func(_ int, c *raftstore.Config) { *c = raftstore.WithDisk(*c, disk.wrap) })
	m := g.leader()
	disk.stalls.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		<-disk.stalled // the entry is about to be written
		cancel()
	}()
	_, err := m.Commit(ctx, put("k", "v"))
	if !errors.Is(err, store.ErrInDoubt) || !errors.Is(err, context.Canceled) {
		t.Errorf("commit: %v, want in doubt, because of the context", err)
	}
	disk.stalls.Store(false)
	close(disk.gate)
	eventually(t, "the commit that was in doubt", func() bool {
		_, err := m.Get(t.Context(), "k")
		return err == nil
	})
}

func TestAPlannedStopHandsLeadershipOver(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 3, func(_ int, c *raftstore.Config) { c.Heartbeat = time.Hour }) // by timeout nobody would lead again
	old := g.leader()
	rev := mustCommit(t, old, put("k", "v"))
	for _, m := range g.members {
		mustWait(t, m, rev)
	}
	old.end(t)
	mustCommit(t, g.leader(old), put("k", "w"))
}

// disk stalls or fails when told to.
type disk struct {
	raft.LogStore
	stalls, fails atomic.Bool
	gate          chan struct{} // what stalls goes on once it is closed
	stalled       chan struct{} // has room for one word that something stalls
}

func newDisk() *disk { return &disk{gate: make(chan struct{}), stalled: make(chan struct{}, 1)} }

func (d *disk) wrap(inner raft.LogStore) raft.LogStore {
	d.LogStore = inner
	return d
}

func (d *disk) StoreLogs(logs []*raft.Log) error {
	if d.fails.Load() {
		return errors.New("input/output error")
	}
	if d.stalls.Load() {
		select {
		case d.stalled <- struct{}{}:
		default:
		}
		<-d.gate
	}
	return d.LogStore.StoreLogs(logs)
}

// stall is how long a write may take where a test has one fail: longer than a loaded machine's.
const stall = 10 * time.Second

func TestAStalledDiskEndsTheLeader(t *testing.T) {
	t.Parallel()
	disks := make([]*disk, 3)
	g := newGroup(t, 3, func(i int, c *raftstore.Config) {
		disks[i] = newDisk()
		*c = raftstore.WithDisk(*c, disks[i].wrap)
		c.DiskStall = stall
	})
	for i, m := range g.members {
		if m != g.leader() {
			continue
		}
		t.Cleanup(func() { close(disks[i].gate) })
		disks[i].stalls.Store(true)
		go m.Commit(t.Context(), put("k", "v"))
		select {
		case err := <-m.done:
			m.done <- err
			if !errors.Is(err, raftstore.ErrDiskStalled) {
				t.Errorf("run: %v", err)
			}
		case <-time.After(patience):
			t.Fatal("run did not end")
		}
		g.net.Cut(m.addr) // what the end of the process does
		g.elect(g.others(m)...)
		mustCommit(t, g.leader(m), put("k", "w"))
		return
	}
}

func TestAFailingDiskEndsTheMember(t *testing.T) {
	t.Parallel()
	disk := newDisk()
	g := newGroup(t, 1, func(_ int, c *raftstore.Config) { *c = raftstore.WithDisk(*c, disk.wrap); c.DiskStall = stall })
	m := g.leader()
	disk.fails.Store(true)
	if _, err := m.Commit(t.Context(), put("k", "v")); !errors.Is(err, store.ErrInDoubt) {
		t.Errorf("commit: %v, want in doubt", err)
	}
	err := <-m.done
	m.done <- err
	if !errors.Is(err, raftstore.ErrDiskFailed) {
		t.Errorf("run: %v", err)
	}
}

// Without the nudge, an idle group's followers learn of a commit after CommitTimeout × [1, 2): here, after all patience.
func TestFollowersLearnOfACommitAtOnce(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 3, func(_ int, c *raftstore.Config) { c.CommitTimeout = 10 * patience })
	leader := g.leader()
	eventually(t, "pipelines to all", func() bool { // while raft opens one, a nudge is lost
		rev := mustCommit(t, leader, put("k", "warm"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return !slices.ContainsFunc(g.members, func(m *member) bool { return m.Wait(ctx, rev) != nil })
	})
	for i := range 5 {
		rev := mustCommit(t, leader, put("k", fmt.Sprint(i)))
		for _, m := range g.members {
			mustWait(t, m, rev)
		}
	}
}

func TestAFollowerFarBehindGetsASnapshot(t *testing.T) {
	t.Parallel()
	const canary = "canary-77aa"
	g := newGroup(t, 3, func(_ int, c *raftstore.Config) { c.TrailingLogs = 8 })
	leader := g.leader()
	behind := g.others(leader)[0]
	before := mustCommit(t, leader, put("k", "before"))
	mustWait(t, behind, before)
	g.net.Cut(behind.addr)
	for i := range 40 {
		mustCommit(t, leader, put(fmt.Sprint(canary, "/", i%30), fmt.Sprint(canary, i)))
	}
	if err := leader.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	rev := mustCommit(t, leader, store.Txn{Deletes: []string{"k"}})
	g.net.Heal(behind.addr)
	for c, err := range behind.Watch(t.Context(), before) {
		if err != nil {
			t.Fatal(err)
		}
		if c.Reset {
			break // there is no other way to get here
		}
		t.Fatalf("a change at %v came, though the log that held it is gone", c.Revision)
	}
	mustWait(t, behind, rev)
	if got, want := dump(t, behind), dump(t, leader); got != want {
		t.Errorf("after the snapshot: %s\nwant %s", got, want)
	}
	// What it was sent, it keeps under its own seal, and restarts from.
	behind.end(t)
	if got := dump(t, g.start(behind.cfg, behind.addr)); got != dump(t, leader) {
		t.Error("the state after a restart differs")
	}
}

func TestMembersComeAndGo(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 1, nil)
	first := g.leader()
	cfg := first.cfg
	cfg.Dir, cfg.NodeID, cfg.Bootstrap = t.TempDir(), "node-b", false
	b := g.start(cfg, "")
	if err := first.AddNonvoter(t.Context(), "node-b", b.addr); err != nil {
		t.Fatal(err)
	}
	mustWait(t, b, mustCommit(t, first, put("k", "v")))
	want := []raftstore.Server{{ID: "node-0", Addr: first.addr, Voter: true}, {ID: "node-b", Addr: b.addr}}
	if got, err := first.Servers(); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("members %v, %v, want %v", got, err, want)
	}
	if err := first.AddVoter(t.Context(), "node-b", b.addr); err != nil {
		t.Fatal(err)
	}
	if err := first.TransferLeadershipTo(t.Context(), "node-b", b.addr); err != nil {
		t.Fatal(err)
	}
	g.members = append(g.members, b)
	if leader := g.leader(first); leader != b {
		t.Fatalf("%s leads", leader.cfg.NodeID)
	}
	if err := b.RemoveServer(t.Context(), "node-0"); err != nil {
		t.Fatal(err)
	}
	first.end(t)
	mustCommit(t, b, put("k", "alone again"))
	if got, err := b.Servers(); err != nil || len(got) != 1 {
		t.Errorf("members %v, %v", got, err)
	}
}

func TestANewEpochStartsWatchesAnew(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 1, nil)
	m := g.leader()
	r1 := mustCommit(t, m, put("k", "v"))
	r2, err := m.AdvanceEpoch(t.Context(), 5)
	if err != nil || r2.Epoch != 5 || !r1.Before(r2) {
		t.Fatalf("advance epoch: %v, %v", r2, err)
	}
	if _, err := m.AdvanceEpoch(t.Context(), 5); !fault.Is(err, fault.Conflict) {
		t.Errorf("the same epoch again: %v", err)
	}
	for c, err := range m.Watch(t.Context(), r1) {
		if err != nil || !c.Reset || c.Revision != r2 || len(c.Entries) != 1 || c.Entries[0].Revision != r1 {
			t.Errorf("watch from the old epoch: %+v, %v", c, err)
		}
		break
	}
	guarded := put("k", "w")
	guarded.Guards = []store.Guard{{Key: "k", Revision: r1}} // entries keep their revisions
	if r3 := mustCommit(t, m, guarded); r3.Epoch != 5 {
		t.Errorf("commit in the new epoch: %v", r3)
	}
	want := dump(t, m)
	m.end(t)
	if got := dump(t, g.start(m.cfg, m.addr)); got != want {
		t.Errorf("after a restart %s, want %s", got, want)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	g := newGroup(t, 1, func(_ int, c *raftstore.Config) { c.Registerer = registry })
	m := g.leader()
	rev := mustCommit(t, m, put("k", "v"))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		sample := f.GetMetric()[0]
		got[f.GetName()] = sample.GetGauge().GetValue() + float64(sample.GetHistogram().GetSampleCount())
	}
	if got["iapmesh_raft_is_leader"] != 1 || got["iapmesh_raft_commit_seconds"] != 1 || got["iapmesh_raft_term"] < 1 ||
		got["iapmesh_raft_applied_index"] < float64(rev.Index) || got["iapmesh_raft_last_contact_seconds"] != 0 {
		t.Errorf("metrics: %v", got)
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	m.end(t)
	if families, err := registry.Gather(); err != nil || len(families) > 0 {
		t.Errorf("%d families outlive the store, %v", len(families), err)
	}
}
