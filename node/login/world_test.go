package login_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/dev/ca"
	"github.com/iapmesh/iapmesh/internal/dev/idp"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/login"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/session"
	"github.com/iapmesh/iapmesh/node/state"
)

const (
	clientSecret = "a secret/with+signs:"
	ana          = "ana@example.com"
	mallory      = "mallory@example.com"
	handoffPath  = "/.iapmesh/handoff"
	callbackPath = "/.iapmesh/callback"
)

// world is a mesh of two regions whose proxies share one state, their identity providers, and a clock.
type world struct {
	t         testing.TB
	authority *ca.Authority
	idps      map[string]*provider // by name: dev, other
	regions   map[string]*region   // eu, us
	clock     atomic.Int64         // seconds ahead
	stopped   atomic.Pointer[time.Time]
	views     *views
	contents  keyring.Contents
	at        revision.Revision
	config    *resource.Configuration
	trail     *trail
	ended     *ended
}

type region struct {
	log      *lines // at level info and above
	name     string
	server   *httptest.Server
	handler  http.Handler
	minter   *session.Minter
	login    *login.Login
	registry *prometheus.Registry
}

type provider struct {
	*idp.Provider
	server *httptest.Server
	down   atomic.Bool
}

// views hold the newest view, as a state.Source does.
type views struct{ newest atomic.Pointer[state.View] }

func (v *views) Load() *state.View { return v.newest.Load() }

func (v *views) WaitRevision(ctx context.Context, at revision.Revision) (*state.View, error) {
	if view := v.Load(); !view.Revision.Before(at) {
		return view, nil
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

// trail keeps records in memory, or fails as a full disk does.
type trail struct {
	mu      sync.Mutex
	records []audit.Record
	full    atomic.Bool
}

func (t *trail) Record(_ context.Context, r *audit.Record) error {
	if t.full.Load() {
		return fault.New(fault.Exhausted, "audit spool is full")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.records = append(t.records, *r)
	return nil
}

func (t *trail) all() []audit.Record {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]audit.Record(nil), t.records...)
}

// ended revokes sessions in the world's state, as the leader does, unless there is none.
type ended struct {
	w        *world
	noLeader atomic.Bool
}

func (e *ended) EndSession(_ context.Context, id, _ string) error {
	if e.noLeader.Load() {
		return fault.New(fault.Unavailable, "no leader")
	}
	e.w.revoke(keyring.RevokeSession, id, false)
	return nil
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{
		t: t, idps: map[string]*provider{}, regions: map[string]*region{}, views: &views{}, trail: &trail{}, at: revision.Revision{Epoch: 1, Index: 10},
		contents: keyring.Contents{
			Nodes: map[string]*keyring.Node{}, SigningKeys: map[string]*keyring.SigningKey{},
			Audiences: map[string]*keyring.Audience{}, Secrets: map[string]*keyring.Secret{},
			Revocations: map[keyring.RevocationKind]map[string]*keyring.Revocation{keyring.RevokeSession: {}, keyring.RevokeSubject: {}},
		},
	}
	w.ended = &ended{w: w}
	var err error
	if w.authority, err = ca.Open(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	members, keys := map[string][]byte{}, map[string]seal.SealingKey{}
	for _, name := range []string{"eu", "us"} {
		key, err := seal.GenerateSealingKey()
		if err != nil {
			t.Fatal(err)
		}
		keys[name], members[name] = key, key.PublicKey()
		r := &region{name: name, registry: prometheus.NewRegistry(), log: &lines{}}
		r.server = w.serve(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) { r.handler.ServeHTTP(rw, req) }))
		w.regions[name] = r
	}
	for _, name := range []string{"dev", "other"} {
		w.startProvider(name)
	}
	w.sealSecrets(members)
	w.apply(w.yaml())
	for name, r := range w.regions {
		w.join(r, seal.Member{Node: name, Key: keys[name]}, "")
	}
	return w
}

func (w *world) serve(h http.Handler) *httptest.Server {
	w.t.Helper()
	leaf, err := w.authority.Leaf("auth.localhost", "billing.localhost", "wiki.localhost", "127.0.0.1")
	if err != nil {
		w.t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{leaf}}
	s.StartTLS()
	w.t.Cleanup(s.Close)
	return s
}

