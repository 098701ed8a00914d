// Package dev is what a development mesh and the tests stand on beside the mesh itself: here, an HTTP client that finds
// *.localhost and a browser that signs in; in its subpackages the certificate authority (ca), the OpenID provider (idp), the
// applications (app) and their pages (page).
//
// All of it is real: certificates are verified, tokens are checked, cookies follow a browser's rules. None of it is part of a
// production node.
package dev

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/dev/idp"
)

// User is a user of the development provider, as dev.json lists it.
type User = idp.User

// Config says how a client connects. The zero value trusts the system's roots and keeps no cookies.
type Config struct {
	CA  *x509.CertPool // trusted roots; the system's if nil
	Jar bool           // keep cookies, by a browser's rules
	// Dial replaces the TCP dialer; it gets *.localhost resolved already. For networks that a test cuts.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Hosts steers host names without port (beyond *.localhost) to an IP address, as DNS would.
	Hosts map[string]string
	// Timeout bounds a whole exchange, body included; none if zero, as streams need.
	Timeout time.Duration
	// NoHTTP2 keeps to HTTP/1.1, as WebSocket clients need.
	NoHTTP2 bool
	// NoRedirects returns the first answer, whatever it is.
	NoRedirects bool
}

// Client makes an HTTP client for a development mesh. Go, unlike browsers (RFC 6761 §6.3), asks DNS for names under
// localhost; this client connects to 127.0.0.1.
func Client(c Config) *http.Client {
	dial := c.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dial(ctx, network, c.resolve(addr))
		},
		TLSClientConfig:     &tls.Config{RootCAs: c.CA, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:   !c.NoHTTP2,
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     30 * time.Second,
	}
	client := &http.Client{Transport: transport, Timeout: c.Timeout}
	if c.Jar {
		client.Jar = NewJar()
	}
	if c.NoRedirects {
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	return client
}

func (c Config) resolve(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if ip, ok := c.Hosts[host]; ok {
		return net.JoinHostPort(ip, port)
	}
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return addr
}
