package main

import (
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
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/profile"
	"github.com/iapmesh/iapmesh/node/control"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"iapmesh": main})
}

// TestScripts runs testdata/*.txtar: command lines as people type them, in processes of their own, against real nodes.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, scriptParams())
}

// scriptParams is what all scripts run in.
func scriptParams() testscript.Params {
	return testscript.Params{
		Dir:      "testdata",
		Deadline: time.Now().Add(15 * time.Minute), // of all scripts together; a node that joins where it should not would run for ever
		Setup: func(env *testscript.Env) error {
			env.Setenv("IAPMESH_PROFILE", filepath.Join(env.WorkDir, "admin.json"))
			env.Setenv("HOME", env.WorkDir)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"addresses":   addresses,
			"certificate": certificate,
			"eventually":  eventually,
			"expand":      expand,
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

// eventually PATTERN COMMAND…: runs the command until its output matches.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: eventually PATTERN COMMAND…")
	}
	pattern, err := regexp.Compile(args[0])
	ts.Check(err)
	deadline := time.After(90 * time.Second)
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		_ = ts.Exec(args[1], args[2:]...) // what it printed decides
		if pattern.MatchString(ts.ReadFile("stdout") + ts.ReadFile("stderr")) {
			return
		}
		select {
		case <-deadline:
			ts.Fatalf("%s did not appear within 90 s", args[0])
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
		var exit *exec.ExitError
		if err := ts.Exec(args[1], args[2:]...); !errors.As(err, &exit) || exit.ExitCode() != status {
			ts.Fatalf("%v: ended with %v, want status %d", args[1:], err, status)
		}
		if stderr := ts.ReadFile("stderr"); !regexp.MustCompile(args[0]).MatchString(stderr) {
			ts.Fatalf("stderr does not match %s", args[0])
		}
	}
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
