package seal_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gocloud.dev/secrets"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring/seal"
)

// sealedDir is a directory with something sealed under it.
type sealedDir struct {
	seal.Directory
	t      *testing.T
	sealed []byte
}

func newSealedDir(t *testing.T, urls ...string) *sealedDir {
	t.Helper()
	d := &sealedDir{Directory: seal.Directory{Path: t.TempDir(), URLs: urls}, t: t}
	s, err := d.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d.sealed, err = s.Seal([]byte("the log"), []byte("raft/1")); err != nil {
		t.Fatal(err)
	}
	return d
}

// opens holds that the directory opens by any of these URLs, and to the same data key.
func (d *sealedDir) opens(urls ...string) *seal.Sealer {
	d.t.Helper()
	again := d.Directory
	again.URLs = urls
	s, err := again.Open(d.t.Context())
	if err != nil {
		d.t.Fatalf("it does not open: %v", err)
	}
	if got, err := s.Open(d.sealed, []byte("raft/1")); err != nil || string(got) != "the log" {
		d.t.Fatalf("it opens to another data key: %q, %v", got, err)
	}
	return s
}

func (d *sealedDir) read(name string) []byte {
	d.t.Helper()
	content, err := os.ReadFile(filepath.Join(d.Path, name))
	if err != nil {
		d.t.Fatal(err)
	}
	return content
}

