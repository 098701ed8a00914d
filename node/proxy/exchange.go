package proxy

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/spool"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/assertion"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/session"
	"github.com/iapmesh/iapmesh/node/state"
)

// exchange is one request and what is known of it so far.
type exchange struct {
	p       *Proxy
	w       writer
	in      *http.Request
	ctx     context.Context // ends with the client and with the permission
	started time.Time

	view   *state.View
	plan   *plan
	source source
	id     string // of the request
	host   string
	target target
	route  *routePlan
	key    string // the provisioning key under which this node joined

	session   *session.Session // nil: nobody
	foreign   *session.Session // of a provider that the route does not name: nobody here, but not unknown
	assertion string
	upstream  *upstream
	stream    bool
	duplex    bool // the body is read while the answer is written

	decision string
	ticket   spool.Ticket
	recorded bool // ticket is held
	synced   bool // and is on disk
	receipt  string
	cut      error       // why it was ended
	broken   atomic.Bool // the client's body could not be read to its end

	mu   sync.Mutex
	over bool // the answer is no longer ours, or our own word: end has nothing to cut; guarded by mu
}

// What metrics say of a decision.
const (
	decisionAllow = audit.Allow
	decisionDeny  = audit.Deny
	decisionNone  = "none"
)

func (x *exchange) serve() {
	view := x.p.cfg.Views.Load()
	if view == nil {
		x.id = newID()
		x.refuse(notReady)
		return
	}
	x.look(view)
	var err error
	if x.host, err = hostOf(x.in); err != nil {
		x.refuse(badRequest.because(err))
		return
	}
	switch method := x.in.Method; {
	case method == http.MethodConnect || method == http.MethodTrace || method == "TRACK" || x.in.RequestURI == "*":
		x.refuse(badMethod)
		return
	}
	if x.target, err = parseTarget(x.in.RequestURI); err != nil {
		x.refuse(badRequest.because(err))
		return
	}
	if !x.plan.knows(x.host) {
		x.refuse(unknownHost)
		return
	}
	if isOurs(x.target.path) || x.plan.signIn == x.host {
		x.serveOwn()
		return
	}
	if !x.findRoute() {
		return
	}
	if err := x.authenticate(); err != nil {
		x.unauthenticated(err)
		return
	}
	x.proceed()
}

// look takes the view, and what follows from it alone.
func (x *exchange) look(view *state.View) {
	x.view, x.plan = view, x.p.planFor(view)
	x.source = sourceOf(x.in, x.plan.trusted)
	if node := view.Keyring.Nodes[x.p.cfg.Node]; node != nil {
		x.key = node.ProvisioningKey
	}
	if x.id == "" {
		if x.id = x.source.requestID(x.in); x.id == "" {
			x.id = newID()
		}
	}
}

// findRoute matches; both readings of a path must lead to the same route.
func (x *exchange) findRoute() bool {
	r := x.view.Config.Match(x.host, x.target.path)
	if r == nil {
		x.refuse(notFound)
		return false
	}
	x.route = x.plan.routes[r]
	if form := x.target.refusedBy(r); form != "" {
		x.refuse(badRequest.because(fault.New(fault.Invalid, "path: holds %s", form)))
		return false
	}
	if x.target.literal != "" && x.view.Config.Match(x.host, x.target.literal) != r {
		x.refuse(badRequest.because(fault.New(fault.Invalid, "path: could be read as another route's")))
		return false
	}
	if !x.serves(x.view, r) {
		x.refuse(notHere)
		return false
	}
	if x.upstream = x.route.pick(); x.upstream == nil {
		x.refuse(badGateway)
		return false
	}
	return true
}

// serves reports whether this node may handle identity for a route.
func (x *exchange) serves(view *state.View, r *resource.Route) bool {
	node := view.Keyring.Nodes[x.p.cfg.Node]
	return node != nil && node.Trusted() && view.Selects(node, r)
}

// still is the view's state of the route that the exchange found by another view; nil if it is not the one to serve any more.
func (x *exchange) still(view *state.View) *resource.Route {
	r := view.Config.Match(x.host, x.target.path)
	if r == nil || r.Name != x.route.route.Name || !x.serves(view, r) || x.target.refusedBy(r) != "" ||
		x.target.literal != "" && view.Config.Match(x.host, x.target.literal) != r {
		return nil
	}
	return r
}

