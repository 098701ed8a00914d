package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/profile"
	"github.com/iapmesh/iapmesh/node/control"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"iapmesh": patient})
}

// patient is main with a longer --timeout than people want: on a machine that does much else, any process may stop for seconds. One that
// stands on the command line comes later, and counts.
func patient() {
	os.Args = slices.Insert(os.Args, 1, "--timeout="+defaultPatience.String())
	main()
}

// TestScripts runs testdata/*.txtar: command lines as people type them, in processes of their own, against real nodes.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, scriptParams(t))
}

// scriptParams is what all scripts run in.
func scriptParams(t *testing.T) testscript.Params {
	t.Helper()
	deadline, limited := t.Deadline()
	if !limited {
		deadline = time.Now().Add(30 * time.Minute) // a node that joins where it should not would run for ever
	}
	return testscript.Params{
		Dir:      "testdata",
		Deadline: deadline, // of all scripts together
		Setup: func(env *testscript.Env) error {
			env.Setenv("IAPMESH_PROFILE", filepath.Join(env.WorkDir, "admin.json"))
			env.Setenv("HOME", env.WorkDir)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"addresses":   addresses,
			"certificate": certificate,
			"eventually":  eventually,
			"eventually1": eventuallyExits(1),
			"eventually3": eventuallyExits(3),
			"expand":      expand,
			"halt":        halt,
			"status1":     exits(1),
			"status2":     exits(2),
			"status3":     exits(3),
		},
	}
}

// given are the ports that a script has been given.
var given sync.Map

// addresses NAME…: sets each variable to a free address on loopback. Its port lies below those that Linux takes for connections: one
// of these might be taken before a node listens. It lies apart, too, from those of tests that run at the same time (node/nodetest/ports.go).
func addresses(ts *testscript.TestScript, _ bool, names []string) {
	for _, name := range names {
		for {
			address := net.JoinHostPort("127.0.0.1", strconv.Itoa(18_000+mathrand.IntN(8_000)))
			if _, twice := given.LoadOrStore(address, true); twice {
				continue
			}
			l, err := net.Listen("tcp", address)
			if err != nil {
				continue
			}
			ts.Check(l.Close())
			ts.Setenv(name, address)
			break
		}
	}
}

// certificate CERT KEY: writes what users of a proxy see.
func certificate(ts *testscript.TestScript, _ bool, files []string) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	ts.Check(err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	ts.Check(err)
	key, err := x509.MarshalPKCS8PrivateKey(private)
	ts.Check(err)
	for i, block := range []*pem.Block{{Type: "CERTIFICATE", Bytes: cert}, {Type: "PRIVATE KEY", Bytes: key}} {
		ts.Check(os.WriteFile(ts.MkAbs(files[i]), pem.EncodeToMemory(block), 0o600))
	}
}

// expand FROM TO: copies a file, with the values of the variables that it names.
func expand(ts *testscript.TestScript, _ bool, args []string) {
	text := os.Expand(ts.ReadFile(args[0]), ts.Getenv)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o600))
}

// patience bounds every eventually: far above what is awaited, since all processes of a script may stop for seconds, one after the other.
const patience = 3 * time.Minute

// eventually PATTERN COMMAND…: runs the command until its output matches.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	repeat(ts, neg, args, func(pattern *regexp.Regexp, _ error) bool { // what it printed decides
		return pattern.MatchString(ts.ReadFile("stdout") + ts.ReadFile("stderr"))
	})
}

// eventuallyExits makes eventuallyN PATTERN COMMAND…: runs the command until it ends with that status, and its stderr matches. It is statusN
// for what gives up soon: where it was stopped meanwhile, it may have given up before it came to what is wanted.
func eventuallyExits(status int) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		repeat(ts, neg, args, func(pattern *regexp.Regexp, err error) bool {
			return ended(err, status) && pattern.MatchString(ts.ReadFile("stderr"))
		})
	}
}

// repeat runs a command until it did what was wanted.
func repeat(ts *testscript.TestScript, neg bool, args []string, done func(*regexp.Regexp, error) bool) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: eventually PATTERN COMMAND…")
	}
	pattern, err := regexp.Compile(args[0])
	ts.Check(err)
	deadline := time.After(patience)
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := ts.Exec(args[1], args[2:]...)
		if done(pattern, err) {
			return
		}
		if errors.Is(err, context.DeadlineExceeded) {
			ts.Fatalf("%s did not appear before the time of all scripts was over", args[0])
		}
		select {
		case <-deadline:
			ts.Fatalf("%s did not appear within %v", args[0], patience)
		case <-ticker.C:
		}
	}
}

// exits makes statusN PATTERN COMMAND…: the command ends with that status, and its stderr matches.
func exits(status int) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) < 2 {
			ts.Fatalf("usage: status%d PATTERN COMMAND…", status)
		}
		if err := ts.Exec(args[1], args[2:]...); !ended(err, status) {
			ts.Fatalf("%v: ended with %v, want status %d", args[1:], err, status)
		}
		if stderr := ts.ReadFile("stderr"); !regexp.MustCompile(args[0]).MatchString(stderr) {
			ts.Fatalf("stderr does not match %s", args[0])
		}
	}
}

// ended reports whether a command ended with that status.
func ended(err error, status int) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.ExitCode() == status
}

// halt FILE: stops the process whose id the file holds, as if its machine were away. It goes on when it is told to, and in any case when
// the script ends, which waits for it.
func halt(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: halt FILE")
	}
	pid, err := strconv.Atoi(strings.TrimSpace(ts.ReadFile(args[0])))
	ts.Check(err)
	ts.Check(syscall.Kill(pid, syscall.SIGSTOP))
	ts.Defer(func() { _ = syscall.Kill(pid, syscall.SIGCONT) }) // it may have ended
}

func TestEveryCommandHelps(t *testing.T) {
	t.Parallel()
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		if cmd.Short == "" {
			t.Errorf("%s: has no Short", cmd.CommandPath())
		}
		if !cmd.HasSubCommands() && cmd.Example == "" {
			t.Errorf("%s: has no Example", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
	}
	visit(newRootCommand(newCLI(nil, nil, nil)))
}

// The command line and the nodes must mean the same trailer, and the profile package stands too low to import the nodes' name.
func TestTheLeaderTrailerIsTheNodes(t *testing.T) {
	t.Parallel()
	if profile.LeaderTrailer != control.LeaderTrailer {
		t.Errorf("profile looks for %q, nodes send %q", profile.LeaderTrailer, control.LeaderTrailer)
	}
}
