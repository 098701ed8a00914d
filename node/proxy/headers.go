package proxy

import (
	"net/http"
	"strings"

	"github.com/iapmesh/iapmesh/node/session"
)

// identityPrefixes begin the folded names of headers by which some proxy tells an application who is calling, from where, or
// for which URL; by their first byte. No client may send one. They never change.
var identityPrefixes = map[byte][]string{
	'c': {"cf-access-"},
	'h': {"http-remote-"},
	'i': {"iv-"},
	'o': {"oidc-"},
	'r': {"remote-"},
	's': {"shib-", "sm-user", "sm-universalid", "sm-serversession", "ssl-client-"},
	't': {"tailscale-user-"},
	'w': {"wl-proxy-"},
	'x': {
		"x-iapmesh-", "x-forwarded-", "x-auth-request-", "x-remote-", "x-goog-iap-", "x-goog-authenticated-user-", "x-pomerium-",
		"x-webauth-", "x-authentik-", "x-vouch-", "x-amzn-oidc-", "x-ms-client-principal", "x-original-", "x-envoy-", "x-appengine-",
		"x-ssl-client-", "x-client-cert", "x-authenticated-", "x-consumer-", "x-credential-", "x-jwt-claim-", "x-shib-", "x-sso-",
	},
}

// identityHeaders are such names too, or would make the application read another request than the one that was decided on.
var identityHeaders = map[string]bool{
	"proxy": true, "forwarded": true, "x-request-id": true, "x-forwarded": true, "x-real-ip": true, "x-client-ip": true, "client-ip": true,
	"x-cluster-client-ip": true, "true-client-ip": true, "cf-connecting-ip": true, "fastly-client-ip": true, "fly-client-ip": true,
	"x-azure-clientip": true, "x-azure-socketip": true, "x-originating-ip": true, "proxy-client-ip": true, "x-proxyuser-ip": true, "x-forward-for": true,
	"x-auth-user": true, "x-auth-username": true, "x-auth-email": true, "x-auth-groups": true, "x-auth-roles": true, "x-userinfo": true, "x-id-token": true,
	"x-apigateway-api-userinfo": true, "x-endpoint-api-userinfo": true, "x-scheme": true, "x-url-scheme": true, "front-end-https": true, "x-rewrite-url": true, "x-host": true,
	"x-http-method-override": true, "x-http-method": true, "x-method-override": true,
}

// plainOnly are headers that steer a request: an alias of one, such as Transfer_Encoding, is not let through.
var plainOnly = map[string]bool{
	"authorization": true, "connection": true, "content-length": true, "content-type": true, "cookie": true, "host": true,
	"te": true, "trailer": true, "transfer-encoding": true, "upgrade": true,
}

// foldName writes the name that application servers make one of: lower case, and a dash for whatever is no letter or digit.
// Names longer than buf are cut, and so match prefixes only.
func foldName(buf *[128]byte, name string) []byte {
	n := min(len(name), len(buf))
	for i := range n {
		c := name[i]
		switch {
		case c >= 'A' && c <= 'Z':
			c += 'a' - 'A'
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9':
		default:
			c = '-'
		}
		buf[i] = c
	}
	return buf[:n]
}

// stripIdentity removes what no client may claim, in every spelling, and the routes' own names for it.
func stripIdentity(h http.Header, own map[string]bool) {
	var buf [128]byte
	for name := range h {
		folded := foldName(&buf, name)
		if identityHeaders[string(folded)] || len(own) > 0 && own[string(folded)] || hasIdentityPrefix(folded) ||
			plainOnly[string(folded)] && strings.ContainsFunc(name, unusual) {
			delete(h, name)
		}
	}
}

// stripTrailer is stripIdentity for a request's trailer, which application servers may merge into its headers: what steers a request
// does not belong there either (RFC 9110 §6.5.1).
func stripTrailer(h http.Header, own map[string]bool) {
	stripIdentity(h, own)
	var buf [128]byte
	for name := range h {
		if plainOnly[string(foldName(&buf, name))] {
			delete(h, name)
		}
	}
}

func hasIdentityPrefix(folded []byte) bool {
	if len(folded) == 0 {
		return false
	}
	for _, p := range identityPrefixes[folded[0]] {
		if len(folded) >= len(p) && string(folded[:len(p)]) == p {
			return true
		}
	}
	return false
}

// unusual is what no name of plainOnly holds.
func unusual(r rune) bool { return !(r == '-' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z') }

// The names that we set, canonical.
const (
	headerRegion    = "X-Iapmesh-Region"
	headerReceipt   = "X-Iapmesh-Receipt" // an application says what it did; recorded, not passed on
	headerRequestID = "X-Request-Id"
	ourPrefix       = "X-Iapmesh-"
)

// stripAnswer removes from an application's answer what only the mesh may say to a user, and returns the application's receipt.
func stripAnswer(h http.Header) (receipt string) {
	for name := range h {
		if strings.HasPrefix(name, ourPrefix) {
			if name == headerReceipt && len(h[name]) > 0 {
				receipt = h[name][0][:min(len(h[name][0]), 256)]
			}
			delete(h, name)
		}
	}
	if cookies := h["Set-Cookie"]; len(cookies) > 0 {
		kept := cookies[:0]
		for _, c := range cookies {
			name := strings.TrimLeft(c, " \t")
			if len(name) < len(session.CookiePrefix) || !strings.EqualFold(name[:len(session.CookiePrefix)], session.CookiePrefix) {
				kept = append(kept, c)
			}
		}
		h["Set-Cookie"] = kept
	}
	return receipt
}

// oneLine makes a claim fit for a header.
func oneLine(s string) string {
	if !strings.ContainsFunc(s, control) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if control(r) {
			return ' '
		}
		return r
	}, s)
}

func control(r rune) bool { return r < ' ' || r == 0x7f }