// authenticate verifies the session, if there is one; nobody is not an error, for a route may be open to anyone. A session
// by a key that is younger than the view waits for it, once.
func (x *exchange) authenticate() error {
	token := session.ReadCookie(x.in)
	if token == "" {
		return nil
	}
	s, err := x.p.cfg.Verifier.Verify(x.view, x.route.route, token)
	var unknown *session.UnknownKeyError
	if errors.As(err, &unknown) && unknown.Newer {
		view, awaitErr := x.p.cfg.Verifier.Await(x.ctx, x.p.cfg.Views, err)
		if awaitErr != nil {
			return awaitErr
		}
		x.look(view)
		r := x.still(view)
		if r == nil {
			return err // the mesh changed meanwhile: the client asks again
		}
		x.route = x.plan.routes[r]
		if x.upstream = x.route.pick(); x.upstream == nil {
			return err
		}
		s, err = x.p.cfg.Verifier.Verify(view, r, token)
	}
	var other *session.ProviderError
	switch {
	case err == nil:
		x.session = s
		err = s.On(x.host)
	case errors.As(err, &other):
		x.foreign = other.Session
		err = other.Session.On(x.host)
	}
	if err != nil {
		x.session, x.foreign = nil, nil
		return err
	}
	return nil
}

// unauthenticated answers a token that does not count: as if there were none, but that the cookie goes.
func (x *exchange) unauthenticated(err error) {
	if fault.Is(err, fault.Unavailable) {
		x.count("unknown_key")
		x.refuse(keyUnknown)
		return
	}
	session.ClearCookie(&x.w, x.in)
	x.proceed()
}

// proceed decides and, if that is a yes, forwards.
func (x *exchange) proceed() {
	switch err := x.authorize(); {
	case err == nil:
	case errors.Is(err, errNobody):
		x.askToSignIn()
		return
	case errors.Is(err, errStale):
		x.refuse(stale)
		return
	case errors.Is(err, errForeign):
		x.refuse(otherProvider)
		return
	case fault.Is(err, fault.Denied):
		x.refuse(denied)
		return
	default:
		x.p.cfg.Logger.Warn("decision not recorded", "route", x.route.route.Name, "request_id", x.id, "error", err)
		x.refuse(notRecorded)
		return
	}
	if x.session != nil {
		var err error
		who := assertion.Subject{Identity: &x.session.Identity, Session: x.session.ID}
		if x.assertion, err = x.p.cfg.Issuer.For(x.view, who, x.route.route, x.host); err != nil {
			x.p.cfg.Logger.Warn("assertion not issued", "route", x.route.route.Name, "request_id", x.id, "error", err)
			x.refuse(cannotAssert)
			return
		}
	}
	if x.route.route.BeforeForward() && x.durable() != nil {
		x.refuse(notRecorded)
		return
	}
	x.forward()
}

// askToSignIn sends people to sign in, and tells programs that they must.
func (x *exchange) askToSignIn() {
	x.count("unauthenticated")
	if x.route.route.API || !navigates(x.in) {
		if x.view.Keyring.Unconfirmed() != nil {
			x.refuse(restored) // signing in would not help
			return
		}
		x.refuse(signInNeeded)
		return
	}
	x.mark(x.w.Header())
	x.p.cfg.SignIn.Begin(&x.w, x.in, x.view, x.route.route)
}

func (x *exchange) count(reason string) {
	x.p.cfg.Refusals.Count(x.source.client, x.route.route.Name, reason)
}

// navigates reports whether a person follows a link or types an address, rather than a script or a program asking.
func navigates(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	h := r.Header
	if mode := h.Get("Sec-Fetch-Mode"); mode != "" && mode != "navigate" {
		return false
	}
	return h.Get("Upgrade") == "" && !strings.EqualFold(h.Get("X-Requested-With"), "XMLHttpRequest") &&
		strings.Contains(h.Get("Accept"), "text/html")
}

// done counts, and appends the outcome to a decision that has a record. Nobody waits for it.
func (x *exchange) done() {
	took := x.p.cfg.Now().Sub(x.started)
	status := x.w.status
	if status == 0 {
		status = statusClientGone
	}
	x.p.metrics.done(x, status, took)
	if !x.recorded {
		return
	}
	r := audit.Record{
		Kind: audit.KindOutcome, Time: x.started.Add(took), RequestID: x.id, Route: x.route.route.Name, DecisionID: x.ticket.ID(),
		Status: status, BytesIn: x.w.received.Load(), BytesOut: x.w.bytes.Load(), DurationMS: float64(took.Microseconds()) / 1000,
		UpstreamReceipt: x.receipt, Region: x.p.cfg.Region,
	}
	if x.cut != nil {
		r.Reason = x.cut.Error()
	}
	if _, err := x.p.cfg.Spool.Append(&r); err != nil {
		x.p.cfg.Spool.Gap(r.Route, "outcome") // the decision itself is kept
	}
}

// statusClientGone is recorded where the client left before an answer began.
const statusClientGone = 499
