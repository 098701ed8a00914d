package peer

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// DialConfig is what a Dialer needs.
type DialConfig struct {
	Identity   *Identity                                                         // nil: presents no certificate
	Trust      Trust                                                             // nil: there is never a view
	Bundle     func() *Bundle                                                    // nil, or returns nil: nobody is trusted before the first view
	NetDial    func(ctx context.Context, network, addr string) (net.Conn, error) // nil: net.Dialer
	Logger     *slog.Logger                                                      // nil: none
	Registerer prometheus.Registerer                                             // nil: none
	Clock      func() time.Time                                                  // nil: time.Now
	Timeout    time.Duration                                                     // of TCP and TLS together: 10 s
}

// Dialer connects to other nodes' mesh ports. It holds the connections' peers to the same records as a Port.
type Dialer struct {
	config  DialConfig
	metrics *dialMetrics
	tracker tracker
}

// NewDialer makes a dialer.
func NewDialer(c DialConfig) (*Dialer, error) {
	if c.NetDial == nil {
		c.NetDial = new(net.Dialer).DialContext
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	orDefault(&c.Timeout, 10*time.Second)
	m, err := newDialMetrics(c.Registerer)
	if err != nil {
		return nil, err
	}
	return &Dialer{config: c, metrics: m}, nil
}

// Dial connects to the mesh port at addr for a protocol. The server must be the node, by record; with an empty node, or for
// ProtoRaft, it must be a control node. Before the first view the bundle decides. The peer may still refuse this side's
// certificate: TLS 1.3 says so with the first read. Unavailable if the address does not answer.
func (d *Dialer) Dial(ctx context.Context, proto, node, addr string) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.config.Timeout)
	defer cancel()
	raw, err := d.config.NetDial(ctx, "tcp", addr)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "dial %s: %w", addr, err)
	}
	c, err := d.shake(ctx, raw, proto, node)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	return c, nil
}

// Recheck ends the dialed connections whose peer the current view no longer admits. Call it on each new view.
func (d *Dialer) Recheck() {
	d.tracker.recheck(func(*Conn) time.Duration { return 0 }, func(c *Conn, err error) {
		d.metrics.ended.WithLabelValues(c.proto).Inc()
		d.config.Logger.Info("peer connection ended", "proto", c.proto, "remote", c.RemoteAddr().String(), "reason", err.Error())
	})
}

// shake does the client's handshake over raw, which it closes on error.
func (d *Dialer) shake(ctx context.Context, raw net.Conn, proto, node string) (*Conn, error) {
	want := requirement{policy: AnyNode, node: node}
	if node == "" || proto == ProtoRaft {
		want.policy = ControlNode
	}
	c, err := handshake(ctx, raw, proto, d.config.Identity, d.check(want))
	if err != nil {
		d.metrics.dials.WithLabelValues(proto, result(err)).Inc()
		return nil, err
	}
	if err := d.tracker.add(c, func() {}); err != nil {
		d.metrics.dials.WithLabelValues(proto, result(err)).Inc()
		return nil, err
	}
	d.metrics.dials.WithLabelValues(proto, "ok").Inc()
	return c, nil
}

func (d *Dialer) check(want requirement) check {
	return func(cred *credential) (Info, error) {
		if d.config.Trust != nil {
			if view := d.config.Trust.Snapshot(); view != nil {
				return byRecord(view, cred, want, d.config.Clock())
			}
		}
		var bundle *Bundle
		if d.config.Bundle != nil {
			bundle = d.config.Bundle()
		}
		if bundle == nil {
			return Info{}, fault.New(fault.Unavailable, "verify server: neither a view of the mesh nor a trust bundle")
		}
		return Info{}, bundle.verify(cred, want.node, d.config.Clock())
	}
}

// handshake does the client's half, verified by verify alone, and closes raw on error.
func handshake(ctx context.Context, raw net.Conn, proto string, id *Identity, verify check) (*Conn, error) {
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{proto},
		// The name of a host says nothing about a node; VerifyConnection below, which runs in every handshake, decides.
		InsecureSkipVerify: true, //nolint:gosec // verified by verify, below
		VerifyConnection:   verify.verifyConnection,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert := id.Certificate(); cert != nil {
				return cert, nil
			}
			return new(tls.Certificate), nil
		},
	}
	tc := tls.Client(raw, config)
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, asUnavailable(err)
	}
	cs := tc.ConnectionState()
	if cs.NegotiatedProtocol != proto {
		_ = raw.Close()
		return nil, fault.New(fault.Unavailable, "handshake: the server does not speak %s; does a load balancer end TLS in between?", proto)
	}
	cred, err := read(cs)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return newConn(tc, proto, cred, verify), nil
}
