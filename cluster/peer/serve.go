package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// serve takes one connection from its first byte to the listener of its protocol.
func (p *Port) serve(ctx context.Context, raw net.Conn, leave func()) {
	defer leave()
	began := time.Now()
	conn, pr, err := p.shake(ctx, raw)
	if err != nil {
		_ = raw.Close()
		p.metrics.handshakes.WithLabelValues(protoLabel(pr), result(err)).Inc()
		p.config.Logger.Debug("handshake refused", "proto", protoLabel(pr), "remote", raw.RemoteAddr().String(), "reason", err.Error())
		return
	}
	p.metrics.handshakes.WithLabelValues(pr.name, "ok").Inc()
	p.metrics.duration.Observe(time.Since(began).Seconds())
	leave()
	p.deliver(conn, pr)
}

// shake does the TLS handshake; the protocol is nil if none was found.
func (p *Port) shake(ctx context.Context, raw net.Conn) (*tls.Conn, *proto, error) {
	ctx, cancel := context.WithTimeout(ctx, p.config.HandshakeTimeout)
	defer cancel()
	var found *proto
	conn := tls.Server(raw, &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			found = p.choose(hello.SupportedProtos)
			if found != nil {
				return found.configFor(hello.Conn), nil
			}
			if len(hello.SupportedProtos) == 0 {
				return nil, fault.New(fault.Invalid, "the client named no protocol (ALPN)")
			}
			// A protocol that nobody offers makes the stack answer with the alert that RFC 7301 wants: no_application_protocol.
			return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"iapmesh-none"},
				GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return p.certificate() }}, nil
		},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, found, err
	}
	if found == nil || conn.ConnectionState().NegotiatedProtocol != found.name {
		return nil, nil, fault.New(fault.Invalid, "no protocol was negotiated")
	}
	return conn, found, nil
}

// choose picks the first registered protocol of the client's list.
func (p *Port) choose(offered []string) *proto {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range offered {
		if pr := p.protos[name]; pr != nil {
			return pr
		}
	}
	return nil
}

// deliver bounds, tracks and hands over a connection whose handshake is done.
func (p *Port) deliver(tc *tls.Conn, pr *proto) {
	open := p.metrics.open.WithLabelValues(pr.name)
	var cred *credential
	if pr.policy != Nobody {
		var err error
		if cred, err = read(tc.ConnectionState()); err != nil {
			_ = tc.NetConn().Close()
			return
		}
		cred.inbound, cred.source = true, addrOf(tc)
	}
	var bounded *gate
	check := pr.check
	switch pr.policy {
	case Nobody:
		bounded = &p.anonymous
	case KnownNode:
		// One that is put out while its connection is open comes back on a bounded one.
		trusted := p.check(AnyNode)
		if _, err := trusted(cred); err == nil {
			check = trusted
		} else {
			bounded = &p.putOut
		}
	}
	c := newConn(tc, pr.name, cred, check)
	release, ok := p.admit(c, bounded)
	if !ok {
		p.metrics.evicted.WithLabelValues("connections").Inc()
		p.config.Logger.Warn("connection refused: too many are open", "proto", pr.name, "remote", tc.RemoteAddr().String())
		_ = tc.NetConn().Close()
		return
	}
	open.Inc()
	if err := p.tracker.add(c, func() { open.Dec(); release() }); err != nil {
		return
	}
	select {
	case pr.ready <- c:
	default: // nobody accepts: waiting here would only pile them up
		c.sever()
		return
	}
	select {
	case <-pr.closed: // while it was delivered
		pr.drain()
	default:
	}
}

// admit applies the bounds on open connections. Those of trusted peers are refused past the bound; others pass a gate: they give way,
// oldest first, and end after a while anyway.
func (p *Port) admit(c *Conn, bounded *gate) (release func(), ok bool) {
	raw := c.NetConn()
	if bounded != nil {
		leave, evicted := bounded.enter(raw)
		if evicted {
			p.metrics.evicted.WithLabelValues("anonymous").Inc()
		}
		timer := time.AfterFunc(p.config.AnonymousLifetime, func() { _ = raw.Close() })
		return func() { timer.Stop(); leave() }, true
	}
	source := sourceOf(raw)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.perSource[source] >= p.config.MaxConnsPerSource || p.verified >= p.config.MaxConns {
		return nil, false
	}
	p.perSource[source]++
	p.verified++
	return sync.OnceFunc(func() { p.forget(source) }), true
}

func (p *Port) forget(source netip.Prefix) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.verified--
	if p.perSource[source]--; p.perSource[source] <= 0 {
		delete(p.perSource, source)
	}
}

func protoLabel(pr *proto) string {
	if pr == nil {
		return "none"
	}
	return pr.name
}

// result is a refused handshake's label: the kind of our own refusals, failed where TLS or the network gave up.
func result(err error) string {
	var own *fault.Error
	if errors.As(err, &own) {
		return own.Kind.String()
	}
	return "failed"
}
