package e2e_test

import (
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// TestDevRestart stops a mesh and starts it again from its directory: sessions hold, passwords hold, and what was refused stays so.
// In the end dev is killed, and takes its nodes with it.
func TestDevRestart(t *testing.T) {
	m := startMesh(t)
	ana, bob := m.person("ana"), m.person("bob")
	ana.signsIn(m.In("eu-west"), m.Hosts.Echo)
	bob.signsIn(m.In("us-east"), m.Hosts.Echo)
	m.run("revoke", "user", "dev/"+bob.Subject, "--block", "--wait")
	m.run("key", "revoke", m.bootstrapKey(t), "--cascade", "keep", "--reason", "of no more use")
	before := m.run("get", "Route", "billing", "-o", "json")
	old := m.bootstrapKey(t)

	m.stop()
	started := time.Now()
	m.start()
	t.Logf("stopped and started again: ready in %.1f s; it says: %s", time.Since(started).Seconds(), readyLine(m.out.String()))

	if got := m.user("ana").Password; got != ana.Password {
		t.Errorf("ana's password was %s and is %s", ana.Password, got)
	}
	for _, name := range []string{"eu-west", "us-east", "ap-south"} {
		ana.isServed(m.In(name))
		bob.asks(m.In(name), m.Hosts.Echo, "/hello", http.StatusUnauthorized)
	}
	m.person("mallory").signsIn(m.In("ap-south"), m.Hosts.Echo)
	if after := m.run("get", "Route", "billing", "-o", "json"); after != before {
		t.Errorf("the route billing was %s and is %s", before, after)
	}
	m.provesTrail()
	if m.bootstrapKey(t) == old {
		t.Error("the bootstrap key was revoked, and is still what dev hands out")
	}
	joinFourthNode(t, m)

	if err := m.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-m.exited
	m.nodesEnd()
}

// bootstrapKey is the id of the key that dev hands out.
func (m *devMesh) bootstrapKey(t *testing.T) string {
	t.Helper()
	secret, err := os.ReadFile(m.BootstrapKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(secret), "_")[1]
}