func (d *sealedDir) files() []string {
	d.t.Helper()
	entries, err := os.ReadDir(d.Path)
	if err != nil {
		d.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (d *sealedDir) wraps() []string {
	d.t.Helper()
	wraps, err := d.Wraps(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	var urls []string
	for _, w := range wraps {
		urls = append(urls, w.URL)
	}
	return urls
}

func TestARotationMakesANewKeyAndKeepsTheDataKey(t *testing.T) {
	t.Parallel()
	d := newSealedDir(t, "file://seal.key")
	key, stored := d.read("seal.key"), d.read(seal.FileName)
	got, err := d.Rotate(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.Path, "seal.key")
	want := &seal.Rotated{Opened: "file://seal.key", Wraps: []string{"file://seal.key"}, Replaced: []string{path}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	d.opens()
	if bytes.Equal(d.read("seal.key"), key) {
		t.Error("the key is the old one")
	}
	if diff := cmp.Diff([]string{seal.FileName, "seal.key"}, d.files()); diff != "" {
		t.Errorf("left behind: %s", diff)
	}
	if err := os.WriteFile(path, key, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Open(t.Context()); !fault.Is(err, fault.Invalid) {
		t.Errorf("the old key still opens it: %v", err)
	}
	if err := os.WriteFile(filepath.Join(d.Path, seal.FileName), stored, 0o600); err != nil {
		t.Fatal(err)
	}
	d.opens() // as SECURITY.md says: whoever kept both the old key and the old seal.json has the data key
}

func TestKeepersComeAndGo(t *testing.T) {
	t.Parallel()
	elsewhere := seal.KeyFileURL(filepath.Join(t.TempDir(), "k"))
	d := newSealedDir(t, "file://seal.key")
	for _, step := range []struct {
		name string
		to   []string
		open [][]string // each opens it alone
		gone []string   // paths
	}{
		{"one more", []string{"file://seal.key", base64Key(7)}, [][]string{nil, {base64Key(7)}}, nil},
		{"another order", []string{base64Key(7), "file://seal.key"}, [][]string{nil, {base64Key(7)}}, nil},
		{"the key file goes, one elsewhere comes", []string{base64Key(7), elsewhere}, [][]string{nil, {base64Key(7)}}, []string{"seal.key"}},
		{"another configured key", []string{base64Key(8)}, [][]string{{base64Key(8)}}, nil},
		{"back to a key file", []string{"file://seal.key"}, [][]string{nil}, nil},
	} {
		if _, err := d.Rotate(t.Context(), step.to); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		for _, urls := range step.open {
			d.opens(urls...)
		}
		if got := d.wraps(); len(got) != len(step.to) {
			t.Errorf("%s: wraps %v", step.name, got)
		}
		for _, name := range step.gone {
			if slices.Contains(d.files(), name) {
				t.Errorf("%s: %s is still there", step.name, name)
			}
		}
		d.URLs = step.to
	}
	if _, err := os.Stat(strings.TrimPrefix(elsewhere, "file://")); err != nil {
		t.Errorf("a key file outside of the directory was removed: others may need it: %v", err)
	}
}

func TestAnyOneOfSeveralKeepersOpens(t *testing.T) {
	t.Parallel()
	urls := []string{"file://a.key", "file://b.key", base64Key(7)}
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}} {
		var made []string
		for _, i := range order {
			made = append(made, urls[i])
		}
		for alone := range urls {
			d := newSealedDir(t, made...)
			for i, name := range []string{"a.key", "b.key"} {
				if i != alone {
					if err := os.Remove(filepath.Join(d.Path, name)); err != nil {
						t.Fatal(err)
					}
				}
			}
			var configured []string
			if alone == 2 {
				configured = []string{urls[2]}
			}
			want := strings.SplitAfter(urls[alone], "base64key://")[0]
			if got := d.opens(configured...).Keeper(); got != want {
				t.Errorf("made in order %v: %s opened it, want %s", order, got, want)
			}
		}
	}
}

func TestRootRotatesForTheNodesUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	d := newSealedDir(t, "file://seal.key")
	for _, name := range []string{"", "seal.key", seal.FileName} {
		if err := os.Chown(filepath.Join(d.Path, name), 12345, 12346); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Rotate(t.Context(), []string{"file://seal.key", "file://second.key"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"seal.key", "second.key", seal.FileName} {
		info, err := os.Stat(filepath.Join(d.Path, name))
		if err != nil {
			t.Fatal(err)
		}
		if owner := info.Sys().(*syscall.Stat_t); owner.Uid != 12345 || owner.Gid != 12346 {
			t.Errorf("%s belongs to %d:%d", name, owner.Uid, owner.Gid)
		}
	}
}

// brokenOpener is a service that does not answer.
type brokenOpener struct{ seal.Directory }

func (brokenOpener) OpenKeeperURL(context.Context, *url.URL) (*secrets.Keeper, error) {
	return nil, fault.New(fault.Unavailable, "the service hangs")
}

func TestAFailedRotationChangesNothing(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		to    []string
		spoil func(d *sealedDir) error
		want  fault.Kind
	}{
		"a keeper that does not answer":   {[]string{"file://seal.key", "file://new.key", "broken://k"}, nil, fault.Unavailable},
		"a keeper that nobody knows":      {[]string{"rot13://k"}, nil, fault.Invalid},
		"one keeper twice":                {[]string{"file://seal.key", "file://./seal.key"}, nil, fault.Invalid},
		"too many keepers":                {slices.Repeat([]string{"file://seal.key"}, 9), nil, fault.Invalid},
		"a directory that does not exist": {[]string{"file:///nonexistent/iapmesh/k"}, nil, fault.Invalid},
		"a key file that others read": {[]string{"file://other.key"}, func(d *sealedDir) error {
			return os.WriteFile(filepath.Join(d.Path, "other.key"), make([]byte, 32), 0o644)
		}, fault.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newSealedDir(t, "file://seal.key")
			d.Openers = map[string]secrets.KeeperURLOpener{"broken": brokenOpener{}}
			if tc.spoil != nil {
				if err := tc.spoil(d); err != nil {
					t.Fatal(err)
				}
			}
			key, stored, files := d.read("seal.key"), d.read(seal.FileName), d.files()
			if _, err := d.Rotate(t.Context(), tc.to); !fault.Is(err, tc.want) {
				t.Fatalf("%v: %v", fault.KindOf(err), err)
			}
			if !bytes.Equal(key, d.read("seal.key")) || !bytes.Equal(stored, d.read(seal.FileName)) {
				t.Error("the seal changed")
			}
			if diff := cmp.Diff(files, d.files()); diff != "" {
				t.Errorf("left behind: %s", diff)
			}
		})
	}
}

func TestAURLOfAServiceHoldsNoCredentials(t *testing.T) {
	t.Parallel()
	d := seal.Directory{Path: t.TempDir(), Openers: map[string]secrets.KeeperURLOpener{"broken": brokenOpener{}}}
	for _, raw := range []string{"broken://ana:hunter2@k", "broken://hunter2@k", "broken://", "broken:///", "broken://%zzhunter2", "rot13://ana:hunter2@k", "broken"} {
		err := d.ValidURL(raw)
		if !fault.Is(err, fault.Invalid) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", raw, err)
		}
		d.URLs = []string{raw}
		if _, err := d.Create(t.Context()); !fault.Is(err, fault.Invalid) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: create: %v", raw, err)
		}
	}
	if err := d.ValidURL("broken://alias/k?region=eu-west-1"); err != nil {
		t.Error(err)
	}
}

