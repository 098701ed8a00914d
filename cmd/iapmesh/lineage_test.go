package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/node/nodetest"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// commandLine runs command lines against a mesh.
type commandLine struct {
	t       *testing.T
	mesh    *nodetest.Mesh
	profile string
}

func newCommandLine(t *testing.T, mesh *nodetest.Mesh) *commandLine {
	t.Helper()
	path, err := mesh.Profile().Save(filepath.Join(t.TempDir(), "admin.json"))
	if err != nil {
		t.Fatal(err)
	}
	return &commandLine{t, mesh, path}
}

// run returns what the command printed, and its exit status.
func (c *commandLine) run(args ...string) (stdout string, status int) {
	c.t.Helper()
	var out, errs bytes.Buffer
	status = run(context.Background(), append(args, "--profile", c.profile, "--timeout", defaultPatience.String()), strings.NewReader(""), &out, &errs)
	if status != 0 {
		c.t.Logf("iapmesh %s: status %d: %s", strings.Join(args, " "), status, errs.String())
	}
	return out.String(), status
}

// eventually runs a command line until it succeeds and prints all that is wanted: what the aggregators hold, and the nodes report, comes
// after what was done.
func (c *commandLine) eventually(want []string, args ...string) (stdout string) {
	c.t.Helper()
	c.mesh.Eventually(fmt.Sprintf("iapmesh %s prints %q", strings.Join(args, " "), want), func() bool {
		var status int
		stdout, status = c.run(args...)
		return status == 0 && !slices.ContainsFunc(want, func(text string) bool { return !strings.Contains(stdout, text) })
	})
	return stdout
}

// told is what -o json says.
type told struct {
	Lineage, Activity json.RawMessage
	Completeness      audit.Completeness
	lineage           iapmeshv1.Lineage
	activity          iapmeshv1.TrailSummary
}

func (c *commandLine) lineage(key string, args ...string) *told {
	c.t.Helper()
	out, status := c.run(append([]string{"key", "lineage", key, "-o", "json"}, args...)...)
	var got told
	if err := json.Unmarshal([]byte(out), &got); err != nil || status != 0 {
		c.t.Fatalf("status %d, %v: %.500s", status, err, out)
	}
	if err := protojson.Unmarshal(got.Lineage, &got.lineage); err != nil {
		c.t.Fatal(err)
	}
	if err := protojson.Unmarshal(got.Activity, &got.activity); err != nil {
		c.t.Fatal(err)
	}
	return &got
}

// tree writes keys, nodes and sessions: "fleet: far-1 1, near-1 0".
func (g *told) tree() string {
	var lines []string
	for _, k := range g.lineage.Keys {
		var nodes []string
		for _, n := range k.Nodes {
			text := fmt.Sprintf("%s %d", n.Node.Name, n.Sessions.GetAtLeast())
			if n.Sessions.GetAtMost() != n.Sessions.GetAtLeast() {
				text += fmt.Sprintf("-%d", n.Sessions.GetAtMost())
			}
			for _, s := range n.Newest {
				text += fmt.Sprintf(" %s in %d", s.Subject, len(s.SeenBy))
			}
			nodes = append(nodes, text)
		}
		lines = append(lines, k.Key.Name+": "+strings.Join(nodes, ", "))
	}
	return strings.Join(lines, "; ")
}

// counts writes what the trail says: "echo allow both 1 …".
func (g *told) counts() string {
	var lines []string
	for _, k := range g.activity.Keys {
		text := fmt.Sprintf("%d sign-ins, %s", k.SignIns, strings.Join(k.Subjects, " "))
		for _, d := range k.Decisions {
			text += fmt.Sprintf(", %s %s %s %d", d.Route, d.Decision, d.By, d.Records)
		}
		lines = append(lines, text)
	}
	return strings.Join(lines, "; ")
}

func (g *told) missing() string {
	names := map[string]string{}
	for _, n := range g.lineage.Nodes {
		names[n.Id] = n.Name
	}
	var lines []string
	for _, m := range g.Completeness.Missing {
		lines = append(lines, names[m.Node]+" "+string(m.Kind))
	}
	return strings.Join(lines, "; ")
}

