package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// The bounds of connections. There is none on how long a request or an answer may take: streams are what applications make them.
const (
	headWait  = 10 * time.Second
	idleWait  = 120 * time.Second
	maxHead   = 64 << 10
	stopGrace = 5 * time.Second
)

// Run serves HTTPS (TLS 1.2 or later; HTTP/1.1 and HTTP/2) on the listener until ctx ends. Then it takes no more requests, gives
// those under way a few seconds, and cuts what is left.
func (p *Proxy) Run(ctx context.Context, l net.Listener) error {
	if p.cfg.Certificates == nil {
		return fault.New(fault.Invalid, "proxy: Certificates are required to serve")
	}
	base, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	s := &http.Server{
		Handler:           p,
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: p.cfg.Certificates.GetCertificate, NextProtos: []string{"h2", "http/1.1"}},
		ReadHeaderTimeout: headWait,
		IdleTimeout:       idleWait,

		DisableGeneralOptionsHandler: true, // OPTIONS * is refused like any other target that is no path
		MaxHeaderBytes:               maxHead,
		ErrorLog:                     slog.NewLogLogger(p.cfg.Logger.Handler(), slog.LevelDebug), // handshakes that scanners break off, mostly
		BaseContext:                  func(net.Listener) context.Context { return base },
	}
	served := make(chan error, 1)
	go func() { served <- s.ServeTLS(l, "", "") }()
	select {
	case err := <-served:
		return fmt.Errorf("serve users on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	grace, done := context.WithTimeout(base, stopGrace)
	defer done()
	err := s.Shutdown(grace)
	cut() // hijacked connections too: a server does not know them any more
	if err != nil {
		s.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve users on %s: %w", l.Addr(), err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.transports {
		l.close()
	}
	return nil
}
