package proxy

import (
	"net/http"
	"net/netip"
	"strings"

	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/state"
)

// source is where a request comes from.
type source struct {
	client  netip.Addr // the user's address, as far as it can be believed
	peer    netip.Addr // the other end of the connection
	text    string     // of the peer
	trusted bool       // the peer is one of Settings.trusted_proxies
}

// sourceOf reads the peer and, if it is a trusted proxy, the chain before it: from the right, the first address that is none.
func sourceOf(r *http.Request, trusted []netip.Prefix) source {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return source{} // no address: policy refuses
	}
	s := source{peer: at.Addr().Unmap().WithZone("")}
	s.client, s.text = s.peer, s.peer.String()
	if !within(trusted, s.peer) {
		return s
	}
	s.trusted = true
	lines := r.Header["X-Forwarded-For"]
	for i := len(lines) - 1; i >= 0; i-- {
		parts := strings.Split(lines[i], ",")
		for j := len(parts) - 1; j >= 0; j-- {
			addr, err := netip.ParseAddr(strings.TrimSpace(parts[j]))
			if err != nil {
				return s // what a trusted proxy did not understand either says nothing
			}
			s.client = addr.Unmap().WithZone("")
			if !within(trusted, s.client) {
				return s
			}
		}
	}
	return s
}

func within(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// clientText is the client's address, written.
func (s source) clientText() string {
	if s.client == s.peer {
		return s.text
	}
	return s.client.String()
}

// forwardedFor is the X-Forwarded-For that the application gets: the chain of a trusted proxy, or the peer alone.
func (s source) forwardedFor(r *http.Request) string {
	if prior := r.Header["X-Forwarded-For"]; s.trusted && len(prior) > 0 {
		return strings.Join(prior, ", ") + ", " + s.text
	}
	return s.text
}

// requestID takes a trusted proxy's id, if it is one, so that their log and ours meet.
func (s source) requestID(r *http.Request) string {
	if !s.trusted {
		return ""
	}
	id := r.Header.Get(headerRequestID)
	if id == "" || len(id) > 64 || strings.ContainsFunc(id, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
	}) {
		return ""
	}
	return id
}

// ClientIP is the user's address, as far as the view's settings let it be believed; invalid if there is none.
func ClientIP(r *http.Request, view *state.View) netip.Addr {
	if view == nil {
		return sourceOf(r, nil).client
	}
	return sourceOf(r, trustedBy(view.Config)).client
}

func trustedBy(c *resource.Configuration) []netip.Prefix {
	if c.Settings == nil {
		return nil
	}
	var trusted []netip.Prefix
	for _, text := range c.Settings.TrustedProxies {
		if prefix, err := netip.ParsePrefix(text); err == nil { // Settings were validated
			trusted = append(trusted, prefix)
		}
	}
	return trusted
}
