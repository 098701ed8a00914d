package raftstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"

	"github.com/iapmesh/iapmesh/cluster/raftstore"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// killed returns the configuration of a member that finds what kill -9 would leave of m: the files as they are now.
func killed(t testing.TB, m *member) raftstore.Config {
	t.Helper()
	cfg := m.cfg
	cfg.Dir = filepath.Join(t.TempDir(), "copy")
	err := filepath.WalkDir(m.cfg.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(cfg.Dir, strings.TrimPrefix(path, m.cfg.Dir))
		if d.IsDir() {
			return os.MkdirAll(to, 0o700)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		// A segment of the log is 64 MiB, nearly all of it zeros: leave a hole.
		err = os.WriteFile(to, trimZeros(content), 0o600)
		return errors.Join(err, os.Truncate(to, int64(len(content))))
	})
	if err != nil {
		t.Fatalf("copy data directory: %v", err)
	}
	return cfg
}

// trimZeros cuts off the zeros at the end, block by block: byte by byte takes a second for a segment under the race detector.
func trimZeros(b []byte) []byte {
	zeros := make([]byte, 64<<10)
	for bytes.HasSuffix(b, zeros) {
		b = b[:len(b)-len(zeros)]
	}
	return bytes.TrimRight(b, "\x00")
}

func dump(t testing.TB, s store.Reader) string {
	t.Helper()
	entries, at, err := s.List(t.Context(), "")
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	var b strings.Builder
	fmt.Fprintln(&b, at)
	for _, e := range entries {
		fmt.Fprintf(&b, "%s=%s@%v\n", e.Key, e.Value, e.Revision)
	}
	return b.String()
}

func TestEveryCommitSurvivesKill9WithoutQuorum(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 3, nil)
	leader := g.leader()
	for i := range 10 {
		rev := mustCommit(t, leader, put(fmt.Sprint("key/", i%4), fmt.Sprint(i)))
		for _, m := range g.members {
			mustWait(t, m, rev)
		}
	}
	want := dump(t, leader)
	var copies []raftstore.Config
	for _, m := range g.members {
		copies = append(copies, killed(t, m))
	}
	if err := g.end(); err != nil {
		t.Error(err)
	}
	for i, cfg := range copies {
		alone := g.start(cfg, g.members[i].addr)
		if got := dump(t, alone); got != want {
			t.Errorf("%s alone after kill -9 serves\n%s\nwant\n%s", cfg.NodeID, got, want)
		}
		if _, err := alone.Commit(t.Context(), put("k", "v")); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%s alone commits: %v, want unavailable", cfg.NodeID, err)
		}
		alone.end(t)
	}
	// All of them together go on, with the state and the members that they had.
	for i, cfg := range copies {
		g.members[i] = g.start(cfg, g.members[i].addr)
	}
	leader = g.elect(g.members...)
	rev := mustCommit(t, leader, put("after", "all"))
	for _, m := range g.members {
		mustWait(t, m, rev)
		if dump(t, m) != dump(t, leader) {
			t.Errorf("%s differs from the leader after the restart", m.cfg.NodeID)
		}
		if servers, err := m.Servers(); err != nil || len(servers) != 3 {
			t.Errorf("%s knows the members %v, %v", m.cfg.NodeID, servers, err)
		}
	}
}

