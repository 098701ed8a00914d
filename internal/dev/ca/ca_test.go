package ca_test

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/iapmesh/iapmesh/internal/dev/ca"
	"github.com/iapmesh/iapmesh/internal/fault"
)

func TestLeafIsVerifiedByTheRoot(t *testing.T) {
	t.Parallel()
	a, err := ca.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := a.Leaf("echo.localhost", "*.localhost", "localhost", "127.0.0.1", "::1")
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"echo.localhost", "other.localhost", "localhost", "127.0.0.1", "::1"} {
		if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: a.Pool(), DNSName: host}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	for _, host := range []string{"example.com", "a.b.localhost", "127.0.0.2"} {
		if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: a.Pool(), DNSName: host}); err == nil {
			t.Errorf("%s: verified", host)
		}
	}
}

func TestRootSpeaksForLoopbackOnly(t *testing.T) {
	t.Parallel()
	a, err := ca.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"example.com", "localhost.example.com", "10.0.0.1", "2001:db8::1"} {
		if _, err := a.Leaf("localhost", host); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: error %v, want Invalid", host, err)
		}
	}
	if _, err := a.Leaf(); !fault.Is(err, fault.Invalid) {
		t.Errorf("no host: error %v, want Invalid", err)
	}
}

func TestPermitWidensANewRoot(t *testing.T) {
	t.Parallel()
	a, err := ca.Open(t.TempDir(), "mesh.test", "10.0.0.0/8")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Leaf("echo.mesh.test", "10.1.2.3", "localhost"); err != nil {
		t.Error(err)
	}
	if _, err := a.Leaf("mesh.example"); !fault.Is(err, fault.Invalid) {
		t.Errorf("mesh.example: error %v, want Invalid", err)
	}
	if _, err := ca.Open(t.TempDir(), "10.0.0.0/99"); !fault.Is(err, fault.Invalid) {
		t.Errorf("bad CIDR: error %v, want Invalid", err)
	}
}

func TestOpenKeepsTheRoot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const openers = 8
	roots := make([][]byte, openers)
	var group sync.WaitGroup
	for i := range openers {
		group.Go(func() {
			a, err := ca.Open(dir)
			if err != nil {
				t.Error(err)
				return
			}
			roots[i] = a.CertPEM()
		})
	}
	group.Wait()
	for i, root := range roots {
		if !bytes.Equal(root, roots[0]) {
			t.Errorf("opener %d has another root", i)
		}
	}
	again, err := ca.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	onDisk, err := os.ReadFile(again.CertFile())
	if err != nil || !bytes.Equal(onDisk, roots[0]) {
		t.Errorf("root on disk differs (error %v)", err)
	}
}

func TestFilesHoldOnlyWhatTheirModeAllows(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, err := ca.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.WriteLeaf("proxy", "echo.localhost"); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		data, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, []byte("PRIVATE KEY")) != (info.Mode().Perm() == 0o600) {
			t.Errorf("%s: mode %v", entry.Name(), info.Mode())
		}
	}
	if len(entries) != 4 {
		t.Errorf("%d files, want 4: %v", len(entries), entries)
	}
	for _, name := range []string{"../x", "a/b", ".hidden", "dev-ca", "dev-ca-key"} {
		if _, _, err := a.WriteLeaf(name, "localhost"); !fault.Is(err, fault.Invalid) {
			t.Errorf("file name %q: error %v, want Invalid", name, err)
		}
	}
}

func TestDamagedRootIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := ca.Open(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "dev-ca-key.pem"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Open(dir); !fault.Is(err, fault.Invalid) {
		t.Errorf("error %v, want Invalid", err)
	}
}