func (w *world) startProvider(name string) {
	w.t.Helper()
	p := &provider{}
	var handler atomic.Pointer[http.Handler]
	p.server = w.serve(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if p.down.Load() {
			panic(http.ErrAbortHandler)
		}
		(*handler.Load()).ServeHTTP(rw, r)
	}))
	began := time.Now()
	config := idp.Config{
		Issuer: p.server.URL, ClientID: "iapmesh", ClientSecret: clientSecret,
		Now: func() time.Time { return began }, // its codes, which are good for a minute, do not run out on a busy machine
	}
	for name := range w.regions {
		config.RedirectURIs = append(config.RedirectURIs, w.url(name, "auth", callbackPath))
	}
	var err error
	if p.Provider, err = idp.New(config); err != nil {
		w.t.Fatal(err)
	}
	h := p.Handler()
	handler.Store(&h)
	w.idps[name] = p
}

func (w *world) yaml() string {
	indented := func(name string) string {
		return fmt.Sprintf("\n---\nkind: IdentityProvider\nname: %s\noidc:\n  issuer: %s\n  client_id: iapmesh\n  client_secret: {secret: %s-client}\n  scopes: [openid, email, profile, groups]\n  ca: |\n    %s\n",
			name, w.idps[name].server.URL, name, strings.ReplaceAll(strings.TrimSpace(string(w.authority.CertPEM())), "\n", "\n    "))
	}
	return `
kind: Settings
name: mesh
issuer: https://mesh.example.com
sign_in_host: auth.localhost
regions: [eu, us]` + indented("dev") + indented("other") + `
---
kind: Route
name: billing
hosts: [billing.localhost]
upstreams: [{url: http://10.0.0.5:8080}]
identity_providers: [dev]
allow: [{groups: [dev/engineering]}]
---
kind: Route
name: wiki
hosts: [wiki.localhost, "*.docs.localhost"]
upstreams: [{url: http://10.0.0.6:8080}]
identity_providers: [other, dev]
allow: [{groups: [dev/finance]}]
---
kind: Route
name: public
hosts: [billing.localhost]
path: /public
upstreams: [{url: http://10.0.0.6:8080}]
`
}

func (w *world) sealSecrets(members map[string][]byte) {
	w.t.Helper()
	now := time.Now()
	a, key, err := seal.NewAudience(keyring.AudienceProxies, members, now)
	if err != nil {
		w.t.Fatal(err)
	}
	handoff := make([]byte, 32)
	_, _ = rand.Read(handoff)
	w.contents.Audiences[a.Name] = &a
	for name, value := range map[string][]byte{
		keyring.SecretHandoff:              handoff,
		keyring.UserSecret("dev-client"):   []byte(clientSecret + "\n"), // as an editor leaves a file
		keyring.UserSecret("other-client"): []byte(clientSecret),
	} {
		s, err := seal.NewSecret(key, name, value, now)
		if err != nil {
			w.t.Fatal(err)
		}
		w.contents.Secrets[a.Name+"/"+name] = &s
	}
}

// commit changes the records in a copy, and publishes the next view.
func (w *world) commit(change func(c *keyring.Contents)) {
	w.at.Index++
	c := w.contents
	c.Nodes, c.SigningKeys = maps.Clone(c.Nodes), maps.Clone(c.SigningKeys)
	c.Revocations = map[keyring.RevocationKind]map[string]*keyring.Revocation{
		keyring.RevokeSession: maps.Clone(c.Revocations[keyring.RevokeSession]), keyring.RevokeSubject: maps.Clone(c.Revocations[keyring.RevokeSubject]),
	}
	change(&c)
	w.contents = c
	w.views.newest.Store(&state.View{Revision: w.at, Keyring: keyring.NewSnapshot(w.at, c), Config: w.config})
}

func (w *world) revoke(kind keyring.RevocationKind, value string, block bool) {
	w.commit(func(c *keyring.Contents) {
		c.Revocations[kind][value] = &keyring.Revocation{Kind: kind, Value: value, Block: block, Revision: w.at}
	})
}

