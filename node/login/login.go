// Package login signs users in and out. A user who lacks a session on some host is sent to the one sign-in host, from there, if
// need be, to an identity provider (OpenID Connect, authorization code with PKCE), and comes back with a ticket that the first
// host changes into a session of its own:
//
//	billing.example.com   Begin: sets a state cookie, 302 →
//	auth.example.com      /.iapmesh/sign_in    has a session: → ticket; otherwise an attempt cookie, 302 →
//	the identity provider                      302 →
//	auth.example.com      /.iapmesh/callback   verifies, sets its own session, 302 with a ticket →
//	billing.example.com   /.iapmesh/handoff    verifies ticket and state, sets the session, 302 → what was asked for
//
// Invariants. Any node of any region can take any step: what must be remembered in between travels with the browser, encrypted
// under keys that the proxies alone can derive. Nobody is ever sent anywhere but to a host of a route that users sign in to, the
// sign-in host, or an identity provider of the configuration. A ticket opens one host, once, in the browser that asked for it. A
// sign-in that cannot be recorded does not happen. A node never vouches for more than the node that it believes could: tickets
// and sessions of a node with a narrow route selector do not become sessions of one with a wide one.
//
// It leaves to others who may see what (policy), what a session is (node/session), and when a sign-in is called for (node/proxy).
package login

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/session"
	"github.com/iapmesh/iapmesh/node/state"
)

// Prefix begins the path of everything that Login serves, on every host.
const Prefix = "/.iapmesh/"

const (
	pathSignIn   = Prefix + "sign_in"
	pathCallback = Prefix + "callback"
	pathHandoff  = Prefix + "handoff"
	pathSignOut  = Prefix + "sign_out"
	pathComplete = Prefix + "sign_out/complete"
	pathRoutes   = Prefix + "routes"
)

// views is what Login follows; state.Source is one.
type views interface {
	Load() *state.View
	WaitRevision(ctx context.Context, at revision.Revision) (*state.View, error)
}

// secrets opens what the audience of the proxies holds; seal.Member is one.
type secrets interface {
	Open(s *keyring.Snapshot, audience, name string) ([]byte, error)
}

// trail is where sign-ins are recorded. Record returns once the record is durable.
type trail interface {
	Record(ctx context.Context, r *audit.Record) error
}

// ender ends a session in every region: MeshService.EndSession at the leader.
type ender interface {
	EndSession(ctx context.Context, sessionID, subject string) error
}

// Config is what Login stands on. All is required but for what says otherwise.
type Config struct {
	Node     string // id of this node
	Region   string
	Views    views
	Minter   *session.Minter
	Verifier *session.Verifier
	Secrets  secrets
	Trail    trail
	Sessions ender

	ClientIP   func(*http.Request, *state.View) netip.Addr // default: of the connection
	Age        func() (time.Duration, bool)                // of the view, for the portal's decisions; nil: unknown
	Logger     *slog.Logger                                // default: none
	Registerer prometheus.Registerer                       // nil: no metrics
	Now        func() time.Time                            // default time.Now
}

// Login serves the paths under Prefix. It is safe for concurrent use.
type Login struct {
	cfg       Config
	keys      keyCache
	providers *providers
	seen      *seenSet
	metrics   *metrics
}

// New makes a Login.
func New(cfg Config) (*Login, error) {
	if cfg.Node == "" || cfg.Region == "" || cfg.Views == nil || cfg.Minter == nil || cfg.Verifier == nil || cfg.Secrets == nil ||
		cfg.Trail == nil || cfg.Sessions == nil {
		return nil, fault.New(fault.Internal, "sign-in: want a node, its region, views, minter, verifier, secrets, trail and sessions")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.ClientIP == nil {
		cfg.ClientIP = peerAddress
	}
	if cfg.Age == nil {
		cfg.Age = func() (time.Duration, bool) { return 0, false }
	}
	return &Login{
		cfg: cfg, providers: newProviders(cfg.Now), seen: newSeenSet(maxSeen), metrics: newMetrics(cfg.Registerer),
	}, nil
}

func peerAddress(r *http.Request, _ *state.View) netip.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}

// visit is one request, by one view.
type visit struct {
	*Login
	w        http.ResponseWriter
	r        *http.Request
	view     *state.View
	settings *resource.Settings
	host     string // lower case, no port
	port     string // with its colon; empty for the default
}

// visit looks at the request; it answers, and returns nil, if nothing can be done with it.
func (l *Login) visit(w http.ResponseWriter, r *http.Request, view *state.View) *visit {
	v := &visit{Login: l, w: w, r: r, view: view}
	var ok bool
	if v.host, v.port, ok = splitHost(r.Host); !ok {
		v.fail(failure{kind: fault.Invalid, title: "This address cannot be served", text: "The request names no valid host."})
		return nil
	}
	if view == nil || view.Config.Settings == nil || view.Config.Settings.SignInHost == "" {
		v.fail(failure{
			kind: fault.Unavailable, title: "Sign-in is not ready", text: "This node has no settings for sign-in yet. Try again in a moment.",
		})
		return nil
	}
	v.settings = view.Config.Settings
	return v
}

// Begin sends the user of a route to sign in, and back to this request's address afterwards. It always answers.
func (l *Login) Begin(w http.ResponseWriter, r *http.Request, view *state.View, route *resource.Route) {
	if v := l.visit(w, r, view); v != nil {
		v.begin(targetOf(v.host, r.URL, view, route))
	}
}

// ServeHTTP serves the paths under Prefix on every host, and all of the sign-in host, where nothing else is.
func (l *Login) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v := l.visit(w, r, l.cfg.Views.Load())
	if v == nil {
		return
	}
	get := r.Method == http.MethodGet || r.Method == http.MethodHead
	post := r.Method == http.MethodPost
	atSignIn := v.host == v.settings.SignInHost
	switch path := r.URL.Path; {
	case path == pathSignOut && post:
		v.signOut()
	case !get:
		w.Header().Set("Allow", "GET, HEAD")
		v.fail(failure{status: http.StatusMethodNotAllowed, title: "This page takes no " + plain(r.Method, 16) + " requests"})
	case path == pathSignOut:
		v.confirmSignOut()
	case path == pathSignIn && atSignIn:
		v.signIn()
	case path == pathSignIn:
		v.signInHere()
	case path == pathHandoff:
		v.redeem()
	case path == pathRoutes && atSignIn:
		v.portal()
	case path == pathCallback && atSignIn:
		v.callback()
	case path == pathComplete && atSignIn:
		v.signedOut()
	case path == pathRoutes, path == Prefix, path == strings.TrimSuffix(Prefix, "/"), path == "/" && atSignIn:
		v.redirect("portal", v.signInURL(pathRoutes, nil))
	default:
		v.fail(failure{kind: fault.NotFound, title: "There is no such page", links: v.portalLink()})
	}
}
