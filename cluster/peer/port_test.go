package peer_test

import (
	"crypto/ed25519"
	"crypto/tls"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

var allProtos = map[string]peer.Policy{
	peer.ProtoJoin: peer.Nobody, peer.ProtoRaft: peer.ControlNode, peer.ProtoMesh: peer.AnyNode, peer.ProtoAdmin: peer.Admin,
	"proxies": peer.Role(keyring.RoleProxy), "both": peer.AdminOrNode, "known": peer.KnownNode,
}

func TestWhoIsAdmittedToWhat(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	now := time.Now() // and no later: how far a clock may be off is among what is tested
	server := m.port(m.node("c1", keyring.RoleControl), func(c *peer.Config) { c.Clock = func() time.Time { return now } }, allProtos)

	plainKey := newKey()
	m.nodes["n9"] = &keyring.Node{ID: "n9", Region: "r1", Roles: []keyring.Role{keyring.RoleProxy}, PublicKey: plainKey.Public().(ed25519.PublicKey), State: keyring.NodeActive}
	m.publish()
	stranger := newKey()
	foreign := newMesh(t)
	foreignKey := newKey()
	m.nodes["n8"] = &keyring.Node{ID: "n8", Region: "r1", PublicKey: foreignKey.Public().(ed25519.PublicKey), State: keyring.NodeActive}
	m.publish()
	inState := func(id string, s keyring.NodeState) *tls.Certificate {
		cert := m.node(id, keyring.RoleControl)
		m.setState(id, s)
		return cert
	}
	revokedAdmin := m.admin("a2", "bob", soon())
	m.admins["a2"].RevokedAt = time.Now()
	m.publish()

	for name, tc := range map[string]struct {
		cert  *tls.Certificate
		wants string // the protocols that admit it, space-separated
	}{
		"control node":               {m.node("c2", keyring.RoleControl), "iapmesh-join/1 iapmesh-raft/1 iapmesh-mesh/1 both known"},
		"proxy":                      {m.node("n1", keyring.RoleProxy), "iapmesh-join/1 iapmesh-mesh/1 proxies both known"},
		"administrator":              {m.admin("a1", "ana", soon()), "iapmesh-join/1 h2 both"},
		"no certificate":             {nil, "iapmesh-join/1"},
		"revoked administrator":      {revokedAdmin, "iapmesh-join/1"},
		"expired administrator":      {m.admin("a3", "eve", now.Add(-2*time.Minute)), "iapmesh-join/1"},
		"administrator by clock":     {m.admin("a4", "mel", now.Add(-10*time.Second)), "iapmesh-join/1 h2 both"},
		"enrolled":                   {inState("s1", keyring.NodeEnrolled), "iapmesh-join/1 iapmesh-raft/1 iapmesh-mesh/1 both known"},
		"lapsed":                     {inState("s2", keyring.NodeLapsed), "iapmesh-join/1 iapmesh-raft/1 iapmesh-mesh/1 both known"},
		"quarantined":                {inState("s3", keyring.NodeQuarantined), "iapmesh-join/1 known"},
		"revoked":                    {inState("s4", keyring.NodeRevoked), "iapmesh-join/1 known"},
		"departed":                   {inState("s5", keyring.NodeDeparted), "iapmesh-join/1 known"},
		"chains but has no record":   {m.issue(stranger, "/control/r1/c1", soon()), "iapmesh-join/1"},
		"plain node, control's ID":   {m.issue(plainKey, "/control/r1/c1", soon()), "iapmesh-join/1"},
		"plain node, control's kind": {m.issue(plainKey, "/control/r1/n9", soon()), "iapmesh-join/1 iapmesh-mesh/1 proxies both known"},
		"another node's ID":          {m.issue(plainKey, "/node/r1/n1", soon()), "iapmesh-join/1"},
		"administrator's ID":         {m.issue(plainKey, "/admin/ana", soon()), "iapmesh-join/1"},
		"no SPIFFE ID":               {m.issue(plainKey, "", soon()), "iapmesh-join/1"},
		"longer SPIFFE path":         {m.issue(plainKey, "/node/r1/n9/x", soon()), "iapmesh-join/1"},
		"expired, by record":         {m.issue(plainKey, "/node/r1/n9", time.Now().Add(-72*time.Hour)), "iapmesh-join/1 iapmesh-mesh/1 proxies both known"},
		"other CA, key on record":    {foreign.issue(foreignKey, "/node/r1/n8", soon()), "iapmesh-join/1 iapmesh-mesh/1 both known"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := m.dialer(tc.cert)
			for proto := range allProtos {
				err := try(t, d, proto, "c1", server.addr)
				admitted := strings.Contains(" "+tc.wants+" ", " "+proto+" ")
				if admitted && err != nil {
					t.Errorf("%s: refused: %v", proto, err)
				}
				if !admitted && err == nil {
					t.Errorf("%s: admitted", proto)
				}
			}
		})
	}
}

