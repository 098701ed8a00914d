package seal_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring/seal"
)

func create(t *testing.T, dir string, urls ...string) *seal.Sealer {
	t.Helper()
	s, err := seal.Create(t.Context(), dir, urls)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func base64Key(fill byte) string {
	return "base64key://" + base64.URLEncoding.EncodeToString(bytes.Repeat([]byte{fill}, 32))
}

func TestADirectoryOpensAgain(t *testing.T) {
	t.Parallel()
	for name, urls := range map[string]func(dir string) (create, open []string){
		"key file beside the data": func(string) ([]string, []string) {
			return []string{seal.KeyFileURL("seal.key")}, nil
		},
		"key file elsewhere, its path with a space": func(string) ([]string, []string) {
			return []string{seal.KeyFileURL(filepath.Join(t.TempDir(), "seal key"))}, nil
		},
		"key from the configuration": func(string) ([]string, []string) {
			return []string{base64Key(7)}, []string{base64Key(7)}
		},
		"the second of two when the first is gone": func(string) ([]string, []string) {
			return []string{base64Key(7), seal.KeyFileURL("seal.key")}, nil
		},
		"another key configured beside the right one": func(string) ([]string, []string) {
			return []string{base64Key(7)}, []string{base64Key(8), base64Key(7)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			first, later := urls(dir)
			sealed, err := create(t, dir, first...).Seal([]byte("the log"), []byte("raft/1"))
			if err != nil {
				t.Fatal(err)
			}
			again, err := seal.Open(t.Context(), dir, later)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := again.Open(sealed, []byte("raft/1")); err != nil || string(got) != "the log" {
				t.Errorf("opened %q: %v", got, err)
			}
		})
	}
}

func TestSealedDataOpensOnlyAsItWasSealed(t *testing.T) {
	t.Parallel()
	s, other := create(t, t.TempDir(), "file://seal.key"), create(t, t.TempDir(), "file://seal.key")
	plaintext, context := []byte("the log"), []byte("raft/1")
	sealed, err := s.Seal(plaintext, context)
	if err != nil || len(sealed) != len(plaintext)+seal.Overhead || bytes.Contains(sealed, plaintext) {
		t.Fatalf("sealed %x: %v", sealed, err)
	}
	if twice, _ := s.Seal(plaintext, context); bytes.Equal(twice, sealed) {
		t.Error("the nonce repeats")
	}
	if _, err := other.Open(sealed, context); !fault.Is(err, fault.Internal) {
		t.Errorf("another directory's key opens it: %v", err)
	}
	if _, err := s.Open(sealed, []byte("raft/2")); !fault.Is(err, fault.Internal) {
		t.Errorf("it opens in another place: %v", err)
	}
	for i := range sealed {
		damaged := bytes.Clone(sealed)
		damaged[i] ^= 1
		if _, err := s.Open(damaged, context); err == nil {
			t.Errorf("it opens with byte %d damaged", i)
		}
		if _, err := s.Open(sealed[:i], context); err == nil {
			t.Errorf("it opens cut to %d bytes", i)
		}
	}
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		urls []string
		want fault.Kind
	}{
		"no keeper":            {nil, fault.Invalid},
		"too many keepers":     {make([]string, 9), fault.Invalid},
		"no URL":               {[]string{"seal.key"}, fault.Invalid},
		"a scheme not built":   {[]string{"rot13://x"}, fault.Invalid},
		"a key made up":        {[]string{"base64key://"}, fault.Invalid},
		"a short key":          {[]string{"base64key://c2VjcmV0c2VjcmV0"}, fault.Invalid},
		"a broken URL":         {[]string{"base64key://c2VjcmV0c2Vj%zzcmV0"}, fault.Invalid},
		"a file without path":  {[]string{"file://"}, fault.Invalid},
		"a file with a query":  {[]string{"file://k?c2VjcmV0c2VjcmV0"}, fault.Invalid},
		"a URL far too long":   {[]string{"base64key://" + strings.Repeat("a", 4000)}, fault.Invalid},
		"no directory for one": {[]string{"file:///nonexistent/iapmesh/k"}, fault.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			_, err := seal.Create(t.Context(), dir, tc.urls)
			if !fault.Is(err, tc.want) {
				t.Fatalf("%v: %v", fault.KindOf(err), err)
			}
			if strings.Contains(err.Error(), "c2VjcmV0c2Vj") {
				t.Errorf("the error quotes the key: %v", err)
			}
			if _, err := os.Stat(filepath.Join(dir, seal.FileName)); err == nil {
				t.Error("it wrote seal.json all the same")
			}
		})
	}
}