func TestADirectoryThatDoesNotOpenIsNotRotated(t *testing.T) {
	t.Parallel()
	d := newSealedDir(t, "file://seal.key")
	stored := d.read(seal.FileName)
	if err := os.WriteFile(filepath.Join(d.Path, "seal.key"), make([]byte, 32), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Rotate(t.Context(), nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("%v", err)
	}
	if !bytes.Equal(stored, d.read(seal.FileName)) {
		t.Error("seal.json changed")
	}
}

func TestRotationsGoOneAfterAnother(t *testing.T) {
	t.Parallel()
	d := newSealedDir(t, "file://seal.key")
	var once sync.Once
	inside := seal.At(d.Directory, func(string) {
		once.Do(func() {
			if _, err := d.Rotate(t.Context(), nil); !fault.Is(err, fault.Conflict) {
				t.Errorf("a second rotation during the first: %v", err)
			}
		})
	})
	if _, err := inside.Rotate(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	d.opens()
}

// A node may start while its seal is rotated: between its reading of seal.json and of the key files both may change.
func TestADirectoryOpensWhileItIsRotated(t *testing.T) {
	t.Parallel()
	d := newSealedDir(t, "file://a.key", "file://b.key")
	done := make(chan error, 1)
	go func() {
		for range 50 {
			if _, err := d.Rotate(t.Context(), nil); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return
		default:
			d.opens()
		}
	}
}

// killed is how a test has its own process rotate a directory and be killed at a step.
type killed struct {
	Path string   `json:"path"`
	URLs []string `json:"urls"`
	To   []string `json:"to"`
	At   int      `json:"at"`
}

const killedEnv = "IAPMESH_TEST_KILLED_ROTATION"

func TestKilledRotationChild(t *testing.T) {
	text := os.Getenv(killedEnv)
	if text == "" {
		t.Skip("TestARotationSurvivesBeingKilledAnywhere runs this in a process of its own")
	}
	var k killed
	if err := json.Unmarshal([]byte(text), &k); err != nil {
		t.Fatal(err)
	}
	n := 0
	d := seal.At(seal.Directory{Path: k.Path, URLs: k.URLs}, func(string) {
		if n == k.At {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		n++
	})
	_, err := d.Rotate(t.Context(), k.To)
	t.Fatalf("it was not killed: %v", err)
}

func TestARotationSurvivesBeingKilledAnywhere(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ from, to, files []string }{
		"a key file":          {[]string{"file://seal.key"}, []string{"file://seal.key"}, []string{"seal.json", "seal.key"}},
		"two key files":       {[]string{"file://a.key", "file://b.key"}, []string{"file://b.key", "file://a.key"}, []string{"a.key", "b.key", "seal.json"}},
		"another key file":    {[]string{"file://a.key"}, []string{"file://b.key"}, []string{"b.key", "seal.json"}},
		"one more key file":   {[]string{"file://a.key"}, []string{"file://a.key", "file://b.key"}, []string{"a.key", "b.key", "seal.json"}},
		"to a configured key": {[]string{"file://a.key", base64Key(7)}, []string{base64Key(8)}, []string{"seal.json"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var steps []string
			whole := newSealedDir(t, tc.from...)
			if _, err := seal.At(whole.Directory, func(step string) { steps = append(steps, step) }).Rotate(t.Context(), tc.to); err != nil {
				t.Fatal(err)
			}
			if len(steps) < 2 {
				t.Fatalf("steps %v: too few to be the whole", steps)
			}
			for i, step := range steps {
				d := newSealedDir(t, tc.from...)
				d.rotateAndBeKilled(killed{d.Path, tc.from, tc.to, i})
				both := slices.Concat(tc.from, tc.to)
				d.opens(both...)
				// And killed in the same place once more, the leftovers of the first lying about.
				d.URLs = both
				d.rotateAndBeKilledOrNot(killed{d.Path, both, tc.to, i})
				d.opens(both...)
				stale := "" // killed after its wrap was dropped: nothing names it any more, so nobody can tell that it may go
				if !slices.Contains(d.wraps(), "file://a.key") {
					stale = "a.key"
				}
				if _, err := d.Rotate(t.Context(), tc.to); err != nil {
					t.Fatalf("killed at %q: the next rotation: %v", step, err)
				}
				d.opens(tc.to...)
				if got := d.wraps(); len(got) != len(tc.to) {
					t.Errorf("killed at %q: wraps %v", step, got)
				}
				files := slices.DeleteFunc(d.files(), func(f string) bool { return f == stale })
				if diff := cmp.Diff(tc.files, files); diff != "" {
					t.Errorf("killed at %q: left behind: %s", step, diff)
				}
			}
		})
	}
}

func (d *sealedDir) rotateAndBeKilled(k killed) {
	d.t.Helper()
	if !d.rotateAndBeKilledOrNot(k) {
		d.t.Fatalf("the rotation was not killed at step %d", k.At)
	}
}

// rotateAndBeKilledOrNot reports whether the step came: the second rotation may have fewer.
func (d *sealedDir) rotateAndBeKilledOrNot(k killed) bool {
	d.t.Helper()
	text, err := json.Marshal(k)
	if err != nil {
		d.t.Fatal(err)
	}
	cmd := exec.CommandContext(d.t.Context(), os.Args[0], "-test.run=^TestKilledRotationChild$")
	cmd.Env = append(os.Environ(), killedEnv+"="+string(text))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true
	}
	if !strings.Contains(string(out), "it was not killed: <nil>") {
		d.t.Fatalf("the rotation to be killed: %v: %s", err, out)
	}
	return false
}

func FuzzFile(f *testing.F) {
	dir := f.TempDir()
	if _, err := seal.Create(f.Context(), dir, []string{"file://seal.key", base64Key(7)}); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, seal.FileName))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"wraps":[{"url":"awskms://alias/iapmesh?region=eu-west-1","wrapped":"AQID"}]}`))
	f.Add([]byte(`{"version":1,"wraps":[{"url":"x","wrapped":""}]}`))
	f.Add([]byte(`{"version":1,"wraps":null} {}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		once, err := seal.ParseFile(in)
		if err != nil {
			return
		}
		twice, err := seal.ParseFile(once)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("written %s, read and written again %s: %v", once, twice, err)
		}
	})
}
