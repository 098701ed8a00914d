package mesh

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/iapmesh/iapmesh/internal/dev"
	"github.com/iapmesh/iapmesh/internal/dev/app"
	"github.com/iapmesh/iapmesh/internal/dev/idp"
	"github.com/iapmesh/iapmesh/internal/fault"
)

const (
	providerName = "dev" // in mesh.yaml
	clientID     = "iapmesh"
	secretName   = "dev-client"
	callbackPath = "/.iapmesh/callback"
	jwksPath     = "/.well-known/iapmesh/jwks.json"
)

// services are what runs in this process: the provider and the applications.
type services struct {
	users   []dev.User
	failed  chan error // a listener that broke
	servers []*http.Server
	running sync.WaitGroup
}

func (m *Mesh) issuer() string { return fmt.Sprintf("https://%s:%d", SignInHost, m.ports.proxy(0)) }
func (m *Mesh) idpURL() string { return "https://" + local(m.ports.idp()) }

func (m *Mesh) startServices() (*services, error) {
	s := &services{failed: make(chan error, len(m.ports.all()))}
	provider, err := m.newProvider()
	if err != nil {
		return nil, err
	}
	s.users = provider.Users()
	leaf, err := tls.LoadX509KeyPair(m.leafCert, m.leafKey)
	if err != nil {
		return nil, fmt.Errorf("provider's certificate: %w", err)
	}
	err = s.serve(m.ports.idp(), provider.Handler(), &tls.Config{Certificates: []tls.Certificate{leaf}, MinVersion: tls.VersionTLS12}, m.logger)
	for i, region := range regions {
		if err == nil {
			err = s.serve(m.ports.echo(i), app.NewEcho(m.appConfig("echo", EchoHost, region)), nil, m.logger)
		}
	}
	if err == nil {
		err = s.serve(m.ports.billing(), app.NewBilling(m.appConfig("billing", BillingHost, "")), nil, m.logger)
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// newProvider knows a redirect URI for each region's port, and for those of nodes that are added.
func (m *Mesh) newProvider() (*idp.Provider, error) {
	c := idp.Config{Issuer: m.idpURL(), ClientID: clientID, ClientSecret: m.kept.ClientSecret, Dir: m.dir, Logger: m.logger}
	for i := range perKind {
		origin := fmt.Sprintf("https://%s:%d", SignInHost, m.ports.proxy(i))
		c.RedirectURIs = append(c.RedirectURIs, origin+callbackPath)
		c.PostLogoutRedirectURIs = append(c.PostLogoutRedirectURIs, origin+"/.iapmesh/sign_out/complete")
	}
	return idp.New(c)
}

// appConfig trusts what any region's JWKS holds: the application goes on while a region is gone.
func (m *Mesh) appConfig(name, host, region string) app.Config {
	c := app.Config{
		Name: name, Issuer: m.issuer(), Audience: host, Region: region, Logger: m.logger,
		Client: dev.Client(dev.Config{CA: m.authority.Pool()}), // the application bounds each fetch
	}
	for i := range regions {
		c.JWKS = append(c.JWKS, fmt.Sprintf("https://%s:%d%s", host, m.ports.proxy(i), jwksPath))
	}
	return c
}

func (s *services) serve(port int, h http.Handler, secure *tls.Config, logger *slog.Logger) error {
	l, err := net.Listen("tcp", local(port))
	if err != nil {
		return fault.New(fault.Unavailable, "port %d: %w", port, err)
	}
	server := &http.Server{
		Handler: h, TLSConfig: secure, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	s.servers = append(s.servers, server)
	s.running.Go(func() {
		serve := server.Serve
		if secure != nil {
			serve = func(l net.Listener) error { return server.ServeTLS(l, "", "") }
		}
		if err := serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.failed <- fmt.Errorf("serve port %d: %w", port, err)
		}
	})
	return nil
}

func (s *services) stop() {
	for _, server := range s.servers {
		_ = server.Close() // WebSockets and event streams included; the process ends
	}
	s.running.Wait()
}
