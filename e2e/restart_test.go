package e2e_test

import (
	"net/http"
	"testing"
	"time"
)

// TestDevRestart stops a mesh and starts it again from its directory: sessions hold, passwords hold, and what was refused stays so.
func TestDevRestart(t *testing.T) {
	m := startMesh(t)
	ana, bob := m.person("ana"), m.person("bob")
	ana.signsIn(m.In("eu-west"), m.Hosts.Echo)
	bob.signsIn(m.In("us-east"), m.Hosts.Echo)
	m.run("revoke", "user", "dev/"+bob.Subject, "--block", "--wait")
	before := m.run("get", "Route", "billing", "-o", "json")

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
	m.run("audit", "verify")
}
