package login

import (
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/state"
)

// maxURI bounds the path and query that a sign-in leads back to: it lies in a cookie, which browsers cut at 4,096 bytes.
const maxURI = 1600

// target is where a sign-in leads: a host and what is asked for there. The port is the browser's own at each step.
type target struct {
	Host string `json:"h"`
	URI  string `json:"u"` // escaped path, and query
}

// parseTarget checks a target by its form alone.
func parseTarget(host, uri string) (target, error) {
	bad := func(why string) (target, error) {
		return target{}, fault.New(fault.Invalid, "address to return to: %s", why)
	}
	switch {
	case len(uri) > maxURI:
		return bad("too long")
	case !strings.HasPrefix(uri, "/"), strings.HasPrefix(uri, "//"):
		return bad("want a path")
	case strings.ContainsFunc(uri, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '\\' || c == '#' }):
		return bad("white space, control characters, backslashes and fragments are refused")
	}
	u, err := url.ParseRequestURI(uri)
	if err != nil || u.Host != "" || u.User != nil || u.Scheme != "" || strings.ContainsAny(u.Path, "\\\x00\r\n") || strings.HasPrefix(u.Path, "//") {
		return bad("not a plain path")
	}
	if h, port, ok := splitHost(host); !ok || port != "" || h != host {
		return bad("want a host")
	}
	return target{host, uri}, nil
}

// parseReturn reads the address that a link to sign_in gives: a path of this host, or an https URL. Whether it belongs to a route
// is for route to say.
func parseReturn(host, address string) (target, error) {
	if strings.HasPrefix(address, "/") {
		return parseTarget(host, address)
	}
	rest, ok := strings.CutPrefix(address, "https://")
	if !ok {
		return target{}, fault.New(fault.Invalid, "address to return to: want a path or an https URL")
	}
	// Cut by hand at the first character that any parser might end the host at: what is left must be a host and nothing else.
	end := strings.IndexAny(rest, "/?#\\")
	if end < 0 {
		return parseTarget(strings.ToLower(rest), "/")
	}
	authority, uri := rest[:end], rest[end:]
	if uri[0] == '?' {
		uri = "/" + uri
	}
	h, _, ok := splitHost(authority)
	if !ok {
		return target{}, fault.New(fault.Invalid, "address to return to: want a host")
	}
	return parseTarget(h, uri)
}

// targetOf is where a request for a route leads back to. Where its address is not one that can travel, less of it does.
func targetOf(host string, u *url.URL, view *state.View, route *resource.Route) target {
	for _, uri := range []string{u.RequestURI(), u.EscapedPath()} {
		if t, err := parseTarget(host, uri); err == nil && t.match(view) == route {
			return t
		}
	}
	return target{host, "/" + strings.Trim(route.Path, "/")}
}

func (t target) path() string {
	u, err := url.ParseRequestURI(t.URI)
	if err != nil {
		return "" // matches no route
	}
	return u.Path
}

func (t target) match(view *state.View) *resource.Route { return view.Config.Match(t.Host, t.path()) }

// route returns the target's route in a view, and the providers that a user may sign in with. The sign-in host itself has no
// route, and takes them all.
func (t target) route(view *state.View) (*resource.Route, []string, error) {
	if s := view.Config.Settings; s != nil && t.Host == s.SignInHost {
		var all []string
		for name := range view.Config.Providers {
			all = append(all, name)
		}
		slices.Sort(all)
		return nil, all, nil
	}
	route := t.match(view)
	switch {
	case route == nil:
		return nil, nil, fault.New(fault.NotFound, "no application is served at %s", t.Host)
	case len(route.IdentityProviders) == 0:
		return nil, nil, fault.New(fault.Denied, "users do not sign in to route %s", route.Name)
	}
	return route, route.IdentityProviders, nil
}

func (t target) url(port string) string { return "https://" + t.Host + port + t.URI }

// splitHost takes the Host header apart: a lower-case DNS name, and the port with its colon, empty for 443.
func splitHost(s string) (host, port string, ok bool) {
	host, number, found := strings.Cut(s, ":")
	if found {
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n == 0 || strconv.FormatUint(n, 10) != number {
			return "", "", false
		}
		if n != 443 {
			port = ":" + number
		}
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if host == "" || len(host) > 253 || strings.ContainsFunc(host, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.')
	}) {
		return "", "", false
	}
	return host, port, true
}

// signInURL is a page of the sign-in host, on the port of the region that the user is on.
func (v *visit) signInURL(path string, query url.Values) string {
	u := "https://" + v.settings.SignInHost + v.port + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	return u
}
