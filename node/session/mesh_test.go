package session_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/identity"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/session"
	"github.com/iapmesh/iapmesh/node/state"
)

const settingsYAML = `
kind: Settings
name: mesh
issuer: https://mesh.example.com
sign_in_host: auth.example.com
`

const routesYAML = `
---
kind: IdentityProvider
name: okta
oidc: {issuer: https://okta.example.com, client_id: iapmesh}
---
kind: Route
name: billing
hosts: [billing.example.com]
upstreams: [{url: http://10.0.0.5:8080}]
identity_providers: [okta]
allow: [{groups: [okta/finance]}]
---
kind: Route
name: payroll
hosts: [payroll.example.com]
upstreams: [{url: http://10.0.0.6:8080}]
identity_providers: [okta]
allow: [{groups: [okta/finance]}]
`

// mesh is a state that tests change; view is the newest. Its two proxies are "eu", for every route, and "bill", for billing.
type mesh struct {
	t       testing.TB
	now     time.Time
	at      revision.Revision
	records keyring.Contents
	config  *resource.Configuration
	view    *state.View
	keys    map[string]*session.Keys
	private map[string]ed25519.PrivateKey
}

func newMesh(t testing.TB) *mesh {
	t.Helper()
	m := &mesh{
		t: t, now: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC), at: revision.Revision{Epoch: 1, Index: 10},
		keys: map[string]*session.Keys{}, private: map[string]ed25519.PrivateKey{},
		records: keyring.Contents{
			Nodes: map[string]*keyring.Node{}, SigningKeys: map[string]*keyring.SigningKey{},
			Revocations: map[keyring.RevocationKind]map[string]*keyring.Revocation{keyring.RevokeSession: {}, keyring.RevokeSubject: {}},
		},
	}
	m.apply(settingsYAML + routesYAML)
	m.join("eu", "")
	m.join("bill", "billing")
	return m
}

// commit changes the records in a copy, and makes the next view.
func (m *mesh) commit(change func(c *keyring.Contents)) *state.View {
	m.at.Index++
	c := m.records
	c.Nodes, c.SigningKeys = maps.Clone(c.Nodes), maps.Clone(c.SigningKeys)
	c.Revocations = map[keyring.RevocationKind]map[string]*keyring.Revocation{
		keyring.RevokeSession: maps.Clone(c.Revocations[keyring.RevokeSession]),
		keyring.RevokeSubject: maps.Clone(c.Revocations[keyring.RevokeSubject]),
	}
	change(&c)
	m.records = c
	m.view = &state.View{Revision: m.at, Keyring: keyring.NewSnapshot(m.at, c), Config: m.config}
	return m.view
}

func (m *mesh) apply(yaml string) *state.View {
	m.t.Helper()
	docs, err := resource.Parse("mesh.yaml", []byte(yaml))
	if err != nil {
		m.t.Fatal(err)
	}
	if m.config, err = resource.Compile(docs, nil); err != nil {
		m.t.Fatal(err)
	}
	return m.commit(func(*keyring.Contents) {})
}

// join adds an active proxy whose first session key signs at once.
func (m *mesh) join(id, selector string) {
	m.t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		m.t.Fatal(err)
	}
	node := &keyring.Node{
		ID: id, Name: id, Region: "eu-west", Roles: []keyring.Role{keyring.RoleProxy}, RouteSelector: selector,
		PublicKey: public, ProvisioningKey: "key-of-" + id, State: keyring.NodeActive,
	}
	record, err := keyring.AnnounceSessionKey(*node, public, m.records.SigningKeys, m.now)
	if err != nil {
		m.t.Fatal(err)
	}
	m.commit(func(c *keyring.Contents) {
		c.Nodes[id] = node
		record.Revision = m.at
		c.SigningKeys[record.KID] = &record
	})
	keys, err := session.OpenKeys(session.KeysConfig{Node: id, Dir: m.t.TempDir(), Sealer: sealer{}, Now: m.clock})
	if err != nil {
		m.t.Fatal(err)
	}
	if err := keys.Add(private, m.at); err != nil {
		m.t.Fatal(err)
	}
	m.keys[id], m.private[id] = keys, private
}

func (m *mesh) clock() time.Time { return m.now }

func (m *mesh) kid(node string) string {
	return session.KIDOf(m.private[node].Public().(ed25519.PublicKey))
}

func (m *mesh) route(name string) *resource.Route { return m.view.Config.Route(name) }

func (m *mesh) minter(node string) *session.Minter { return session.NewMinter(m.keys[node], m.clock) }

// signIn mints a session for ana.
func (m *mesh) signIn(node string) (string, *session.Session) {
	m.t.Helper()
	token, s, err := m.minter(node).Mint(m.view, session.Grant{Identity: ana()})
	if err != nil {
		m.t.Fatal(err)
	}
	return token, s
}

func (m *mesh) verifier() *session.Verifier {
	return session.NewVerifier(session.Config{Now: m.clock})
}

func (m *mesh) editNode(id string, edit func(*keyring.Node)) *state.View {
	return m.commit(func(c *keyring.Contents) {
		n := *c.Nodes[id]
		edit(&n)
		c.Nodes[id] = &n
	})
}

func (m *mesh) editKey(kid string, edit func(*keyring.SigningKey)) *state.View {
	return m.commit(func(c *keyring.Contents) {
		k := *c.SigningKeys[kid]
		edit(&k)
		k.Revision = m.at
		c.SigningKeys[kid] = &k
	})
}

func (m *mesh) revoke(kind keyring.RevocationKind, value string, block bool) *state.View {
	return m.commit(func(c *keyring.Contents) {
		c.Revocations[kind][value] = &keyring.Revocation{Kind: kind, Value: value, Block: block, Revision: m.at}
	})
}

func ana() identity.Identity {
	return identity.Identity{
		Subject: "okta/00u1", Email: "ana@example.com", Name: "Ana", Groups: []string{"okta/finance", "okta/staff"},
		AuthTime: time.Date(2026, 11, 23, 11, 59, 0, 0, time.UTC), AMR: []string{"pwd", "otp"},
	}
}

// sealer is AES-256-GCM under a key that every test knows.
type sealer struct{}

func (sealer) aead() cipher.AEAD {
	key := sha256.Sum256([]byte("the disk of a test"))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return aead
}

func (s sealer) Seal(plaintext, context []byte) ([]byte, error) {
	return s.aead().Seal(nil, nil, plaintext, context), nil
}

func (s sealer) Open(sealed, context []byte) ([]byte, error) {
	plain, err := s.aead().Open(nil, nil, sealed, context)
	if err != nil {
		return nil, fmt.Errorf("test disk: %w", err)
	}
	return plain, nil
}