func TestALongLogWithoutSnapshotReplays(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 1, func(_ int, c *raftstore.Config) { c.SnapshotThreshold = 1 << 40 })
	m := g.members[0]
	const writers, each = 96, 100 // more than the 8192 beyond which raft's own restore blocks
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if _, err := m.Commit(t.Context(), put(fmt.Sprint("w/", w), fmt.Sprint(i))); err != nil {
					t.Errorf("commit: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	want := dump(t, m)
	cfg := killed(t, m)
	m.end(t)
	again := g.start(cfg, m.addr)
	if got := dump(t, again); got != want {
		t.Error("the state after a restart differs")
	}
	g.members[0] = again
	mustCommit(t, g.elect(g.members...), put("k", "v"))
}

func TestASnapshotAndTheLogAfterItRestoreTogether(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 1, func(_ int, c *raftstore.Config) { c.TrailingLogs = 4 })
	m := g.members[0]
	big := strings.Repeat("v", 100<<10) // several chunks
	for i := range 30 {
		mustCommit(t, m, put(fmt.Sprint("key/", i%7), fmt.Sprint(i, big)))
		if i == 10 || i == 20 {
			if err := m.Snapshot(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := dump(t, m)
	cfg := killed(t, m)
	m.end(t)
	m = g.start(cfg, m.addr)
	g.members[0] = m
	if got := dump(t, m); got != want {
		t.Error("the state after a restart differs")
	}
	mustCommit(t, g.elect(g.members...), put("k", "v"))
	want = dump(t, m)
	m.end(t)
	if got := dump(t, g.start(cfg, m.addr)); got != want {
		t.Error("the state after a second restart differs")
	}
}

func TestOneProcessAtATime(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 1, nil)
	_, err := g.tryStart(g.members[0].cfg, "")
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("a second store on the same directory: %v, want unavailable", err)
	}
}

func TestReadsWorkBeforeRunAndNothingElse(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 1, nil)
	m := g.members[0]
	mustCommit(t, m, put("k", "v"))
	m.end(t)
	trans, err := g.net.listen("")
	if err != nil {
		t.Fatal(err)
	}
	cfg := m.cfg
	cfg.Transport = trans
	s, err := raftstore.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := value(t, s, "k"); got != "v" {
		t.Errorf("k = %q", got)
	}
	if _, err := s.Commit(t.Context(), put("k", "w")); !fault.Is(err, fault.Unavailable) {
		t.Errorf("commit before run: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.Lead(ctx, nil) }()
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := <-ended; !fault.Is(err, fault.Unavailable) {
		t.Errorf("lead of a store that closed: %v", err)
	}
}

// sealed returns a data directory with a log and a snapshot, and what its member served.
func sealed(t *testing.T, g *group, canary string) (raftstore.Config, string) {
	t.Helper()
	m := g.members[0]
	for i := range 20 {
		mustCommit(t, m, put(fmt.Sprint(canary, "-key/", i), fmt.Sprint(canary, "-value ", i)))
		if i == 12 {
			if err := m.Snapshot(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := dump(t, m)
	m.end(t)
	return m.cfg, want
}

func TestNothingOfTheStateIsReadableOnDisk(t *testing.T) {
	t.Parallel()
	const canary = "canary-5d1f"
	g := newGroup(t, 1, func(_ int, c *raftstore.Config) { c.TrailingLogs = 4 })
	cfg, _ := sealed(t, g, canary)
	files := 0
	search := func() (found []string) {
		err := filepath.WalkDir(cfg.Dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			files++
			content, err := os.ReadFile(path)
			if strings.Contains(string(content), canary) {
				found = append(found, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if found := search(); len(found) > 0 || files < 5 {
		t.Errorf("%d files searched, the canary is in %v", files, found)
	}
	// The search itself works.
	if err := os.WriteFile(filepath.Join(cfg.Dir, "plain"), []byte("…"+canary+"-value…"), 0o600); err != nil {
		t.Fatal(err)
	}
	if found := search(); len(found) != 1 {
		t.Errorf("the search found %v", found)
	}
}

func TestAChangedFileIsAnErrorAtOpen(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 1, func(_ int, c *raftstore.Config) { c.TrailingLogs = 4 })
	original, _ := sealed(t, g, "k")
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b[(at+len(b))%len(b)] ^= 1; return b }
	}
	replace := func(old, new string) func([]byte) []byte {
		return func(b []byte) []byte { return []byte(strings.Replace(string(b), old, new, 1)) }
	}
	for name, tc := range map[string]struct {
		glob   string
		change func([]byte) []byte // nil: remove
	}{
		"store key":               {"store.key", flip(20)},
		"store key gone":          {"store.key", nil},
		"snapshot content":        {"snapshots/*/state.bin", flip(-40)},
		"snapshot header":         {"snapshots/*/state.bin", flip(3)},
		"snapshot cut":            {"snapshots/*/state.bin", func(b []byte) []byte { return b[:len(b)/2] }},
		"snapshot gone":           {"snapshots", nil},
		"snapshot unreadable":     {"snapshots/*/meta.json", func([]byte) []byte { return nil }},
		"snapshot's members":      {"snapshots/*/meta.json", replace("node-0", "node-9")},
		"log entry":               {"wal/*.wal", func(b []byte) []byte { b[len(trimZeros(b))*3/4] ^= 1; return b }},
		"log gone":                {"wal/*.wal", nil},
		"log with its index gone": {"wal", nil},
		"mark":                    {"applied", func(b []byte) []byte { b[5] ^= 1; b[64+5] ^= 1; return b }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := killed(t, &member{cfg: original})
			paths, err := filepath.Glob(filepath.Join(cfg.Dir, tc.glob))
			if err != nil || len(paths) == 0 {
				t.Fatalf("no file matches %s: %v", tc.glob, err)
			}
			for _, path := range paths {
				if tc.change == nil {
					if err := os.RemoveAll(path); err != nil {
						t.Fatal(err)
					}
					continue
				}
				content, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, tc.change(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			m, err := g.tryStart(cfg, "")
			if err == nil {
				t.Fatalf("opened, and serves\n%s", dump(t, m))
			}
			t.Log(err)
		})
	}
	t.Run("entries exchanged", func(t *testing.T) {
		t.Parallel()
		cfg := killed(t, &member{cfg: original})
		log, err := wal.Open(filepath.Join(cfg.Dir, "wal"))
		if err != nil {
			t.Fatal(err)
		}
		last, err := log.LastIndex()
		if err != nil {
			t.Fatal(err)
		}
		first := last - 3
		var entries []*raft.Log
		for i := first; i <= last; i++ {
			var l raft.Log
			if err := log.GetLog(i, &l); err != nil {
				t.Fatal(err)
			}
			entries = append(entries, &l)
		}
		entries[1].Data, entries[2].Data = entries[2].Data, entries[1].Data
		if err := errors.Join(log.DeleteRange(first, last), log.StoreLogs(entries), log.Close()); err != nil {
			t.Fatal(err)
		}
		if m, err := g.tryStart(cfg, ""); err == nil {
			t.Fatalf("opened, and serves\n%s", dump(t, m))
		}
	})
	t.Run("another seal", func(t *testing.T) {
		t.Parallel()
		cfg := killed(t, &member{cfg: original})
		cfg.Seal = newSeal()
		if _, err := g.tryStart(cfg, ""); err == nil {
			t.Error("opened under another seal")
		}
	})
	t.Run("another node", func(t *testing.T) {
		t.Parallel()
		cfg := killed(t, &member{cfg: original})
		cfg.NodeID = "node-9"
		if _, err := g.tryStart(cfg, ""); err == nil {
			t.Error("opened as another node")
		}
	})
}

// Wherever a byte of the log is changed: an error, or the very same state (some bytes say nothing).
func TestNoChangedLogByteChangesTheState(t *testing.T) {
	t.Parallel()
	g := newGroup(t, 1, func(_ int, c *raftstore.Config) { c.TrailingLogs = 4 })
	original, want := sealed(t, g, "k")
	paths, err := filepath.Glob(filepath.Join(original.Dir, "wal", "*.wal"))
	if err != nil || len(paths) != 1 {
		t.Fatalf("log segments: %v, %v", paths, err)
	}
	content, err := os.ReadFile(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	end := len(trimZeros(content))
	content = content[:end]
	refused := 0
	for at := 0; at < end; at += 97 {
		cfg := killed(t, &member{cfg: original})
		changed := append([]byte{}, content...)
		changed[at] ^= 0x10
		path := filepath.Join(cfg.Dir, "wal", filepath.Base(paths[0]))
		if err := errors.Join(os.WriteFile(path, changed, 0o600), os.Truncate(path, info.Size())); err != nil {
			t.Fatal(err)
		}
		m, err := g.tryStart(cfg, "")
		if err != nil {
			refused++
			continue
		}
		if got := dump(t, m); got != want {
			t.Errorf("byte %d of %d changed: it opened, and serves\n%s", at, end, got)
		}
		m.end(t)
	}
	if refused == 0 {
		t.Errorf("no changed byte of %d was refused", end)
	}
}
