package kms

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// maxAnswer bounds the body of one answer: a wrap, a token or an error fits many times over.
const maxAnswer = 1 << 20

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// client is an HTTP client for one keeper: it ends with ctx, whatever context a driver gives its requests, reads bounded answers,
// follows no redirect, and speaks plain HTTP to this machine and its cloud's metadata service alone.
func (c Config) client(ctx context.Context, base http.RoundTripper) (client *http.Client, idle func() error) {
	if c.Transport != nil {
		base = c.Transport
	}
	if base == nil {
		own, ok := http.DefaultTransport.(*http.Transport)
		if !ok {
			own = &http.Transport{Proxy: http.ProxyFromEnvironment}
		}
		base = own.Clone()
	}
	client = &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: roundTripper(func(req *http.Request) (*http.Response, error) {
			if req.URL.Scheme != "https" && !onMachine(req.URL.Hostname()) {
				return nil, fault.New(fault.Invalid, "%s://%s: a data key goes to another machine by https alone", req.URL.Scheme, req.URL.Host)
			}
			reqCtx, cancel := context.WithCancelCause(req.Context())
			stop := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
			end := func() { stop(); cancel(nil) }
			resp, err := base.RoundTrip(req.WithContext(reqCtx))
			if err != nil {
				end()
				return nil, err
			}
			resp.Body = &boundedBody{http.MaxBytesReader(nil, resp.Body, maxAnswer), end}
			return resp, nil
		}),
	}
	return client, func() error {
		if closer, ok := base.(interface{ CloseIdleConnections() }); ok && c.Transport == nil {
			closer.CloseIdleConnections()
		}
		return nil
	}
}

type boundedBody struct {
	io.ReadCloser
	end func()
}

func (b *boundedBody) Close() error {
	defer b.end()
	return b.ReadCloser.Close()
}

// onMachine reports whether a host is this machine, or answers only to it: link-local addresses, and the one that AWS uses over IPv6.
func onMachine(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	ip = ip.Unmap()
	return ip.IsLoopback() || ip.IsLinkLocalUnicast() || metadataV6().Contains(net.IP(ip.AsSlice()))
}

func metadataV6() *net.IPNet {
	return &net.IPNet{IP: net.ParseIP("fd00:ec2::"), Mask: net.CIDRMask(32, 128)}
}
