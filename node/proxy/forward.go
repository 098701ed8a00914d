package proxy

import (
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/identity"
	"github.com/iapmesh/iapmesh/node/session"
)

type exchangeKey struct{}

// exchangeOf finds the exchange that a request to an application belongs to; forward put it there.
func exchangeOf(ctx context.Context) *exchange {
	x, _ := ctx.Value(exchangeKey{}).(*exchange)
	return x
}

// forward registers the exchange among what is open, and hands it to the application.
func (x *exchange) forward() {
	onlyWebSockets(x.in)
	x.stream = streams(x.in)
	live, release := x.p.cfg.Live.Register(x.ctx, session.Entry{
		View: x.view, Session: x.session, Route: x.route.route, Stream: x.stream, Decide: x.redecide,
	})
	defer release()
	x.ctx = live
	stop := context.AfterFunc(live, x.end)
	defer func() {
		if !stop() {
			x.mu.Lock() // end may be at it: an answer must not be touched once its handler has returned
			x.over = true
			x.mu.Unlock()
		}
	}()
	if x.stream {
		x.p.metrics.streams.Inc()
		defer x.p.metrics.streams.Dec()
	}
	if x.in.ContentLength != 0 {
		// The application may answer while it still reads. HTTP/2 always can.
		x.duplex = true
		_ = http.NewResponseController(x.w.ResponseWriter).EnableFullDuplex()
	}
	defer func() { x.cut = x.lost() }()
	x.p.reverse.ServeHTTP(&x.w, x.in.WithContext(context.WithValue(live, exchangeKey{}, x)))
}

// end unblocks what waits for a client that is stuck: nothing else would end a read of its body or a write to it.
func (x *exchange) end() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.over || x.lost() == nil { // lost: or the client has gone
		return
	}
	c := http.NewResponseController(x.w.ResponseWriter)
	_ = c.SetReadDeadline(time.Now())
	if x.w.began.Load() {
		_ = c.SetWriteDeadline(time.Now())
	}
}

// keepEndOff has end, should it come later than this, leave the connection alone: what is answered from here on is our own word, and may
// be why the permission ended. It reports whether it has.
func (x *exchange) keepEndOff() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.over = true
	return x.lost() != nil
}

// dropBody has net/http close an HTTP/1 connection behind the answer, once the client has had time to read it. In full duplex it would
// take what is left of the body for the next request.
func (x *exchange) dropBody() {
	tooLarge := http.MaxBytesReader(x.w.ResponseWriter, io.NopCloser(strings.NewReader("x")), 0)
	_, _ = tooLarge.Read(make([]byte, 1)) // which is how it is told so
}

