package e2e_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/internal/dev"
	"github.com/iapmesh/iapmesh/internal/dev/mesh"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// How long things may take on a machine that is busy with others; what was measured is logged.
const (
	readyWithin = 2 * time.Minute // longer than dev waits itself: it says what is missing
	endWithin   = time.Minute
	doneWithin  = 90 * time.Second
	pollEvery   = 50 * time.Millisecond
)

// devMesh is a running `iapmesh dev`.
type devMesh struct {
	*mesh.Description
	t      testing.TB
	dir    string // --data-dir
	env    []string
	cmd    *exec.Cmd
	out    *output
	exited chan struct{}
	err    error // of the process; after exited
	roots  *x509.CertPool
}

// output collects what a process prints.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// startMesh starts a mesh in a new directory, on free ports, and waits until it is ready.
func startMesh(t testing.TB) *devMesh {
	t.Helper()
	// Below the ports that the system gives to outgoing connections, and those of other packages' tests (node/nodetest/ports.go); test
	// binaries that run at once begin apart.
	base, err := mesh.FreeBasePort(2000 + os.Getpid()%40*100)
	if err != nil {
		t.Fatal(err)
	}
	config := t.TempDir()
	m := &devMesh{t: t, dir: t.TempDir(), env: append(os.Environ(), "XDG_CONFIG_HOME="+config, "HOME="+config, "IAPMESH_PROFILE=", "NO_COLOR=1")}
	m.start("--base-port", fmt.Sprint(base))
	return m
}

// start runs dev and waits for dev.json.
func (m *devMesh) start(args ...string) {
	m.t.Helper()
	m.out, m.exited = &output{}, make(chan struct{})
	m.cmd = exec.Command(binary(m.t), append([]string{"dev", "--data-dir", m.dir}, args...)...)
	m.cmd.Env, m.cmd.Dir = m.env, m.dir
	m.cmd.Stdout, m.cmd.Stderr = m.out, m.out
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	exited, cmd, out := m.exited, m.cmd, m.out
	go func() {
		m.err = cmd.Wait()
		close(exited)
	}()
	m.t.Cleanup(func() {
		m.stop()
		healthy(m.t, out.String())
		if m.t.Failed() {
			m.t.Logf("the last of what dev printed:\n%s", tail(out.String(), 40))
		}
	})
	file := filepath.Join(m.dir, "dev.json")
	eventually(m.t, readyWithin, "the mesh is ready", func() error {
		select {
		case <-m.exited:
			m.t.Fatalf("dev ended: %v", m.err)
		default:
		}
		var err error
		m.Description, err = mesh.Read(file)
		return err
	})
	ca, err := os.ReadFile(m.CAFile)
	if err != nil {
		m.t.Fatal(err)
	}
	m.roots = x509.NewCertPool()
	if !m.roots.AppendCertsFromPEM(ca) {
		m.t.Fatalf("%s holds no certificate", m.CAFile)
	}
}

// stop ends dev as Ctrl-C does; its nodes end with it.
func (m *devMesh) stop() {
	m.t.Helper()
	select {
	case <-m.exited:
		return
	default:
	}
	if err := m.cmd.Process.Signal(os.Interrupt); err != nil {
		m.t.Error(err)
	}
	select {
	case <-m.exited:
	case <-time.After(endWithin):
		m.t.Errorf("dev did not end within %s", endWithin)
		_ = m.cmd.Process.Kill()
		<-m.exited
	}
	if m.err != nil {
		m.t.Errorf("dev ended with %v", m.err)
	}
	if _, err := os.Stat(filepath.Join(m.dir, "dev.json")); !errors.Is(err, fs.ErrNotExist) {
		m.t.Errorf("dev has ended and dev.json is still there (%v)", err)
	}
	m.nodesEnd()
}

// nodesEnd waits until no process of a node is left.
func (m *devMesh) nodesEnd() {
	m.t.Helper()
	for _, r := range m.Regions {
		eventually(m.t, endWithin, "the node of "+r.Name+" ends with dev", func() error {
			if err := syscall.Kill(r.PID, 0); !errors.Is(err, syscall.ESRCH) && !zombie(r.PID) {
				return fmt.Errorf("process %d is still there", r.PID)
			}
			return nil
		})
	}
}

// zombie reports whether a process has ended and nobody asked how: in a container, those whose parent was killed may stay so.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && bytes.Contains(stat, []byte(") Z "))
}

// try runs a command line of the administrator.
func (m *devMesh) try(args ...string) (string, error) {
	return m.tryAs("IAPMESH_PROFILE="+m.AdminProfile, args...)
}

// runByDefault names no profile.
func (m *devMesh) runByDefault(args ...string) string {
	m.t.Helper()
	out, err := m.tryAs("IAPMESH_PROFILE=", args...)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

func (m *devMesh) tryAs(profile string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary(m.t), append([]string{"--timeout=2m"}, args...)...) // any process of the mesh may stop for seconds
	cmd.Env = append(slices.Clone(m.env), profile)
	cmd.Dir = m.dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("iapmesh %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// run is try, and must succeed.
func (m *devMesh) run(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// provesTrail has the trail prove itself, and returns what was said. An aggregator that is slow to answer is asked again.
func (m *devMesh) provesTrail() string {
	m.t.Helper()
	var out string
	eventually(m.t, doneWithin, "the trail is proved", func() (err error) {
		if out, err = m.try("audit", "verify"); err != nil && strings.Contains(err.Error(), "is not what the nodes wrote") {
			m.t.Fatalf("%v\n%s", err, out)
		}
		return err
	})
	return out
}

// ask runs a command and reads its message.
func (m *devMesh) ask(into proto.Message, args ...string) error {
	out, err := m.try(append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("iapmesh %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (m *devMesh) status() (*iapmeshv1.Status, error) {
	s := &iapmeshv1.Status{}
	return s, m.ask(s, "status")
}

// In names one region.
func (m *devMesh) In(name string) region {
	m.t.Helper()
	for i, r := range m.Regions {
		if r.Name == name {
			return region{mesh: m, Region: m.Regions[i]}
		}
	}
	m.t.Fatalf("no region %q", name)
	panic("unreachable")
}

// user finds one of the provider's users by the name before the @.
func (m *devMesh) user(name string) dev.User {
	m.t.Helper()
	for _, u := range m.Provider.Users {
		if strings.HasPrefix(u.Username, name+"@") {
			return u
		}
	}
	m.t.Fatalf("no user %q", name)
	panic("unreachable")
}

// eventually tries until it works; the last try says what was missing.
func eventually(t testing.TB, within time.Duration, what string, try func() error) {
	t.Helper()
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	deadline := time.After(within)
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("wait until %s: %v", what, err)
		case <-ticker.C:
		}
	}
}

// healthy finds in what processes printed that one of them went wrong, however well the mesh went on without it. Data races are found in
// a binary that was built with -race.
func healthy(t testing.TB, text string) {
	t.Helper()
	for _, sign := range []string{"DATA RACE", "panic: ", "fatal error: "} {
		if at := strings.Index(text, sign); at >= 0 {
			lines := strings.SplitN(text[at:], "\n", 80)
			t.Errorf("%s", strings.Join(lines[:len(lines)-1], "\n"))
		}
	}
}

func tail(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