func (w *world) apply(yaml string) {
	w.t.Helper()
	docs, err := resource.Parse("mesh.yaml", []byte(yaml))
	if err != nil {
		w.t.Fatal(err)
	}
	if w.config, err = resource.Compile(docs, nil); err != nil {
		w.t.Fatal(err)
	}
	w.commit(func(*keyring.Contents) {})
}

func (w *world) join(r *region, secrets seal.Member, selector string) {
	w.t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	node := &keyring.Node{
		ID: r.name, Name: r.name, Region: r.name, Roles: []keyring.Role{keyring.RoleProxy}, RouteSelector: selector,
		PublicKey: public, ProvisioningKey: "key-of-" + r.name, State: keyring.NodeActive,
	}
	record, err := keyring.AnnounceSessionKey(*node, public, w.contents.SigningKeys, w.now())
	if err != nil {
		w.t.Fatal(err)
	}
	w.commit(func(c *keyring.Contents) {
		c.Nodes[r.name] = node
		record.Revision = w.at
		c.SigningKeys[record.KID] = &record
	})
	dir := w.t.TempDir()
	sealer, err := seal.Create(w.t.Context(), dir, []string{seal.KeyFileURL("disk.key")})
	if err != nil {
		w.t.Fatal(err)
	}
	keys, err := session.OpenKeys(session.KeysConfig{Node: r.name, Dir: dir + "/session-keys", Sealer: sealer, Now: w.now})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := keys.Add(private, w.at); err != nil {
		w.t.Fatal(err)
	}
	verifier := session.NewVerifier(session.Config{Now: w.now})
	r.minter = session.NewMinter(keys, w.now)
	r.login, err = login.New(login.Config{
		Node: r.name, Region: r.name, Views: w.views, Minter: r.minter, Verifier: verifier, Secrets: secrets, Trail: w.trail, Sessions: w.ended, Now: w.now,
		Registerer: r.registry, Logger: slog.New(slog.NewTextHandler(r.log, nil)),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	r.login.Patient()
	r.handler = w.application(r, verifier)
}

// application is what node/proxy is to login: it asks for a sign-in where there is no session, and otherwise tells who is there.
func (w *world) application(r *region, verifier *session.Verifier) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		view := w.views.Load()
		host, _, _ := net.SplitHostPort(req.Host)
		if strings.HasPrefix(req.URL.Path, "/.iapmesh/") || host == view.Config.Settings.SignInHost {
			r.login.ServeHTTP(rw, req)
			return
		}
		route := view.Config.Match(host, req.URL.Path)
		if route == nil {
			http.NotFound(rw, req)
			return
		}
		s, err := verifier.Verify(view, route, session.ReadCookie(req))
		if err == nil {
			err = s.On(host)
		}
		if err != nil {
			r.login.Begin(rw, req, view, route)
			return
		}
		_ = json.NewEncoder(rw).Encode(greeting{s.Identity.Subject, s.Identity.Email, s.Identity.Groups, s.ID, s.MintingNode, req.URL.RequestURI()})
	})
}

// greeting is the application's answer.
type greeting struct {
	Subject, Email string
	Groups         []string
	Session, Node  string
	URI            string
}

func (w *world) now() time.Time {
	now := time.Now()
	if at := w.stopped.Load(); at != nil {
		now = *at
	}
	return now.Add(time.Duration(w.clock.Load()) * time.Second)
}

// stopClock has time pass by clock alone. The development providers do not follow it.
func (w *world) stopClock() {
	now := time.Now()
	w.stopped.Store(&now)
}

func (w *world) port(region string) string {
	_, port, _ := net.SplitHostPort(w.regions[region].server.Listener.Addr().String())
	return port
}

func (w *world) url(region, host, path string) string {
	return "https://" + host + ".localhost:" + w.port(region) + path
}

func (w *world) password(username string) string {
	for _, u := range w.idps["dev"].Users() {
		if u.Username == username {
			return u.Password
		}
	}
	w.t.Fatalf("no user %s", username)
	return ""
}