// lost says why the permission ended; nil if it has not, or if the client left or the node stops.
func (x *exchange) lost() error {
	if cause := context.Cause(x.ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// onlyWebSockets lets a request ask for no other protocol: over a connection upgraded to h2c, say, a client would send its
// application requests that nobody has decided on.
func onlyWebSockets(r *http.Request) {
	if asked := r.Header["Upgrade"]; len(asked) != 1 || !strings.EqualFold(asked[0], "websocket") {
		delete(r.Header, "Upgrade")
	}
	delete(r.Header, "Http2-Settings")
}

// streams reports whether a request asks for something without an end.
func streams(r *http.Request) bool {
	return r.Header.Get("Upgrade") != "" || strings.Contains(r.Header.Get("Accept"), "text/event-stream") ||
		strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
}

// rewrite makes the request that the application gets. ReverseProxy has removed hop-by-hop headers already, so that no
// Connection header can name ours away.
func rewrite(pr *httputil.ProxyRequest) {
	x := exchangeOf(pr.In.Context())
	out := pr.Out
	setURL(out.URL, x)
	out.Host = ""
	if x.route.route.PreserveHost {
		out.Host = x.in.Host
	}
	stripTrailer(pr.In.Trailer, x.plan.own)
	out.Trailer = pr.In.Trailer // filled in when the body has been read, and stripped again then
	if out.Body != nil {
		out.Body = &counted{ReadCloser: out.Body, n: &x.w.received, ended: func(err error) {
			x.broken.Store(!errors.Is(err, io.EOF))
			stripTrailer(pr.In.Trailer, x.plan.own)
		}}
	}

	var host, proto string
	if x.source.trusted {
		host, proto = pr.In.Header.Get("X-Forwarded-Host"), pr.In.Header.Get("X-Forwarded-Proto")
	}
	if proto == "" {
		proto = "http"
		if x.in.TLS != nil {
			proto = "https"
		}
	}
	ours := 5 + len(x.route.assertions) + len(x.route.claims)
	stripIdentity(out.Header, x.plan.own)
	h := make(http.Header, len(out.Header)+ours) // a map that grows costs more than one that is copied with room
	maps.Copy(h, out.Header)
	out.Header = h
	session.StripCookies(h)

	values := make([]string, 0, ours) // one allocation for all
	set := func(name, value string) {
		values = append(values, value)
		h[name] = values[len(values)-1 : len(values) : len(values)]
	}
	set("X-Forwarded-For", x.source.forwardedFor(pr.In))
	set("X-Forwarded-Host", cmp.Or(host, x.in.Host))
	set("X-Forwarded-Proto", proto)
	set(headerRequestID, x.id)
	set(headerRegion, x.p.cfg.Region)
	if x.session == nil {
		return
	}
	for _, name := range x.route.assertions {
		set(name, x.assertion)
	}
	for _, c := range x.route.claims {
		if value := claim(&x.session.Identity, c.claim); value != "" {
			set(c.name, value)
		}
	}
}

// setURL pins the path and the query to the bytes that came.
func setURL(u *url.URL, x *exchange) {
	to := x.upstream.url
	*u = url.URL{Scheme: to.Scheme, Host: to.Host, RawQuery: x.in.URL.RawQuery, ForceQuery: x.in.URL.ForceQuery}
	if !strings.HasPrefix(x.target.raw, "//") {
		u.Opaque = x.target.raw
		return
	}
	// Opaque would make a URL of another host of it. EscapedPath returns RawPath wherever it is a valid encoding of Path.
	u.Path, u.RawPath = x.in.URL.Path, x.target.raw
}

// claim is what a claim header says.
func claim(who *identity.Identity, name string) string {
	switch name {
	case "subject":
		return oneLine(who.Subject)
	case "email":
		return oneLine(who.Email)
	case "name":
		return oneLine(who.Name)
	case "user":
		if who.Email != "" {
			return oneLine(who.Email)
		}
		_, subject, _ := strings.Cut(who.Subject, "/")
		return oneLine(subject)
	case "groups":
		var b strings.Builder
		for _, g := range who.Groups {
			if strings.Contains(g, ",") {
				continue // it would read as two, of which one is not theirs
			}
			if b.Len() > 0 {
				b.WriteByte(',')
			}
			b.WriteString(g)
		}
		return oneLine(b.String())
	}
	return ""
}

// toUpstream sends a request over the connections of its upstream.
type toUpstream struct{}

func (toUpstream) RoundTrip(r *http.Request) (*http.Response, error) {
	l := exchangeOf(r.Context()).upstream.links
	if r.Header.Get("Upgrade") != "" {
		return l.upgrade.RoundTrip(r)
	}
	return l.usual.RoundTrip(r)
}

// answered is called with the head of the application's answer, before any of it is passed on.
func answered(res *http.Response) error {
	x := exchangeOf(res.Request.Context())
	if res.StatusCode == http.StatusSwitchingProtocols && res.Request.Header.Get("Upgrade") == "" {
		return fault.New(fault.Unavailable, "the application switched protocols unasked")
	}
	if err := x.durable(); err != nil {
		return errors.Join(errNotRecorded, err)
	}
	if x.ctx.Err() != nil {
		return context.Cause(x.ctx)
	}
	x.receipt = stripAnswer(res.Header)
	x.mark(res.Header)
	x.w.expect = res.ContentLength
	return nil
}

var errNotRecorded = fault.New(fault.Unavailable, "the decision could not be recorded")

// unanswered answers where the application did not, or where its answer may not be passed on.
func unanswered(_ http.ResponseWriter, r *http.Request, err error) {
	x := exchangeOf(r.Context())
	switch cause := x.lost(); {
	case cause != nil:
		x.refuse(endedBy(cause))
		return
	case x.ctx.Err() != nil:
		return // the client has gone
	case x.broken.Load():
		x.refuse(badRequest.because(fault.New(fault.Invalid, "body: breaks off, or is not framed as HTTP wants it")))
		return
	case errors.Is(err, errNotRecorded):
		x.p.cfg.Logger.Warn("decision not recorded", "route", x.route.route.Name, "request_id", x.id, "error", err)
		x.refuse(notRecorded)
		return
	}
	reason, a := "error", badGateway
	var timeout net.Error
	var dialing *net.OpError
	switch {
	case errors.As(err, &dialing) && dialing.Op == "dial":
		reason = "dial"
	case errors.As(err, &timeout) && timeout.Timeout():
		reason, a = "timeout", gatewayTimeout
	}
	x.p.metrics.upstream.WithLabelValues(x.route.route.Name, reason).Inc()
	x.p.cfg.Logger.Warn("application did not answer", "route", x.route.route.Name, "upstream", x.upstream.text, "request_id", x.id, "error", err)
	x.refuse(a)
}

// endedBy is the answer to a request that lost its permission before its application answered.
func endedBy(cause error) answer {
	switch fault.KindOf(cause) {
	case fault.Unauthenticated:
		return sessionEnded
	case fault.Denied:
		return denied
	case fault.NotFound:
		return notFound
	}
	return ended
}

// counted counts a request's body, and says when it was read to its end, or how that failed.
type counted struct {
	io.ReadCloser
	n     *atomic.Int64
	ended func(error) // io.EOF if all was well
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	c.n.Add(int64(n))
	if err != nil {
		c.ended(err)
	}
	return n, err
}
