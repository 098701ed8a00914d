package peer

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// Config is what a Port needs. Zero bounds take the defaults below.
type Config struct {
	Listener   net.Listener // owned by the Port from Run on
	Identity   *Identity
	Trust      Trust
	Bundle     func() *Bundle        // nil, or returns nil: nobody is admitted before the first view; otherwise control nodes are, by chain
	Logger     *slog.Logger          // nil: none
	Registerer prometheus.Registerer // nil: none
	Clock      func() time.Time      // nil: time.Now

	HandshakeTimeout       time.Duration // 10 s
	MaxHandshakes          int           // in flight: 512
	MaxHandshakesPerSource int           // in flight, from one address: 64
	MaxConns               int           // of trusted peers: 8192
	MaxConnsPerSource      int           // of trusted peers at one address: 1024
	MaxAnonymous           int           // of Nobody protocols; as many again of nodes that were put out: 256
	MaxAnonymousPerSource  int           // the same, from one address: 64
	AnonymousLifetime      time.Duration // then the connection ends: 1 min

	// Linger is how long Recheck lets connections of a protocol be, so that a peer can still be told over them that it is out; 0: not at
	// all. Only for protocols that ask Conn.Peer, which refuses at once, at each call.
	Linger map[string]time.Duration
}

func (c Config) withDefaults() Config {
	orDefault(&c.HandshakeTimeout, 10*time.Second)
	orDefault(&c.MaxHandshakes, 512)
	orDefault(&c.MaxHandshakesPerSource, 64)
	orDefault(&c.MaxConns, 8192)
	orDefault(&c.MaxConnsPerSource, 1024)
	orDefault(&c.MaxAnonymous, 256)
	orDefault(&c.MaxAnonymousPerSource, 64)
	orDefault(&c.AnonymousLifetime, time.Minute)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	return c
}

func orDefault[T int | time.Duration](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

// expiryCheck is how often Run looks for administrators whose credential has expired meanwhile.
const expiryCheck = 30 * time.Second

// Port is the mesh port: one listener, told apart by ALPN into one net.Listener for each protocol.
type Port struct {
	config    Config
	metrics   *metrics
	handshake gate
	anonymous gate
	putOut    gate // nodes that were put out, apart from those who have proved nothing
	tracker   tracker

	mu        sync.Mutex
	protos    map[string]*proto
	verified  int // open connections of verified peers
	perSource map[netip.Prefix]int
}

// proto is one registered protocol.
type proto struct {
	name   string
	policy Policy
	config *tls.Config
	check  check
	ready  chan *Conn
	closed chan struct{}
	close  func() // idempotent
	addr   net.Addr
}

// NewPort makes a port. Register protocols by Listen, then Run it.
func NewPort(c Config) (*Port, error) {
	if c.Listener == nil || c.Identity == nil || c.Trust == nil {
		return nil, fault.New(fault.Invalid, "mesh port: a listener, an identity and a trust are required")
	}
	c = c.withDefaults()
	m, err := newMetrics(c.Registerer)
	if err != nil {
		return nil, err
	}
	return &Port{
		config:    c,
		metrics:   m,
		handshake: gate{max: c.MaxHandshakes, perSource: c.MaxHandshakesPerSource},
		anonymous: gate{max: c.MaxAnonymous, perSource: c.MaxAnonymousPerSource},
		putOut:    gate{max: c.MaxAnonymous, perSource: c.MaxAnonymousPerSource},
		protos:    make(map[string]*proto),
		perSource: make(map[netip.Prefix]int),
	}, nil
}

// Addr is where the port listens.
func (p *Port) Addr() net.Addr { return p.config.Listener.Addr() }

// Listen registers a protocol, an ALPN name, for the peers that policy admits. The connections that its Accept returns are
// *Conn, handshake done. Closing the listener refuses the protocol from then on. Invalid if the name is taken or the policy
// admits nobody.
func (p *Port) Listen(name string, policy Policy) (net.Listener, error) {
	if name == "" || !policy.valid() {
		return nil, fault.New(fault.Invalid, "mesh port: protocol %q with policy %q", name, policy)
	}
	pr := &proto{name: name, policy: policy, ready: make(chan *Conn, 128), closed: make(chan struct{}), addr: p.Addr()}
	pr.check = p.check(policy)
	pr.config = &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{name},
		SessionTicketsDisabled: true, // a resumed session would skip the certificate
		ClientAuth:             tls.NoClientCert,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return p.certificate() },
	}
	if policy != Nobody {
		pr.config.ClientAuth = tls.RequireAnyClientCert // proof of possession; whose key it is, the record says
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.protos[name] != nil {
		return nil, fault.New(fault.Invalid, "mesh port: protocol %q is registered already", name)
	}
	p.protos[name] = pr
	pr.close = sync.OnceFunc(func() {
		p.mu.Lock()
		delete(p.protos, name)
		p.mu.Unlock()
		close(pr.closed)
		pr.drain()
	})
	return pr, nil
}

