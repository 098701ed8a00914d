package proxy_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/spool"
	"github.com/iapmesh/iapmesh/internal/dev/app"
	"github.com/iapmesh/iapmesh/internal/identity"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/assertion"
	"github.com/iapmesh/iapmesh/node/proxy"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/session"
	"github.com/iapmesh/iapmesh/node/state"
)

const settingsYAML = `
kind: Settings
name: mesh
issuer: https://mesh.example.com
sign_in_host: auth.example.com
---
kind: IdentityProvider
name: okta
oidc: {issuer: https://okta.example.com, client_id: iapmesh}
`

// routesYAML: APP is the application's address.
const routesYAML = `---
kind: Route
name: billing
hosts: [billing.example.com, "*.apps.example.com"]
upstreams: [{url: http://APP}]
identity_providers: [okta]
allow: [{groups: [okta/finance]}]
assertion:
  headers: [Cf-Access-Jwt-Assertion]
  claim_headers: {X-Forwarded-User: user, X-Forwarded-Groups: groups, X-Acme-Subject: subject, Remote-Name: name, X-Forwarded-Email: email}
---
kind: Route
name: open
hosts: [open.example.com]
upstreams: [{url: http://APP}]
allow: [{anyone: true}]
---
kind: Route
name: api
hosts: [api.example.com]
upstreams: [{url: http://APP}]
identity_providers: [okta]
api: true
allow: [{groups: [okta/finance]}]
`

// world is a mesh's state that tests change, one proxy of it ("eu") with a real spool, and the application behind it.
type world struct {
	t       testing.TB
	now     time.Time
	at      revision.Revision
	records keyring.Contents
	config  *resource.Configuration
	views   *views
	keys    *session.Keys
	secret  []byte // PKCS #8 of the assertion key
	live    *session.Live
	spool   *spool.Spool
	trail   *trail
	signIn  *signIn
	refused *refusals
	age     func() (time.Duration, bool)
	app     *httptest.Server
	cfg     proxy.Config
	proxy   *proxy.Proxy
	server  *httptest.Server
}

type options struct {
	routes  string       // default routesYAML; settingsYAML goes before it
	app     http.Handler // default echo
	spool   proxy.Spool  // default a real one
	files   func(string, int) (spool.File, error)
	age     func() (time.Duration, bool)
	trusted string
	http2   bool
	plain   bool          // no trail is kept: for benchmarks
	wait    time.Duration // default patience
}

// patience is how long a test waits for what must come, and has the proxy wait for its disk and its application: a busy machine may stop for a while.
const patience = 2 * time.Minute

func newWorld(t testing.TB, o options) *world {
	t.Helper()
	w := &world{
		t: t, now: time.Now(), at: revision.Revision{Epoch: 1, Index: 10}, age: o.age,
		views: &views{changed: make(chan struct{})}, signIn: &signIn{}, refused: &refusals{},
		records: keyring.Contents{
			Nodes: map[string]*keyring.Node{}, SigningKeys: map[string]*keyring.SigningKey{},
			Revocations: map[keyring.RevocationKind]map[string]*keyring.Revocation{keyring.RevokeSession: {}, keyring.RevokeSubject: {}},
		},
	}
	if o.app == nil {
		o.app = app.NewEcho(app.Config{})
	}
	w.app = httptest.NewServer(o.app)
	t.Cleanup(w.app.Close)
	if o.routes == "" {
		o.routes = routesYAML
	}
	if o.wait == 0 {
		o.wait = patience
	}
	if w.age == nil {
		w.age = func() (time.Duration, bool) { return 10 * time.Millisecond, true }
	}
	settings := settingsYAML
	if o.trusted != "" {
		settings = strings.Replace(settings, "sign_in_host", "trusted_proxies: ["+o.trusted+"]\nsign_in_host", 1)
	}
	w.live = session.NewLive(session.LiveConfig{Node: "eu", Redecide: 50 * time.Millisecond})
	w.apply(settings + o.routes)
	w.join()
	w.assertionKey()
	if o.spool == nil {
		w.spool = w.runSpool(o.files)
		w.trail = &trail{Spool: w.spool, plain: o.plain}
		o.spool = w.trail
	}
	w.run(w.live.Run)
	var err error
	w.cfg = proxy.Config{
		Node: "eu", Region: "eu-west", Views: w.views, Age: func() (time.Duration, bool) { return w.age() },
		Verifier: session.NewVerifier(session.Config{}), Live: w.live, RecordWait: o.wait, ConnectWait: patience,
		Issuer: assertion.NewIssuer(assertion.Config{Node: "eu", Secrets: w}), Spool: o.spool, Refusals: w.refused, SignIn: w.signIn,
	}
	if w.proxy, err = proxy.New(w.cfg); err != nil {
		t.Fatal(err)
	}
	w.server = httptest.NewUnstartedServer(w.proxy)
	w.server.Config.DisableGeneralOptionsHandler = true
	if o.http2 {
		w.server.EnableHTTP2 = true
		w.server.StartTLS()
	} else {
		w.server.Start()
	}
	t.Cleanup(w.server.Close)
	if o.http2 {
		w.connect()
	}
	return w
}

