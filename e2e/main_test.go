// Package e2e_test meets iapmesh as a user does: it runs the binary, reads what it prints, and visits what it serves.
//
// The binary is IAPMESH_BIN, or is built once. Everything listens on 127.0.0.1, on ports of its own. Nothing outside of the tests'
// directories is written: the user's configuration is one of them.
package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// environment names the binary for the tests. TestMain alone sets it, before any test runs.
const environment = "IAPMESH_BIN"

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if os.Getenv(environment) != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "iapmesh-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "iapmesh")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "../cmd/iapmesh")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "e2e: build iapmesh: %v\n%s", err, out)
		return 1
	}
	if err := os.Setenv(environment, binary); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	return m.Run()
}

func binary(t testing.TB) string {
	t.Helper()
	path, err := filepath.Abs(os.Getenv(environment))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// lacks skips for want of something on this machine, except in CI, which has it.
func lacks(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI lacks %s", what)
	}
	t.Skipf("this machine lacks %s", what)
}