func TestAServerIsHeldToTheRecord(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	client := m.dialer(m.node("c1", keyring.RoleControl))
	plain := m.port(m.node("n1", keyring.RoleProxy), nil, map[string]peer.Policy{peer.ProtoMesh: peer.AnyNode, peer.ProtoRaft: peer.ControlNode})
	control := m.port(m.node("c2", keyring.RoleControl), nil, map[string]peer.Policy{peer.ProtoMesh: peer.AnyNode, peer.ProtoRaft: peer.ControlNode})
	impostor := m.port(m.issue(newKey(), "/control/r1/c2", soon()), nil, map[string]peer.Policy{peer.ProtoMesh: peer.AnyNode})
	gone := m.port(m.node("c3", keyring.RoleControl), nil, map[string]peer.Policy{peer.ProtoMesh: peer.AnyNode})
	m.setState("c3", keyring.NodeQuarantined)
	old := m.node("c4", keyring.RoleControl)
	off := m.port(m.issue(old.PrivateKey.(ed25519.PrivateKey), "/control/r1/c4", time.Now().Add(-72*time.Hour)), nil, map[string]peer.Policy{peer.ProtoMesh: peer.AnyNode})

	for name, tc := range map[string]struct {
		proto, node string
		server      *port
		want        fault.Kind
		ok          bool
	}{
		"the node meant":              {peer.ProtoMesh, "n1", plain, 0, true},
		"any control node":            {peer.ProtoMesh, "", control, 0, true},
		"raft to a control node":      {peer.ProtoRaft, "c2", control, 0, true},
		"expired, by record":          {peer.ProtoMesh, "c4", off, 0, true},
		"another node":                {peer.ProtoMesh, "n1", control, fault.Unauthenticated, false},
		"plain node where control":    {peer.ProtoMesh, "", plain, fault.Denied, false},
		"raft to a plain node":        {peer.ProtoRaft, "n1", plain, fault.Denied, false},
		"chains but has no record":    {peer.ProtoMesh, "c2", impostor, fault.Unauthenticated, false},
		"quarantined":                 {peer.ProtoMesh, "c3", gone, fault.Denied, false},
		"protocol that is not served": {"iapmesh-nope/1", "c2", control, fault.Unavailable, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := try(t, client, tc.proto, tc.node, tc.server.addr)
			if tc.ok && err != nil {
				t.Fatal(err)
			}
			if !tc.ok && !fault.Is(err, tc.want) {
				t.Fatalf("%v, want %v", err, tc.want)
			}
		})
	}
}

func TestWhatTheTLSStackRefuses(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	server := m.port(m.node("c1", keyring.RoleControl), nil, allProtos)
	for name, tc := range map[string]struct {
		config *tls.Config
		want   string
	}{
		"TLS 1.2":      {&tls.Config{MaxVersion: tls.VersionTLS12, NextProtos: []string{peer.ProtoJoin}}, "protocol version"},
		"no ALPN":      {&tls.Config{}, "internal error"},
		"unknown ALPN": {&tls.Config{NextProtos: []string{"http/1.1", "iapmesh-join/2"}}, "no application protocol"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tc.config.InsecureSkipVerify = true
			c, err := tls.Dial("tcp", server.addr, tc.config)
			if err == nil {
				c.Close()
				t.Fatalf("admitted as %q", c.ConnectionState().NegotiatedProtocol)
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("%v, want %q", err, tc.want)
			}
		})
	}
	t.Run("no tickets", func(t *testing.T) {
		t.Parallel()
		cache := tls.NewLRUClientSessionCache(8)
		for range 2 {
			c, err := tls.Dial("tcp", server.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{peer.ProtoJoin}, ClientSessionCache: cache})
			if err != nil {
				t.Fatal(err)
			}
			if err := echoes(c); err != nil { // a ticket would have come by now
				t.Fatal(err)
			}
			if c.ConnectionState().DidResume {
				t.Fatal("a session was resumed")
			}
			c.Close()
		}
	})
}

