package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestTerraformDeploysAMesh applies the local module: its own tests first, then by hand, to look at what Terraform wrote down. The
// bootstrap key must be nowhere but in its file.
func TestTerraformDeploysAMesh(t *testing.T) {
	terraform, err := exec.LookPath("terraform")
	if err != nil {
		lacks(t, "terraform")
	}
	work, data := t.TempDir(), t.TempDir()
	module, err := filepath.Abs("../deploy/terraform/modules/local")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(work, os.DirFS(module)); err != nil {
		t.Fatal(err)
	}
	base := freeBlock(t, 30)
	run := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, terraform, args...)
		cmd.Dir = work
		cmd.Env = append(os.Environ(),
			"CHECKPOINT_DISABLE=1", "TF_IN_AUTOMATION=1", "TF_CLI_CONFIG_FILE=/dev/null",
			"TF_VAR_binary="+binary(t), "TF_VAR_data_dir="+filepath.Join(data, "mesh"), fmt.Sprintf("TF_VAR_base_port=%d", base))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("terraform %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	run("init", "-backend=false", "-input=false", "-no-color")
	if out := run("test", "-no-color"); !strings.Contains(out, "3 passed, 0 failed") {
		t.Errorf("terraform test:\n%s", out)
	}

	run("apply", "-auto-approve", "-input=false", "-no-color")
	defer run("destroy", "-auto-approve", "-input=false", "-no-color")
	key, err := os.ReadFile(filepath.Join(data, "mesh", "bootstrap.key"))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(data, "mesh", "bootstrap.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("bootstrap.key: %v, %v", info, err)
	}
	secret := bytes.TrimSpace(key)
	if !bytes.HasPrefix(secret, []byte("iapk_")) {
		t.Fatalf("bootstrap.key holds %.8q…", secret)
	}
	err = filepath.WalkDir(work, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		written, err := os.ReadFile(path)
		if bytes.Contains(written, secret) {
			t.Errorf("%s holds the bootstrap key", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if out := run("plan", "-detailed-exitcode", "-input=false", "-no-color"); !strings.Contains(out, "No changes") {
		t.Errorf("a second plan wants to change something:\n%s", out)
	}
}

// freeBlock finds a port from which on n are free, apart from those of startMesh and of other packages' tests (node/nodetest/ports.go).
func freeBlock(t *testing.T, n int) int {
	t.Helper()
next:
	for base := 9000; base+n < 10000; base += n {
		for port := base; port < base+n; port++ {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				continue next
			}
			l.Close()
		}
		return base
	}
	t.Fatalf("no %d free ports together", n)
	return 0
}