// What a key touched is told exactly, and so is what nobody can know yet.
func TestLineageTellsWhatAKeyTouched(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west")
	cli := newCommandLine(t, mesh)
	keyFile := filepath.Join(t.TempDir(), "fleet.key")
	if _, status := cli.run("key", "issue", "--name", "fleet", "--grant", "proxy", "--max-uses", "5", "--key-out", keyFile); status != 0 {
		t.Fatal("no key")
	}
	far, home := mesh.AddNodeWithKey(keyFile, "far", "proxy"), mesh.In("eu-west")
	mesh.AddNodeWithKey(keyFile, "near", "proxy")
	ana, bob := far.SignIn("ana@example.com"), home.SignIn("bob@example.com")
	home.Serves(ana, http.StatusOK)
	far.Serves(bob, http.StatusOK)

	wantTree := "fleet: far-1 1 " + ana.Subject + " in 2, near-1 0"
	wantCounts := "1 sign-ins, " + strings.Join(slices.Sorted(slices.Values([]string{ana.Subject, bob.Subject})), " ") +
		", echo allow both 1, echo allow minting 1, echo allow serving 1"
	var got *told
	mesh.Eventually("the lineage of fleet is "+wantTree+" with "+wantCounts, func() bool {
		got = cli.lineage("fleet")
		return got.tree() == wantTree && got.counts() == wantCounts && got.Completeness.Complete
	})
	if got.Completeness.Nodes != 3 || got.Completeness.Records < 5 || len(got.lineage.Nodes) != 3 {
		t.Errorf("%+v", got.Completeness)
	}
	mesh.Eventually("bob is known to be served in two regions", func() bool {
		return cli.lineage("bootstrap").tree() == "bootstrap: eu-west-1 1 "+bob.Subject+" in 2"
	})
	cli.eventually([]string{`"ok": true`}, "key", "lineage", "fleet", "--proof", "-o", "json")

	// A node that is cut off serves on, and what it decides is missing, by name and time; nothing else is.
	// Both aggregators are asked from here on. Whoever reconnects may ship to either; what both hold is counted once.
	vaultKey := filepath.Join(t.TempDir(), "vault.key")
	if _, status := cli.run("key", "issue", "--name", "vault", "--grant", "aggregator", "--key-out", vaultKey); status != 0 {
		t.Fatal("no key")
	}
	mesh.AddNodeWithKey(vaultKey, "vault", "aggregator")
	mesh.Cut("far")
	far.Serves(bob, http.StatusOK)
	until := time.Now().UTC().Format(time.RFC3339Nano)
	mesh.Eventually("far's trail alone is missing", func() bool {
		got = cli.lineage("fleet", "--to", until)
		return got.missing() == "far-1 after"
	})
	if m := got.Completeness.Missing[0]; got.Completeness.Complete || m.From.IsZero() || !m.From.Before(m.To) || got.counts() != wantCounts {
		t.Errorf("%+v, %s", got.Completeness, got.counts())
	}
	cli.eventually([]string{"NOT complete: 3 nodes", "node far-1 (far): nothing after "}, "key", "lineage", "fleet", "--to", until)
	mesh.Heal("far")
	wantCounts = strings.Replace(wantCounts, "serving 1", "serving 2", 1)
	mesh.Eventually("all is there again", func() bool {
		got = cli.lineage("fleet", "--to", until)
		return got.Completeness.Complete && got.counts() == wantCounts
	})

	// The successor is in the tree; what a revocation would end is told before, and after it was done.
	if _, status := cli.run("key", "rotate", "fleet", "--grace", "1h", "--key-out", filepath.Join(t.TempDir(), "next.key")); status != 0 {
		t.Fatal("no successor")
	}
	first := cli.lineage("fleet").lineage.Keys[0].Key.Id
	out := cli.eventually([]string{"retiring", "node far-1 (far)", "1 live session that it minted", ana.Subject, "route echo: 4 allowed, 0 denied (1 served and minted, 2 served only, 1 minted only)", "complete: 3 nodes", "proved: "},
		"key", "lineage", first, "--proof")
	for _, line := range strings.Split(out, "\n") {
		if strings.ContainsAny(line, "├└│") && utf8.RuneCountInString(line) > treeWidth {
			t.Errorf("too wide: %s", line)
		}
	}
	cli.eventually([]string{"nothing changed: would revoke key", "fleet retiring → revoked", "active → revoked", "route echo has no proxy left in far", "route echo has no proxy left in near", "1 live session", "sessions of far-1"},
		"key", "revoke", first, "--cascade", "kill", "--dry-run")
	out, status := cli.run("key", "revoke", "bootstrap", "--cascade", "quarantine", "--dry-run")
	if status != 1 || !strings.Contains(out, "REFUSED: ") || !strings.Contains(out, "active → quarantined") {
		t.Errorf("the last control node: status %d\n%s", status, out)
	}
	if out, status = cli.run("revoke", "node", "eu-west-1", "--dry-run"); status != 1 || !strings.Contains(out, "REFUSED: ") {
		t.Errorf("the last control node by name: status %d\n%s", status, out)
	}
	if out, status = cli.run("revoke", "node", "near-1", "--dry-run"); status != 0 || !strings.Contains(out, "active → revoked") {
		t.Errorf("a node: status %d\n%s", status, out)
	}
	out, status = cli.run("key", "revoke", first, "--cascade", "kill", "--reason", "leaked")
	for _, want := range []string{"revoked key", "active → revoked", "what ended:", "1 live session", "sessions of far-1"} {
		if !strings.Contains(out, want) || status != 0 {
			t.Errorf("revoked: status %d, want %q in:\n%s", status, want, out)
		}
	}
	home.EventuallyRefuses(ana)
	mesh.Eventually("nothing is live under it", func() bool { return cli.lineage(first).lineage.Sessions.GetAtMost() == 0 })
	if out, status = cli.run("key", "lineage", "none"); status != 1 {
		t.Errorf("an unknown key: status %d, %s", status, out)
	}
}
