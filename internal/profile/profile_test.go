package profile_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/profile"
)

func TestAProfileComesBackAndIsItsOwnersAlone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "deep", "er", "p.json")
	want := profile.Profile{Mesh: "m-1", TrustDomain: "mesh.test", Name: "ana", ControlNodes: []string{"127.0.0.1:1"}, Roots: "r", Certificate: "c", Key: "k"}
	for range 2 { // a second time over the first
		if got, err := want.Save(path); err != nil || got != path {
			t.Fatalf("%s, %v", got, err)
		}
	}
	got, err := profile.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, *got); diff != "" {
		t.Error(diff)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".profile-*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name+".json")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil { // past the umask
			t.Fatal(err)
		}
		return path
	}
	for name, tc := range map[string]struct {
		path string
		kind fault.Kind
		says string
	}{
		"none":      {filepath.Join(dir, "none.json"), fault.NotFound, "--profile"},
		"others'":   {write("open", "{}", 0o644), fault.Invalid, "chmod 600"},
		"a group's": {write("group", "{}", 0o640), fault.Invalid, "chmod 600"},
		"garbage":   {write("garbage", "{", 0o600), fault.Invalid, "garbage.json"},
		"too large": {write("large", strings.Repeat(" ", 1<<20+1), 0o600), fault.Invalid, "at most"},
	} {
		if _, err := profile.Load(tc.path); !fault.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %v, with %q", name, err, tc.kind, tc.says)
		}
	}
}

func TestPathOfAName(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", "/config")
	t.Setenv("IAPMESH_PROFILE", "")
	for ref, want := range map[string]string{
		"": "/config/iapmesh/profiles/default.json", "prod": "/config/iapmesh/profiles/prod.json", "./prod": "./prod", "prod.json": "prod.json",
	} {
		if got, err := profile.Path(ref); err != nil || got != want {
			t.Errorf("%q: %s, %v, want %s", ref, got, err, want)
		}
	}
	t.Setenv("IAPMESH_PROFILE", "staging")
	if got, err := profile.Path(""); err != nil || got != "/config/iapmesh/profiles/staging.json" {
		t.Errorf("by the environment: %s, %v", got, err)
	}
}

func TestABrokenCredentialIsNone(t *testing.T) {
	t.Parallel()
	p := profile.Profile{Name: "ana", Roots: "x", Certificate: "y", Key: "z"}
	if _, err := p.Credential(); !fault.Is(err, fault.Invalid) {
		t.Errorf("credential: %v", err)
	}
	if _, err := p.RootPool(); !fault.Is(err, fault.Invalid) {
		t.Errorf("roots: %v", err)
	}
}