// connect opens the connection that the test's requests share. A server gives up on one whose first frame takes two seconds, which a busy
// machine may let pass: a request of the test's would end with it.
func (w *world) connect() {
	w.t.Helper()
	var err error
	for range 10 {
		var res *http.Response
		if res, err = w.server.Client().Transport.RoundTrip(w.request(http.MethodGet, "nothing.example.com", "/", nil)); err == nil {
			res.Body.Close()
			return
		}
	}
	w.t.Fatal(err)
}

// run runs f until the test is over.
func (w *world) run(f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Logf("run: %v", err)
		}
	})
}

func (w *world) runSpool(files func(string, int) (spool.File, error)) *spool.Spool {
	w.t.Helper()
	s, err := spool.Open(spool.Config{
		Dir: w.t.TempDir(), Node: "eu", Region: "eu-west", Mesh: "m", SegmentBytes: 4 << 20, OpenFile: files,
		Signer: audit.SignWith(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.run(s.Run)
	return s
}

// commit changes the records in a copy, and publishes the next view.
func (w *world) commit(change func(c *keyring.Contents)) *state.View {
	v := w.next(change)
	w.publish(v)
	return v
}

func (w *world) next(change func(c *keyring.Contents)) *state.View {
	w.at.Index++
	c := w.records
	c.Nodes, c.SigningKeys = maps.Clone(c.Nodes), maps.Clone(c.SigningKeys)
	c.Revocations = map[keyring.RevocationKind]map[string]*keyring.Revocation{
		keyring.RevokeSession: maps.Clone(c.Revocations[keyring.RevokeSession]),
		keyring.RevokeSubject: maps.Clone(c.Revocations[keyring.RevokeSubject]),
	}
	change(&c)
	w.records = c
	return &state.View{Revision: w.at, Keyring: keyring.NewSnapshot(w.at, c), Config: w.config}
}

func (w *world) publish(v *state.View) {
	w.views.set(v)
	w.live.Recheck(v)
}

func (w *world) apply(yaml string) *state.View {
	w.t.Helper()
	address := w.app.Listener.Addr().String()
	_, port, _ := strings.Cut(address, ":")
	docs, err := resource.Parse("mesh.yaml", []byte(strings.NewReplacer("APP", address, "PORT", port).Replace(yaml)))
	if err != nil {
		w.t.Fatal(err)
	}
	if w.config, err = resource.Compile(docs, []string{"eu-west"}); err != nil {
		w.t.Fatal(err)
	}
	return w.commit(func(*keyring.Contents) {})
}

// join adds the node and its first session key.
func (w *world) join() {
	w.t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	node := &keyring.Node{
		ID: "eu", Name: "eu", Region: "eu-west", Roles: []keyring.Role{keyring.RoleProxy}, PublicKey: public,
		ProvisioningKey: "key-of-eu", State: keyring.NodeActive,
	}
	record, err := keyring.AnnounceSessionKey(*node, public, w.records.SigningKeys, w.now)
	if err != nil {
		w.t.Fatal(err)
	}
	w.commit(func(c *keyring.Contents) {
		c.Nodes["eu"] = node
		record.Revision = w.at
		c.SigningKeys[record.KID] = &record
	})
	if w.keys, err = session.OpenKeys(session.KeysConfig{Node: "eu", Dir: w.t.TempDir(), Sealer: sealer{}}); err != nil {
		w.t.Fatal(err)
	}
	if err := w.keys.Add(private, w.at); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) assertionKey() {
	w.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		w.t.Fatal(err)
	}
	if w.secret, err = x509.MarshalPKCS8PrivateKey(private); err != nil {
		w.t.Fatal(err)
	}
	w.commit(func(c *keyring.Contents) {
		c.SigningKeys["a1"] = &keyring.SigningKey{
			KID: "a1", Kind: keyring.SigningAssertion, Region: "eu-west", PublicKey: public, State: keyring.SigningActive, Revision: w.at,
		}
	})
}

// Open implements assertion.Secrets.
func (w *world) Open(*keyring.Snapshot, string, string) ([]byte, error) { return w.secret, nil }

// signInAs mints a session and returns its cookie and id.
func (w *world) signInAs(groups ...string) (*http.Cookie, string) {
	w.t.Helper()
	who := identity.Identity{Subject: "okta/00u1", Email: "ana@example.com", Name: "Ana", Groups: groups, AuthTime: w.now}
	token, s, err := session.NewMinter(w.keys, nil).Mint(w.views.Load(), session.Grant{Identity: who})
	if err != nil {
		w.t.Fatal(err)
	}
	return &http.Cookie{Name: session.CookieName, Value: token}, s.ID
}

func (w *world) ana() *http.Cookie {
	c, _ := w.signInAs("okta/finance", "okta/staff")
	return c
}

func (w *world) revoke(sid string) {
	w.commit(func(c *keyring.Contents) {
		c.Revocations[keyring.RevokeSession][sid] = &keyring.Revocation{Kind: keyring.RevokeSession, Value: sid, Revision: w.at}
	})
}

// request makes one to the proxy; edit may change it.
func (w *world) request(method, host, target string, cookie *http.Cookie) *http.Request {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.server.URL, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	r.URL.Opaque, r.Host = target, host
	if cookie != nil {
		r.AddCookie(cookie)
	}
	return r
}

type response struct {
	*http.Response
	body string
}

func (w *world) do(r *http.Request) response {
	w.t.Helper()
	res, err := w.server.Client().Transport.RoundTrip(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return response{res, string(body)}
}

func (w *world) get(host, target string, cookie *http.Cookie) response {
	w.t.Helper()
	return w.do(w.request(http.MethodGet, host, target, cookie))
}

// echo is what the application saw.
func (r response) echo(t testing.TB) app.Echo {
	t.Helper()
	var e app.Echo
	if err := json.Unmarshal([]byte(r.body), &e); err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%d %s: %v", r.StatusCode, r.body, err)
	}
	return e
}

func (r response) code() string { return r.Header.Get("X-Iapmesh-Response") }

// kind returns the records of a kind, once there are n.
func (w *world) kind(kind audit.Kind, n int) []audit.Record {
	w.t.Helper()
	var found []audit.Record
	w.eventually(fmt.Sprintf("%d records of kind %s", n, kind), func() bool {
		w.trail.mu.Lock()
		defer w.trail.mu.Unlock()
		found = nil
		for _, r := range w.trail.records {
			if r.Kind == kind {
				found = append(found, r)
			}
		}
		return len(found) >= n
	})
	return found
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("never came: %s", what)
		}
	}
}
