package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// transportKey names connections that may be shared: those that trust the same roots and wait equally long.
type transportKey struct {
	ca      string // PEM; empty: the system's roots
	timeout time.Duration
}

// links are the connections of one key. Protocols that begin with Upgrade exist in HTTP/1.1 alone.
type links struct {
	usual   *http.Transport
	upgrade *http.Transport
}

// transports keeps connections across configurations; guarded by Proxy.mu.
type transports map[transportKey]*links

func (t transports) get(key transportKey, connectWait time.Duration) *links {
	if have := t[key]; have != nil {
		return have
	}
	l := &links{usual: newTransport(key, connectWait, true), upgrade: newTransport(key, connectWait, false)}
	t[key] = l
	return l
}

// keep lets go of connections that the plan does not use; requests under way go on.
func (t transports) keep(n *plan) {
	used := map[*links]bool{}
	for _, r := range n.routes {
		for _, u := range r.upstreams {
			used[u.links] = true
		}
	}
	for key, l := range t {
		if !used[l] {
			l.close()
			delete(t, key)
		}
	}
}

func (l *links) close() {
	l.usual.CloseIdleConnections()
	l.upgrade.CloseIdleConnections()
}

func newTransport(key transportKey, connectWait time.Duration, h2 bool) *http.Transport {
	t := &http.Transport{
		DialContext:            dialer{net.Dialer{Timeout: connectWait, KeepAlive: 30 * time.Second}}.dial,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(64)},
		TLSHandshakeTimeout:    connectWait,
		MaxIdleConnsPerHost:    512,
		IdleConnTimeout:        90 * time.Second,
		ResponseHeaderTimeout:  key.timeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 256 << 10,
		DisableCompression:     true, // what the application sent is what the user gets
		Protocols:              new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true)
	t.Protocols.SetHTTP2(h2)
	if key.ca != "" {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(key.ca)) // one that holds none trusts nobody
		t.TLSClientConfig.RootCAs = roots
	}
	return t
}

// dialer connects to applications. Names below .localhost are this machine (RFC 6761), whatever the resolver knows.
type dialer struct{ net.Dialer }

func (d dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	if name := strings.TrimSuffix(strings.ToLower(host), "."); name == "localhost" || strings.HasSuffix(name, ".localhost") {
		c, err := d.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
		if err == nil || ctx.Err() != nil {
			return c, err
		}
		return d.DialContext(ctx, network, net.JoinHostPort("::1", port))
	}
	return d.DialContext(ctx, network, address)
}
