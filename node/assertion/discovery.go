package assertion

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/state"
)

// Where the two documents lie, on every host of the mesh.
const (
	PathDocument = "/.well-known/iapmesh"
	PathJWKS     = "/.well-known/iapmesh/jwks.json"
)

// JWKS is the key set for a host (lower case, without port), and its ETag: the announced, active and verify-only assertion keys
// whose selector covers one of the host's routes, by kid. A host without routes, such as the sign-in host, gets the keys that
// cover every route. The same keys make the same bytes.
func JWKS(view *state.View, host string) (body []byte, etag string) {
	routes := routesOf(view.Config, host)
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, k := range view.Keyring.VerifyingKeys(keyring.SigningAssertion) {
		if !covers(k.RouteSelector, routes) {
			continue
		}
		public, err := publicKey(k)
		if err != nil {
			continue // not one that anything could have been signed with
		}
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: public, KeyID: k.KID, Algorithm: string(jose.ES256), Use: "sig"})
	}
	body, err := json.Marshal(set)
	if err != nil {
		panic(fmt.Sprintf("encode a key set: %v", err)) // P-256 keys always encode
	}
	return body, etagOf(body)
}

func etagOf(body []byte) string {
	sum := sha256.Sum256(body)
	return `"` + hex.EncodeToString(sum[:16]) + `"`
}

func covers(selector string, routes []*resource.Route) bool {
	return selector == "" || slices.ContainsFunc(routes, func(r *resource.Route) bool { return r.Selected(selector) })
}

func routesOf(c *resource.Configuration, host string) []*resource.Route {
	var routes []*resource.Route
	for _, r := range c.Routes {
		if slices.ContainsFunc(r.Hosts, func(pattern string) bool { return matches(pattern, host) }) {
			routes = append(routes, r)
		}
	}
	return routes
}

// matches is the rule of resource.Configuration.Match.
func matches(pattern, host string) bool {
	suffix, wildcard := strings.CutPrefix(pattern, "*")
	if !wildcard {
		return pattern == host
	}
	label, ok := strings.CutSuffix(host, suffix)
	return ok && label != "" && !strings.Contains(label, ".")
}

// JWKSHandler serves the key set of the request's host at PathJWKS.
func JWKSHandler(view func() *state.View) http.Handler {
	return handler(view, func(v *state.View, r *http.Request) ([]byte, string, error) {
		host, _ := hostOf(r.Host)
		body, etag := JWKS(v, host)
		return body, etag, nil
	})
}

// Document is what PathDocument serves.
type Document struct {
	Issuer           string   `json:"issuer"`
	JWKSURI          string   `json:"jwks_uri"`
	SignInEndpoint   string   `json:"sign_in_endpoint"`
	SignOutEndpoint  string   `json:"sign_out_endpoint"`
	AssertionHeader  string   `json:"assertion_header"`
	AssertionAlgs    []string `json:"assertion_signing_alg_values_supported"`
	AssertionMaxLife int      `json:"assertion_lifetime_seconds"`
}

// DocumentHandler serves the document of the request's host at PathDocument. A host that is neither a route's nor the sign-in
// host is NotFound, so that nobody's cache learns URLs of a forged one. URLs keep the port that the request came to.
func DocumentHandler(view func() *state.View) http.Handler {
	return handler(view, func(v *state.View, r *http.Request) ([]byte, string, error) {
		settings := v.Config.Settings
		if settings == nil {
			return nil, "", fault.New(fault.NotFound, "no Settings were applied yet")
		}
		host, port := hostOf(r.Host)
		if host != settings.SignInHost && len(routesOf(v.Config, host)) == 0 {
			return nil, "", fault.New(fault.NotFound, "this host is not served here")
		}
		if port = strings.TrimSuffix(":"+port, ":"); strings.Trim(port, ":0123456789") != "" || len(port) > 6 {
			return nil, "", fault.New(fault.Invalid, "Host: not a port")
		}
		body, err := json.Marshal(Document{
			Issuer: settings.Issuer, JWKSURI: "https://" + host + port + PathJWKS,
			SignInEndpoint:  "https://" + settings.SignInHost + port + "/.iapmesh/sign_in",
			SignOutEndpoint: "https://" + host + port + "/.iapmesh/sign_out",
			AssertionHeader: Header, AssertionAlgs: []string{string(jose.ES256)},
			AssertionMaxLife: int(keyring.AssertionTokenLife / time.Second),
		})
		return body, etagOf(body), err
	})
}

// handler serves a public JSON document: max-age, ETag and 304, any origin.
func handler(view func() *state.View, make func(*state.View, *http.Request) ([]byte, string, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Access-Control-Allow-Origin", "*")
		switch r.Method {
		case http.MethodGet, http.MethodHead:
		case http.MethodOptions:
			h.Set("Access-Control-Allow-Methods", "GET, HEAD")
			h.Set("Access-Control-Allow-Headers", "If-None-Match")
			h.Set("Access-Control-Max-Age", "86400")
			w.WriteHeader(http.StatusNoContent)
			return
		default:
			h.Set("Allow", "GET, HEAD, OPTIONS")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		v := view()
		if v == nil {
			http.Error(w, "no view of the mesh yet", http.StatusServiceUnavailable)
			return
		}
		body, etag, err := make(v, r)
		if err != nil {
			http.Error(w, err.Error(), fault.KindOf(err).HTTPStatus())
			return
		}
		maxAge := resource.DefaultJWKSMaxAge
		if s := v.Config.Settings; s != nil && s.JWKSMaxAge > 0 {
			maxAge = time.Duration(s.JWKSMaxAge)
		}
		h.Set("Content-Type", "application/json")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", fmt.Sprintf("public, max-age=%d", maxAge/time.Second))
		h.Set("ETag", etag)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	})
}