// Accept returns the next verified connection, a *Conn; net.ErrClosed once the listener or the port is closed.
func (pr *proto) Accept() (net.Conn, error) {
	select {
	case c := <-pr.ready:
		return c, nil
	case <-pr.closed:
		return nil, net.ErrClosed
	}
}

// drain ends what was delivered and will not be accepted any more.
func (pr *proto) drain() {
	for {
		select {
		case c := <-pr.ready:
			c.sever()
		default:
			return
		}
	}
}

func (pr *proto) Close() error   { pr.close(); return nil }
func (pr *proto) Addr() net.Addr { return pr.addr }

func (p *Port) certificate() (*tls.Certificate, error) {
	if cert := p.config.Identity.Certificate(); cert != nil {
		return cert, nil
	}
	return nil, fault.New(fault.Unavailable, "mesh port: this node has no certificate yet")
}

func (p *Port) check(policy Policy) check {
	if policy == Nobody {
		return func(*credential) (Info, error) { return Info{}, nil }
	}
	return func(cred *credential) (Info, error) {
		view := p.config.Trust.Snapshot()
		if view == nil && policy == ControlNode && p.config.Bundle != nil {
			// A control node that has just joined gets its first view from those who are there already: over this port.
			if bundle := p.config.Bundle(); bundle != nil {
				return Info{}, bundle.verify(cred, "", p.config.Clock())
			}
		}
		return byRecord(view, cred, requirement{policy: policy, self: p.ownKey()}, p.config.Clock())
	}
}

func (p *Port) ownKey() ownKey {
	if cert := p.config.Identity.Certificate(); cert != nil {
		pub, _ := cert.Leaf.PublicKey.(ed25519.PublicKey) // Identity takes no other
		return ownKey(pub)
	}
	return nil
}

// configFor is the protocol's configuration for one connection, whose peer is held against from where it came.
func (pr *proto) configFor(conn net.Conn) *tls.Config {
	if pr.policy == Nobody {
		return pr.config
	}
	c, source := pr.config.Clone(), addrOf(conn)
	c.VerifyConnection = func(cs tls.ConnectionState) error { return pr.check.verifyFrom(source, cs) }
	return c
}

// Recheck ends the connections whose peer the current view no longer admits. Call it on each new view.
func (p *Port) Recheck() {
	p.tracker.recheck(func(c *Conn) time.Duration { return p.config.Linger[c.proto] }, func(c *Conn, err error) {
		p.metrics.ended.WithLabelValues(c.proto).Inc()
		p.config.Logger.Info("peer connection ended", "proto", c.proto, "remote", c.RemoteAddr().String(), "reason", err.Error())
	})
}

// Run accepts until ctx ends; then it closes the port and every protocol's listener. Connections that were accepted belong to
// whoever accepted them, and go on.
func (p *Port) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = p.config.Listener.Close() })
	defer func() {
		stop()
		_ = p.config.Listener.Close()
		cancel() // ends the handshakes in flight
		wg.Wait()
		p.closeAll()
	}()
	wg.Go(func() { p.watchExpiry(ctx) })
	pause := 5 * time.Millisecond
	for {
		raw, err := p.config.Listener.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = raw.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fault.New(fault.Internal, "mesh port: accept: %w", err)
		case err != nil: // out of descriptors, most likely: wait for some to be freed
			p.config.Logger.Warn("mesh port cannot accept", "error", err.Error())
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = 5 * time.Millisecond
		// In the order of arrival: the one that gives way must be the oldest.
		leave, evicted := p.handshake.enter(raw)
		if evicted {
			p.metrics.evicted.WithLabelValues("handshake").Inc()
		}
		wg.Go(func() { p.serve(ctx, raw, leave) })
	}
}

func (p *Port) watchExpiry(ctx context.Context) {
	tick := time.NewTicker(expiryCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			p.Recheck()
		}
	}
}

func (p *Port) closeAll() {
	p.mu.Lock()
	all := make([]*proto, 0, len(p.protos))
	for _, pr := range p.protos {
		all = append(all, pr)
	}
	p.mu.Unlock()
	for _, pr := range all {
		pr.close()
	}
}