func TestRevokedWhileConnected(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	server := m.port(m.node("c1", keyring.RoleControl), nil, allProtos)
	victim := m.dialer(m.node("n1", keyring.RoleProxy))
	other := m.dialer(m.node("n2", keyring.RoleProxy))
	ana := m.dialer(m.admin("a1", "ana", soon()))

	cut, kept, admin := open(t, victim, peer.ProtoMesh, server), open(t, other, peer.ProtoMesh, server), open(t, ana, peer.ProtoAdmin, server)

	m.setState("n1", keyring.NodeRevoked)
	server.Recheck()
	ended(t, cut)
	if err := echoes(kept); err != nil {
		t.Fatalf("another node's connection: %v", err)
	}
	m.admins["a1"].RevokedAt = time.Now()
	m.publish()
	server.Recheck()
	ended(t, admin)

	m.setState("c1", keyring.NodeQuarantined)
	other.Recheck()
	if _, err := kept.Write([]byte("x")); err == nil {
		t.Error("the dialed connection to a quarantined server is still open")
	}
	if _, err := kept.Peer(); !fault.Is(err, fault.Denied) {
		t.Errorf("peer of it: %v", err)
	}
}

// open is a connection to c1 that works.
func open(t *testing.T, d *peer.Dialer, proto string, server *port) *peer.Conn {
	t.Helper()
	c, err := d.Dial(t.Context(), proto, "c1", server.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := echoes(c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestStalledHandshakesKeepNobodyOut(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	registry := prometheus.NewRegistry()
	server := m.port(m.node("c1", keyring.RoleControl), func(c *peer.Config) {
		c.Registerer = registry
		c.MaxHandshakes, c.MaxHandshakesPerSource = 100, 50
	}, allProtos)
	for range 200 {
		c, err := net.Dial("tcp", server.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	d := m.dialer(m.node("n1", keyring.RoleProxy))
	if err := try(t, d, peer.ProtoMesh, "c1", server.addr); err != nil {
		t.Fatalf("a real peer among 200 half-open connections: %v", err)
	}
	if n := metric(t, registry, "iapmesh_peer_evicted_total"); n < 100 {
		t.Errorf("%v handshakes were ended, want at least 100", n)
	}
}

func TestAStalledHandshakeTimesOut(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	server := m.port(m.node("c1", keyring.RoleControl), func(c *peer.Config) { c.HandshakeTimeout = 50 * time.Millisecond }, allProtos)
	c, err := net.Dial("tcp", server.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ended(t, c)
}

func TestAnonymousConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	server := m.port(m.node("c1", keyring.RoleControl), func(c *peer.Config) { c.MaxAnonymousPerSource = 2 }, allProtos)
	joiner := peer.Pinned{Pin: m.pin()}
	var conns []*peer.Conn
	for range 3 {
		c, err := joiner.Dial(t.Context(), server.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := echoes(c); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	ended(t, conns[0])
	if err := echoes(conns[2]); err != nil {
		t.Errorf("the newest: %v", err)
	}

	brief := m.port(m.node("c2", keyring.RoleControl), func(c *peer.Config) { c.AnonymousLifetime = 50 * time.Millisecond }, allProtos)
	c, err := joiner.Dial(t.Context(), brief.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ended(t, c)
}

// A node that is put out loses its connections like any other, and those that it makes then, for what it may still say, are bounded as a
// stranger's.
func TestANodeThatWasPutOutIsAStranger(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	server := m.port(m.node("c1", keyring.RoleControl), func(c *peer.Config) { c.MaxAnonymousPerSource = 1 }, allProtos)
	d := m.dialer(m.node("n1", keyring.RoleProxy))
	dial := func() *peer.Conn { return open(t, d, "known", server) }
	trusted := []*peer.Conn{dial(), dial()}
	m.setState("n1", keyring.NodeRevoked)
	server.Recheck()
	for _, c := range trusted {
		ended(t, c)
	}
	first := dial()
	second := dial()
	ended(t, first)
	server.Recheck()
	if err := echoes(second); err != nil {
		t.Errorf("the newest: %v", err)
	}
}

func TestVerifiedConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	server := m.port(m.node("c1", keyring.RoleControl), func(c *peer.Config) { c.MaxConns = 1 }, allProtos)
	d := m.dialer(m.node("n1", keyring.RoleProxy))
	first, err := d.Dial(t.Context(), peer.ProtoMesh, "c1", server.addr)
	if err != nil {
		t.Fatal(err)
	}
	if err := echoes(first); err != nil {
		t.Fatal(err)
	}
	if err := try(t, d, peer.ProtoMesh, "c1", server.addr); err == nil {
		t.Fatal("a second connection was admitted")
	}
	if err := echoes(first); err != nil {
		t.Errorf("the first: %v", err)
	}
	first.Close()
	until(t, "room again", func() bool { return try(t, d, peer.ProtoMesh, "c1", server.addr) == nil })
}

func TestWithoutAViewNobodyIsAdmitted(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	cert := m.node("n1", keyring.RoleProxy)
	server := m.port(m.node("c1", keyring.RoleControl), nil, allProtos)
	d := m.dialer(cert)
	m.view.Store(nil)
	if err := try(t, d, peer.ProtoMesh, "c1", server.addr); !fault.Is(err, fault.Unavailable) {
		t.Errorf("dial without view and bundle: %v", err)
	}
	bundled, err := peer.NewDialer(peer.DialConfig{Timeout: patience, Identity: identity(t, cert), Bundle: func() *peer.Bundle {
		return &peer.Bundle{Roots: m.roots(), TrustDomain: trustDomain}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := try(t, bundled, peer.ProtoMesh, "c1", server.addr); err == nil {
		t.Error("a server without a view admitted a node")
	}
	if err := try(t, bundled, peer.ProtoJoin, "c1", server.addr); err != nil {
		t.Errorf("a join needs no view: %v", err)
	}
}

func TestRenewalSwapsTheCertificate(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	first := m.node("c1", keyring.RoleControl)
	id := identity(t, first)
	server := m.port(nil, func(c *peer.Config) { c.Identity = id }, allProtos)
	d := m.dialer(m.node("n1", keyring.RoleProxy))
	next := m.issue(first.PrivateKey.(ed25519.PrivateKey), "/control/r1/c1", soon())
	if err := id.Set(next); err != nil {
		t.Fatal(err)
	}
	c, err := d.Dial(t.Context(), peer.ProtoMesh, "c1", server.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.ConnectionState().PeerCertificates[0]; string(got.Raw) != string(next.Certificate[0]) {
		t.Error("the old certificate was served")
	}
	if err := id.Set(&tls.Certificate{Certificate: next.Certificate, PrivateKey: newKey()}); !fault.Is(err, fault.Invalid) {
		t.Errorf("set with a foreign private key: %v", err)
	}
}

func TestListenRefusesWhatAdmitsNobodyAndWhatIsTaken(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	server := m.port(m.node("c1", keyring.RoleControl), nil, allProtos)
	for _, policy := range []peer.Policy{"", "role:", "everybody"} {
		if _, err := server.Listen("x", policy); !fault.Is(err, fault.Invalid) {
			t.Errorf("policy %q: %v", policy, err)
		}
	}
	if _, err := server.Listen(peer.ProtoJoin, peer.Nobody); !fault.Is(err, fault.Invalid) {
		t.Errorf("a name twice: %v", err)
	}
}

func TestAClosedListenerRefusesItsProtocolOnly(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	server := m.port(m.node("c1", keyring.RoleControl), nil, map[string]peer.Policy{peer.ProtoMesh: peer.AnyNode})
	l, err := server.Listen("extra", peer.AnyNode)
	if err != nil {
		t.Fatal(err)
	}
	d := m.dialer(m.node("n1", keyring.RoleProxy))
	waiting, err := d.Dial(t.Context(), "extra", "c1", server.addr) // nobody accepts it
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	l.Close()
	ended(t, waiting)
	if _, err := l.Accept(); err == nil {
		t.Error("a closed listener accepts")
	}
	if err := try(t, d, "extra", "c1", server.addr); err == nil {
		t.Error("a closed protocol is served")
	}
	if err := try(t, d, peer.ProtoMesh, "c1", server.addr); err != nil {
		t.Errorf("the other protocol: %v", err)
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	server := m.port(m.node("c1", keyring.RoleControl), nil, allProtos)
	d := m.dialer(m.node("n1", keyring.RoleProxy))
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if err := try(t, d, peer.ProtoMesh, "c1", server.addr); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Go(func() {
		for range 50 {
			m.publish()
			server.Recheck()
			d.Recheck()
		}
	})
	wg.Wait()
}

// until polls a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("still waiting for %s", what)
		case <-tick.C:
		}
	}
}

// metric sums a counter over its labels.
func metric(t *testing.T, g prometheus.Gatherer, name string) float64 {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() == name {
			for _, s := range f.GetMetric() {
				sum += s.GetCounter().GetValue()
			}
		}
	}
	return sum
}