func TestASealedDirectoryIsNotSealedAnew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	create(t, dir, "file://seal.key")
	if _, err := seal.Create(t.Context(), dir, []string{"file://seal.key"}); !fault.Is(err, fault.Conflict) {
		t.Errorf("got %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	key := func(dir string) string { return filepath.Join(dir, "seal.key") }
	json := func(dir string) string { return filepath.Join(dir, seal.FileName) }
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, dir string) error
		want  fault.Kind
		says  string
	}{
		"a directory that is not sealed": {func(_ *testing.T, dir string) error { return os.Remove(json(dir)) }, fault.NotFound, "not there"},
		"a key that others can read":     {func(_ *testing.T, dir string) error { return os.Chmod(key(dir), 0o640) }, fault.Invalid, "0600"},
		"a key that others can write":    {func(_ *testing.T, dir string) error { return os.Chmod(key(dir), 0o602) }, fault.Invalid, "0600"},
		"a key that is gone":             {func(_ *testing.T, dir string) error { return os.Remove(key(dir)) }, fault.Invalid, "not there"},
		"a key that is cut":              {func(_ *testing.T, dir string) error { return os.Truncate(key(dir), 31) }, fault.Invalid, "31 bytes"},
		"another key":                    {func(_ *testing.T, dir string) error { return os.WriteFile(key(dir), make([]byte, 32), 0o600) }, fault.Invalid, "unwrap"},
		"a directory for a key": {func(_ *testing.T, dir string) error {
			if err := os.Remove(key(dir)); err != nil {
				return err
			}
			return os.Mkdir(key(dir), 0o700)
		}, fault.Invalid, "regular"},
		"a huge seal.json":            {func(_ *testing.T, dir string) error { return os.Truncate(json(dir), 1<<20) }, fault.Invalid, "more than"},
		"a seal.json of another kind": {func(_ *testing.T, dir string) error { return os.WriteFile(json(dir), []byte(`{"version":2}`), 0o600) }, fault.Invalid, "version 2"},
		"a field it does not know": {func(_ *testing.T, dir string) error {
			return os.WriteFile(json(dir), []byte(`{"version":1,"x":1}`), 0o600)
		}, fault.Invalid, "x"},
		"no wraps": {func(_ *testing.T, dir string) error { return os.WriteFile(json(dir), []byte(`{"version":1}`), 0o600) }, fault.Invalid, "0 wraps"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			create(t, dir, "file://seal.key")
			if err := tc.spoil(t, dir); err != nil {
				t.Fatal(err)
			}
			_, err := seal.Open(t.Context(), dir, nil)
			if !fault.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v: %v", fault.KindOf(err), err)
			}
		})
	}
}

func TestNothingSecretLiesInTheOpen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := create(t, dir, base64Key(7), "file://seal.key")
	stored, err := os.ReadFile(filepath.Join(dir, seal.FileName))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(stored), strings.TrimPrefix(base64Key(7), "base64key://")) {
		t.Errorf("seal.json holds the configured key: %s", stored)
	}
	for _, name := range []string{seal.FileName, "seal.key"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if _, err := seal.Open(t.Context(), dir, []string{base64Key(8)}); err != nil {
		t.Errorf("the key file no longer opens it: %v", err)
	}
	if out := fmt.Sprintf("%v %s", s, s); out != "sealer sealer" {
		t.Errorf("it prints %s", out)
	}
}

func FuzzOpen(f *testing.F) {
	dir := f.TempDir()
	s, err := seal.Create(f.Context(), dir, []string{"file://seal.key"})
	if err != nil {
		f.Fatal(err)
	}
	good, err := s.Seal([]byte("x"), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{1})
	f.Add(make([]byte, 64))
	f.Fuzz(func(t *testing.T, in []byte) {
		if got, err := s.Open(in, nil); err == nil && !bytes.Equal(in, good) {
			t.Fatalf("a forgery opens to %q", got)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	s, err := seal.Create(b.Context(), b.TempDir(), []string{"file://seal.key"})
	if err != nil {
		b.Fatal(err)
	}
	plaintext := make([]byte, 512)
	b.SetBytes(512)
	for b.Loop() {
		if _, err := s.Seal(plaintext, nil); err != nil {
			b.Fatal(err)
		}
	}
}
