package nodetest

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http/httptest"
	"path/filepath"
	"strings"

	"github.com/iapmesh/iapmesh/internal/dev"
	"github.com/iapmesh/iapmesh/internal/dev/app"
	"github.com/iapmesh/iapmesh/internal/dev/ca"
	"github.com/iapmesh/iapmesh/internal/dev/idp"
	"github.com/iapmesh/iapmesh/node"
)

// The hosts of the mesh under test.
const (
	EchoHost    = "echo.localhost"
	FinanceHost = "billing.localhost"
	SignInHost  = "auth.localhost"
	clientID    = "iapmesh"
	clientSeed  = "nodetest-client-secret"
)

// world is what lies around the mesh: an identity provider and an application.
type world struct {
	mesh        *Mesh
	root        *ca.Authority
	certificate node.CertificateFiles
	provider    *idp.Provider
	issuer      string
	echo        *httptest.Server
	keySets     []string
}

func newWorld(m *Mesh) *world {
	w := &world{mesh: m}
	var err error
	w.root, err = ca.Open(filepath.Join(m.dir, "ca"))
	m.must("open the development CA", err)
	w.certificate.CertFile, w.certificate.KeyFile, err = w.root.WriteLeaf("mesh", EchoHost, FinanceHost, SignInHost, "localhost", "127.0.0.1")
	m.must("issue the mesh's certificate", err)
	w.startProvider()
	return w
}

// admit tells the world where a region serves users: the provider, which redirects there, and the application, which fetches keys.
func (w *world) admit(r *Region) {
	_, port, err := net.SplitHostPort(r.config.Listen.Proxy)
	w.mesh.must("proxy address", err)
	w.mesh.must("register the redirect", w.provider.AllowRedirect("https://"+SignInHost+":"+port+"/.iapmesh/callback"))
	w.keySets = append(w.keySets, "https://"+EchoHost+":"+port+"/.well-known/iapmesh/jwks.json")
}

// startApplication starts echo, once it is known where the mesh publishes its keys.
func (w *world) startApplication() {
	w.echo = httptest.NewServer(app.NewEcho(app.Config{
		JWKS: w.keySets, Issuer: "https://" + SignInHost, Audience: EchoHost, Client: dev.Client(dev.Config{CA: w.root.Pool()}),
	}))
	w.mesh.t.Cleanup(w.echo.Close)
}

func (w *world) startProvider() {
	m := w.mesh
	var lc net.ListenConfig
	l, err := lc.Listen(m.t.Context(), "tcp", "127.0.0.1:0")
	m.must("listen for the identity provider", err)
	w.issuer = "https://" + l.Addr().String()
	w.provider, err = idp.New(idp.Config{
		Issuer: w.issuer, ClientID: clientID, ClientSecret: clientSeed, SessionLifetime: -1,
	})
	m.must("make the identity provider", err)
	server := httptest.NewUnstartedServer(w.provider.Handler())
	server.Listener.Close()
	server.Listener = l
	leaf, err := w.root.Leaf("127.0.0.1", "localhost")
	m.must("issue the provider's certificate", err)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{leaf}, MinVersion: tls.VersionTLS12}
	server.StartTLS()
	m.t.Cleanup(server.Close)
}

// yaml is the configuration that the mesh starts with.
func (w *world) yaml() string {
	indented := "    " + strings.ReplaceAll(strings.TrimSpace(string(w.root.CertPEM())), "\n", "\n    ")
	return fmt.Sprintf(`
kind: Settings
name: mesh
issuer: https://%[1]s
sign_in_host: %[1]s
jwks_max_age: 1s
---
kind: IdentityProvider
name: dev
oidc:
  issuer: %[2]s
  client_id: %[3]s
  client_secret: {secret: dev-client}
  scopes: [openid, email, profile, groups]
  ca: |
%[4]s
---
kind: Route
name: echo
hosts: [%[5]s]
identity_providers: [dev]
upstreams: [{url: %[6]s}]
allow: [{authenticated: true}]
---
kind: Route
name: billing
hosts: [%[7]s]
identity_providers: [dev]
upstreams: [{url: %[6]s}]
max_staleness: 3s
allow: [{groups: [dev/finance]}]
`, SignInHost, w.issuer, clientID, indented, EchoHost, w.echo.URL, FinanceHost)
}

func (w *world) password(user string) string {
	for _, u := range w.provider.Users() {
		if u.Username == user {
			return u.Password
		}
	}
	w.mesh.t.Fatalf("the identity provider has no user %s", user)
	return ""
}

func (w *world) browser() *dev.Browser {
	return dev.NewBrowser(dev.Config{CA: w.root.Pool()})
}
