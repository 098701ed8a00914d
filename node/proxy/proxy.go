// Package proxy is the request path: route → authenticate → decide → record → forward.
//
// Invariants. A request loads one view and is judged by nothing else; it takes no lock of ours and makes no call but to its
// application. What was evaluated is what is forwarded, byte for byte. No header by which an application could learn who is
// calling comes from the client, in any spelling. No decision without a record: one function makes both, and where the record
// cannot be kept the route's on_failure holds. No byte of an answer is sent before the record is on disk. What is open ends when
// the permission that opened it does.
//
// It leaves to others how a user signs in (SignIn), what counts as a session (node/session), who may do what (policy), and what
// an application can verify (node/assertion).
package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/spool"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/node/assertion"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/session"
	"github.com/iapmesh/iapmesh/node/state"
)

// Views is where requests find the newest view; state.Source is one.
type Views interface {
	Load() *state.View // nil before the first
	WaitRevision(ctx context.Context, at revision.Revision) (*state.View, error)
}

// Spool keeps records; spool.Spool is one.
type Spool interface {
	Append(*audit.Record) (spool.Ticket, error)
	Gap(route, reason string)
}

// Refusals counts what is refused before anybody was authenticated; spool.Refusals is one.
type Refusals interface {
	Count(source netip.Addr, route, reason string)
}

// SignIn signs users in; node/login has one.
type SignIn interface {
	// Begin answers a navigation without a session to the route: it sends the user to sign in, and later back to r's URL.
	Begin(w http.ResponseWriter, r *http.Request, view *state.View, route *resource.Route)
	// ServeHTTP serves what lies below /.iapmesh/, /.iapmesh/user left out, on every host of the mesh.
	http.Handler
}

// Config is a Proxy's. All but those with a default are required.
type Config struct {
	Node         string // id of this node
	Region       string
	Views        Views
	Age          func() (age time.Duration, known bool) // of the view; default: unknown, which counts as stale
	Verifier     *session.Verifier
	Live         *session.Live
	Issuer       *assertion.Issuer
	Spool        Spool
	Refusals     Refusals
	SignIn       SignIn
	Certificates Certificate           // for Run alone
	RecordWait   time.Duration         // how long a record may take to reach the disk; default 5 s
	ConnectWait  time.Duration         // how long an application may take to be connected to, and then to shake hands; default 5 s
	Logger       *slog.Logger          // default: discards
	Registerer   prometheus.Registerer // nil: no metrics
	Now          func() time.Time      // default time.Now
}

// Certificate finds the certificate that a client is shown; Certificates is one.
type Certificate interface {
	GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

// Validate reports everything that is missing, at once.
func (c *Config) Validate() error {
	var errs []error
	need := func(ok bool, field string) {
		if !ok {
			errs = append(errs, fault.New(fault.Invalid, "proxy: %s is required", field))
		}
	}
	need(c.Node != "", "Node")
	need(c.Region != "", "Region")
	need(c.Views != nil, "Views")
	need(c.Verifier != nil, "Verifier")
	need(c.Live != nil, "Live")
	need(c.Issuer != nil, "Issuer")
	need(c.Spool != nil, "Spool")
	need(c.Refusals != nil, "Refusals")
	need(c.SignIn != nil, "SignIn")
	return errors.Join(errs...)
}

// Proxy serves users. It is an http.Handler; Run serves it over HTTPS.
type Proxy struct {
	cfg      Config
	metrics  *metrics
	meter    meter
	reverse  httputil.ReverseProxy
	document http.Handler
	jwks     http.Handler
	plan     atomic.Pointer[plan]

	mu         sync.Mutex // when the configuration changes; no request that knows its plan takes it
	transports transports
}

// New makes a Proxy.
func New(cfg Config) (*Proxy, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Age == nil {
		cfg.Age = func() (time.Duration, bool) { return 0, false }
	}
	if cfg.RecordWait <= 0 {
		cfg.RecordWait = 5 * time.Second
	}
	if cfg.ConnectWait <= 0 {
		cfg.ConnectWait = 5 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	p := &Proxy{
		cfg: cfg, metrics: newMetrics(cfg.Registerer), transports: transports{},
		document: assertion.DocumentHandler(cfg.Views.Load), jwks: assertion.JWKSHandler(cfg.Views.Load),
	}
	p.reverse = httputil.ReverseProxy{
		Rewrite: rewrite, Transport: toUpstream{}, ModifyResponse: answered, ErrorHandler: unanswered,
		BufferPool: &buffers{}, ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
	return p, nil
}

// RPS is the mean number of requests per second over the last ten.
func (p *Proxy) RPS() float64 { return p.meter.rate(p.cfg.Now()) }

// ServeHTTP takes a request along the path.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{p: p, in: r, ctx: r.Context(), started: p.cfg.Now(), decision: decisionNone}
	x.w = writer{ResponseWriter: w, x: x}
	p.meter.add(x.started)
	defer x.done()
	x.serve()
}

// buffers are for copying bodies.
type buffers struct{ pool sync.Pool }

const bufferSize = 32 << 10

func (b *buffers) Get() []byte {
	if have, ok := b.pool.Get().(*[bufferSize]byte); ok {
		return have[:]
	}
	return new([bufferSize]byte)[:]
}

func (b *buffers) Put(buf []byte) {
	if cap(buf) >= bufferSize {
		b.pool.Put((*[bufferSize]byte)(buf[:bufferSize]))
	}
}
