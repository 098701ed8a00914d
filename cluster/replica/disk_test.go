package replica_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/cluster/replica"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

const canary = "canary-7f3a91c2"

// filled returns the configuration of a replica that followed a few commits and stopped, and the state that it had after each
// of its writes, oldest first.
func filled(t *testing.T) (cfg replica.Config, states []string) {
	t.Helper()
	s := newStore(t)
	cfg = config(t.TempDir(), dial(t, serve(t, replica.ServerConfig{Reader: s})))
	r, stop := open(t, cfg)
	mustWait(t, r, store.Revision{Epoch: 1})
	for i := range 8 {
		mustWait(t, r, mustCommit(t, s, put("k/"+canary, fmt.Sprint(i, canary), fmt.Sprint("n/", i), canary)))
		states = append(states, dump(t, r))
	}
	stop()
	cfg.Dial = dial(t).Dial
	return cfg, states
}

// offline opens a replica that finds no source, and returns its state.
func offline(t *testing.T, cfg replica.Config) (state string, revision store.Revision) {
	t.Helper()
	r, err := replica.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.Revision().IsZero() {
		if _, err := r.Get(t.Context(), "k"); !fault.Is(err, fault.Unavailable) {
			t.Errorf("get without a state: %v", err)
		}
		return "", store.Revision{}
	}
	return dump(t, r), r.Revision()
}

func file(cfg replica.Config) string { return filepath.Join(cfg.Dir, "state") }

// records returns where the records of a file begin, and where the last ends.
func records(t *testing.T, b []byte) []int {
	t.Helper()
	u32 := func(at int) int { return int(b[at])<<24 | int(b[at+1])<<16 | int(b[at+2])<<8 | int(b[at+3]) }
	at := len("iapmesh replica 1\n")
	at += 4 + u32(at)
	starts := []int{at}
	for at < len(b) {
		at += 4 + u32(at)
		starts = append(starts, at)
	}
	return starts
}

func TestNothingOnDiskIsReadable(t *testing.T) {
	t.Parallel()
	cfg, _ := filled(t)
	files := 0
	err := filepath.WalkDir(cfg.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		if info, err := d.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v (%v)", path, info.Mode(), err)
		}
		content, err := os.ReadFile(path)
		if bytes.Contains(content, []byte(canary)) {
			t.Errorf("%s shows what it holds", path)
		}
		return err
	})
	if err != nil || files < 2 {
		t.Errorf("%d files, %v", files, err)
	}
}

// Wherever a write was cut short, what was written before it is there.
func TestATornTailIsLeftOut(t *testing.T) {
	t.Parallel()
	cfg, states := filled(t)
	whole, err := os.ReadFile(file(cfg))
	if err != nil {
		t.Fatal(err)
	}
	starts := records(t, whole)
	last := starts[len(starts)-2]
	for _, cut := range []int{last + 1, last + 4, last + 20, len(whole) - 1} {
		rest := len(whole) - cut
		for name, tail := range map[string][]byte{"cut": nil, "zeros": make([]byte, rest), "garbage": bytes.Repeat([]byte{0xa5}, rest)} {
			if bytes.Equal(tail, whole[cut:]) {
				continue // sealed bytes are random: what a crash left may by chance be what was meant
			}
			if err := os.WriteFile(file(cfg), append(bytes.Clone(whole[:cut]), tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			if got, _ := offline(t, cfg); got != states[len(states)-2] {
				t.Errorf("%s at %d of %d: state %s, want %s", name, cut, len(whole), got, states[len(states)-2])
			}
		}
	}
	// What is left is a file to go on with.
	if got, _ := offline(t, cfg); got != states[len(states)-2] {
		t.Errorf("opened again: %s", got)
	}
}

// Damage that no crash explains: nothing of the file is served, and the state is fetched anew.
func TestADamagedFileIsSetAsideAndFetchedAnew(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(b []byte, starts []int) []byte{
		"a bit in the snapshot":    func(b []byte, s []int) []byte { b[s[0]+40] ^= 1; return b },
		"a bit in the middle":      func(b []byte, s []int) []byte { b[s[3]+40] ^= 1; return b },
		"a record left out":        func(b []byte, s []int) []byte { return append(b[:s[3]:s[3]], b[s[4]:]...) },
		"a record twice":           func(b []byte, s []int) []byte { return append(b[:s[4]:s[4]], b[s[3]:]...) },
		"another version":          func(b []byte, _ []int) []byte { b[16] ^= 1; return b },
		"cut within the snapshot":  func(b []byte, s []int) []byte { return b[:s[0]+10] },
		"cut after the sealed key": func(b []byte, s []int) []byte { return b[:s[0]] },
		"empty":                    func([]byte, []int) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg, _ := filled(t)
			b, err := os.ReadFile(file(cfg))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file(cfg), damage(bytes.Clone(b), records(t, b)), 0o600); err != nil {
				t.Fatal(err)
			}
			if got, rev := offline(t, cfg); got != "" || !rev.IsZero() {
				t.Errorf("served %s at %v", got, rev)
			}
			if _, err := os.Stat(file(cfg) + ".damaged"); err != nil {
				t.Error(err)
			}
			s := newStore(t)
			rev := mustCommit(t, s, put("k", "again"))
			cfg.Dial = dial(t, serve(t, replica.ServerConfig{Reader: s})).Dial
			r, stop := open(t, cfg)
			mustWait(t, r, rev)
			want := dump(t, r)
			stop()
			if got, _ := offline(t, cfg); got != want {
				t.Errorf("persisted anew: %s, want %s", got, want)
			}
		})
	}
}

