package mesh_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/internal/dev/mesh"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node"
)

// base is a free base port, apart from those of test binaries that run at once.
func base(t *testing.T) int {
	t.Helper()
	base, err := mesh.FreeBasePort(26000 + os.Getpid()%30*100)
	if err != nil {
		t.Fatal(err)
	}
	return base
}

// stillborn is a mesh whose nodes end at once: what is done before they run is all there.
func stillborn(t *testing.T, dir string, port int) error {
	t.Helper()
	program, err := exec.LookPath("false")
	if err != nil {
		t.Skip("this machine lacks the program false")
	}
	m, err := mesh.New(mesh.Config{DataDir: dir, BasePort: port, Binary: program, CADir: t.TempDir(), Out: &bytes.Buffer{}, Log: &bytes.Buffer{}})
	if err != nil {
		t.Fatal(err)
	}
	return m.Run(t.Context())
}

func TestANodeThatEndsAtOnceEndsTheStart(t *testing.T) {
	// Not in parallel: whoever looks for free ports must find those of its neighbours taken.
	dir, port := t.TempDir(), base(t)
	err := stillborn(t, dir, port)
	if err == nil || !strings.Contains(err.Error(), "has ended (exit status 1)") {
		t.Fatalf("Run: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "dev.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("dev.json of a mesh that was never ready: %v", err)
	}
	for i, region := range []string{"eu-west", "us-east", "ap-south"} {
		file := filepath.Join(dir, region, "node.yaml")
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		c, err := node.ReadConfig(file, f)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		// The distances are those of dev.json's example in PROTOCOLS: 17443, 17946, 18443, 19464.
		want := node.Listen{Mesh: local(port + i), Gossip: local(port + 503 + i), Proxy: local(port + 1000 + i), Ops: local(port + 2021 + i)}
		if c.Listen != want {
			t.Errorf("%s listens on %+v, want %+v", region, c.Listen, want)
		}
		if c.Region != region || c.HasRole("aggregator") != (i == 0) || (len(c.Join.Addresses) == 0) != (i == 0) {
			t.Errorf("%s: region %s, roles %v, joins at %v", file, c.Region, c.Roles, c.Join.Addresses)
		}
	}
	for _, name := range []string{"bootstrap.key", "profile.json", "dev-mesh.json", "tls-key.pem"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %04o", name, info.Mode().Perm())
		}
	}
}

func local(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

func TestADirectoryKeepsItsPorts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "dev-mesh.json"), []byte(`{"base_port": 27443}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := stillborn(t, dir, 28443); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "27443") {
		t.Errorf("another base port: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "dev-mesh.json"), []byte(`{"base_port": `), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := stillborn(t, dir, 0); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "dev-mesh.json") {
		t.Errorf("a damaged file: %v", err)
	}
}

func TestATakenPortIsNamed(t *testing.T) {
	// Not in parallel: whoever looks for free ports must find those of its neighbours taken.
	port := base(t)
	l, err := net.Listen("tcp", local(port+1001))
	if err != nil {
		t.Skipf("another took the port meanwhile: %v", err)
	}
	defer l.Close()
	err = stillborn(t, t.TempDir(), port)
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), fmt.Sprint(port+1001)) || !strings.Contains(err.Error(), "--base-port") {
		t.Errorf("Run: %v", err)
	}
}

func TestBasePorts(t *testing.T) {
	t.Parallel()
	for _, port := range []int{-1, 80, 1023, 62507, 65535} {
		_, err := mesh.New(mesh.Config{BasePort: port, Binary: "x", CADir: "x", Out: &bytes.Buffer{}, Log: &bytes.Buffer{}})
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("base port %d: %v", port, err)
		}
	}
	if mesh.DefaultBasePort != 17443 {
		t.Errorf("the default is %d; dev.json's example in PROTOCOLS says 17443", mesh.DefaultBasePort)
	}
}

// TestDescription holds dev.json to the names that scripts rely on.
func TestDescription(t *testing.T) {
	t.Parallel()
	example := `{"regions": [{"name": "eu-west", "proxy": "127.0.0.1:18443", "api": "127.0.0.1:17443", "ops": "127.0.0.1:19464", "pid": 4242, "data_dir": "/d"}],
	 "hosts": {"echo": "echo.localhost", "billing": "billing.localhost", "sign_in": "auth.localhost"},
	 "idp": {"issuer": "https://127.0.0.1:1", "users": [{"username": "ana@example.com", "password": "p", "groups": ["engineering"]}]},
	 "ca_file": "/c", "admin_profile": "/p", "bootstrap_key_file": "/k", "mesh_yaml": "/m"}`
	var d mesh.Description
	decoder := json.NewDecoder(strings.NewReader(example))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&d); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "dev.json")
	if err := os.WriteFile(file, []byte(example), 0o600); err != nil {
		t.Fatal(err)
	}
	read, err := mesh.Read(file)
	if err != nil || read.Regions[0].PID != 4242 || read.Provider.Users[0].Groups[0] != "engineering" || read.MeshYAML != "/m" {
		t.Errorf("Read: %+v, %v", read, err)
	}
	again, err := json.Marshal(read)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"regions", "name", "proxy", "api", "ops", "pid", "data_dir", "hosts", "echo", "billing", "sign_in", "idp", "issuer", "users",
		"username", "password", "groups", "ca_file", "admin_profile", "bootstrap_key_file", "mesh_yaml"} {
		if !bytes.Contains(again, []byte(`"`+name+`":`)) {
			t.Errorf("dev.json lacks %q: %s", name, again)
		}
	}
}
