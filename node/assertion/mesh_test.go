package assertion_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"maps"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/identity"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/assertion"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/state"
)

const meshYAML = `
kind: Settings
name: mesh
issuer: https://mesh.example.com
sign_in_host: auth.example.com
jwks_max_age: 90s
---
kind: Route
name: billing
hosts: [billing.example.com]
upstreams: [{url: http://10.0.0.5:8080}]
---
kind: Route
name: payroll
hosts: [payroll.example.com, "*.pay.example.com"]
upstreams: [{url: http://10.0.0.6:8080}]
assertion: {audience: urn:payroll}
`

// mesh has a proxy "eu" for every route and "bill" for billing, each with an assertion key of its own slot, sealed to it.
type mesh struct {
	t       testing.TB
	now     time.Time
	at      revision.Revision
	records keyring.Contents
	config  *resource.Configuration
	view    *state.View
	sealing map[string]seal.SealingKey
}

func newMesh(t testing.TB) *mesh {
	t.Helper()
	m := &mesh{
		t: t, now: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC), at: revision.Revision{Epoch: 1}, sealing: map[string]seal.SealingKey{},
		records: keyring.Contents{
			Nodes: map[string]*keyring.Node{}, SigningKeys: map[string]*keyring.SigningKey{},
			Audiences: map[string]*keyring.Audience{}, Secrets: map[string]*keyring.Secret{},
		},
	}
	m.apply(meshYAML)
	m.join("eu", "")
	m.join("bill", "billing")
	m.announce("")
	m.announce("billing")
	return m
}

func (m *mesh) commit(change func(c *keyring.Contents)) {
	m.at.Index++
	c := m.records
	c.Nodes, c.SigningKeys = maps.Clone(c.Nodes), maps.Clone(c.SigningKeys)
	c.Audiences, c.Secrets = maps.Clone(c.Audiences), maps.Clone(c.Secrets)
	change(&c)
	m.records = c
	m.view = &state.View{Revision: m.at, Keyring: keyring.NewSnapshot(m.at, c), Config: m.config}
}

func (m *mesh) apply(yaml string) {
	m.t.Helper()
	docs, err := resource.Parse("mesh.yaml", []byte(yaml))
	if err != nil {
		m.t.Fatal(err)
	}
	if m.config, err = resource.Compile(docs, nil); err != nil {
		m.t.Fatal(err)
	}
	m.commit(func(*keyring.Contents) {})
}

func (m *mesh) join(id, selector string) {
	m.t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		m.t.Fatal(err)
	}
	if m.sealing[id], err = seal.GenerateSealingKey(); err != nil {
		m.t.Fatal(err)
	}
	m.commit(func(c *keyring.Contents) {
		c.Nodes[id] = &keyring.Node{
			ID: id, Region: "eu-west", Roles: []keyring.Role{keyring.RoleProxy}, RouteSelector: selector, PublicKey: public,
			State: keyring.NodeActive,
		}
	})
}

// announce makes the next assertion key of a slot, as the leader does, and returns its kid.
func (m *mesh) announce(selector string) string {
	m.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		m.t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		m.t.Fatal(err)
	}
	record, err := keyring.AnnounceAssertionKey("eu-west", selector, spki, m.records.SigningKeys, m.now)
	if err != nil {
		m.t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		m.t.Fatal(err)
	}
	m.commit(func(c *keyring.Contents) { c.SigningKeys[record.KID] = &record })
	m.seal(selector, record.KID, der)
	return record.KID
}

// seal stores a secret of the slot's audience, whose key is made anew.
func (m *mesh) seal(selector, name string, plaintext []byte) {
	m.t.Helper()
	members := map[string][]byte{}
	for id, n := range m.records.Nodes {
		if n.RouteSelector == selector {
			members[id] = m.sealing[id].PublicKey()
		}
	}
	audience := keyring.AssertAudience("eu-west", selector)
	a, key, err := seal.NewAudience(audience, members, m.now)
	if err != nil {
		m.t.Fatal(err)
	}
	secret, err := seal.NewSecret(key, name, plaintext, m.now)
	if err != nil {
		m.t.Fatal(err)
	}
	m.commit(func(c *keyring.Contents) {
		c.Audiences[audience] = &a
		c.Secrets[audience+"/"+name] = &secret
	})
}

func (m *mesh) promote(kid string) {
	m.t.Helper()
	m.commit(func(c *keyring.Contents) {
		changed, err := keyring.Promote(*c.SigningKeys[kid], c.SigningKeys, m.now)
		if err != nil {
			m.t.Fatal(err)
		}
		for i := range changed {
			c.SigningKeys[changed[i].KID] = &changed[i]
		}
	})
}

func (m *mesh) active(selector string) *keyring.SigningKey {
	return m.view.Keyring.ActiveAssertionKey("eu-west", selector)
}

func (m *mesh) clock() time.Time { return m.now }

func (m *mesh) issuer(node string) *assertion.Issuer {
	return assertion.NewIssuer(assertion.Config{
		Node: node, Secrets: seal.Member{Node: node, Key: m.sealing[node]}, Now: m.clock,
	})
}

func ana() assertion.Subject {
	return assertion.Subject{Session: "s1", Identity: &identity.Identity{
		Subject: "okta/00u1", Email: "ana@example.com", Name: "Ana", Groups: []string{"okta/finance"},
	}}
}