func TestAForeignFileIsAnErrorAndStays(t *testing.T) {
	t.Parallel()
	original, states := filled(t)
	for name, change := range map[string]func(*replica.Config){
		"another seal": func(c *replica.Config) { c.Seal = newSeal("another") },
		"another mesh": func(c *replica.Config) { c.MeshID = "mesh-2" },
	} {
		cfg := original
		change(&cfg)
		if _, err := replica.Open(cfg); err == nil || !strings.Contains(err.Error(), "belongs to another mesh, node or seal") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got, _ := offline(t, original); got != states[len(states)-1] {
		t.Errorf("its owner finds %s", got)
	}
}

func TestOneProcessAtATime(t *testing.T) {
	t.Parallel()
	cfg, _ := filled(t)
	r, err := replica.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := replica.Open(cfg); !fault.Is(err, fault.Unavailable) {
		t.Errorf("opened twice: %v", err)
	}
}

func TestTheFileIsCompacted(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	cfg := config(t.TempDir(), dial(t, serve(t, replica.ServerConfig{Reader: s})))
	cfg.CompactBytes = 64 << 10
	r, stop := open(t, cfg)
	for i := range 100 {
		mustWait(t, r, mustCommit(t, s, put("k", strings.Repeat(fmt.Sprint(i%10), 4<<10))))
	}
	want := dump(t, r)
	stop()
	info, err := os.Stat(file(cfg))
	if err != nil || info.Size() > 2*cfg.CompactBytes {
		t.Errorf("%d bytes (%v) after 400 KiB of changes to one key", info.Size(), err)
	}
	if got, _ := offline(t, cfg); got != want {
		t.Error("the state differs after compaction and restart")
	}
}

// A disk that refuses does not keep a revocation from being applied, and is caught up with once it takes writes again.
func TestADiskThatRefusesIsServedFromMemory(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	cfg := config(t.TempDir(), dial(t, serve(t, replica.ServerConfig{Reader: s})))
	cfg.CompactBytes = 1 // each write makes a new file
	blocked := filepath.Join(cfg.Dir, "state.new")
	if err := os.MkdirAll(blocked, 0o700); err != nil {
		t.Fatal(err)
	}
	r, stop := open(t, cfg)
	mustWait(t, r, mustCommit(t, s, put("revocation", "1")))
	if err := os.Remove(blocked); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the file", func() bool { _, err := os.Stat(file(cfg)); return err == nil })
	want := dump(t, r)
	stop()
	if got, _ := offline(t, cfg); got != want {
		t.Errorf("persisted %s, want %s", got, want)
	}
}

const childEnv = "IAPMESH_TEST_REPLICA"

// TestChild is the process that TestKilledInTheMiddleOfWrites kills.
func TestChild(t *testing.T) {
	dir, addr, ok := strings.Cut(os.Getenv(childEnv), "|")
	if !ok {
		t.Skip("runs as a child of TestKilledInTheMiddleOfWrites only")
	}
	cfg := config(dir, dial(t, &source{addr: addr}))
	cfg.CompactBytes = 20 << 10
	r, _ := open(t, cfg)
	for c, err := range r.Watch(t.Context(), store.Revision{}) {
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("has %v\n", c.Revision)
	}
}

func TestKilledInTheMiddleOfWrites(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	src := serve(t, replica.ServerConfig{Reader: s})
	cfg := config(t.TempDir(), dial(t))
	states := map[store.Revision]string{}
	for round := range 5 {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChild$")
		child.Env = append(os.Environ(), childEnv+"="+cfg.Dir+"|"+src.addr)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		var said store.Revision
		lines := bufio.NewScanner(out)
		read := make(chan struct{})
		enough := make(chan struct{})
		go func() {
			defer close(read)
			for n := 0; lines.Scan(); n++ {
				fmt.Sscanf(lines.Text(), "has %d.%d", &said.Epoch, &said.Index)
				if n == 40+10*round {
					close(enough)
				}
			}
		}()
		for i, killed := 0, false; !killed; i++ {
			rev := mustCommit(t, s, put(fmt.Sprint("k/", i%7), strings.Repeat(fmt.Sprint(i%10), 200)))
			states[rev] = dump(t, s)
			select {
			case <-enough:
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				killed = true
			case <-read:
				t.Fatalf("round %d: the child ended by itself, and had served %v", round, said)
			default:
			}
		}
		<-read
		_ = child.Wait()
		got, rev := offline(t, cfg)
		if rev.Before(said) || got != states[rev] {
			t.Fatalf("round %d: after kill -9 the state at %v is %.200s, want that of the source; it had served %v", round, rev, got, said)
		}
	}
}
