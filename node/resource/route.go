package resource

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/textproto"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/policy"
)

// Route is one application, or a part of one, behind the mesh.
type Route struct {
	Kind              string            `json:"kind" yaml:"kind"`
	Name              string            `json:"name" yaml:"name"`
	Hosts             []string          `json:"hosts" yaml:"hosts"`
	Path              string            `json:"path,omitempty" yaml:"path"` // prefix by segments; default /
	Upstreams         []Upstream        `json:"upstreams" yaml:"upstreams"`
	IdentityProviders []string          `json:"identity_providers,omitempty" yaml:"identity_providers"`
	Allow             []policy.Item     `json:"allow,omitempty" yaml:"allow"`
	Deny              []policy.Item     `json:"deny,omitempty" yaml:"deny"`
	Zone              string            `json:"zone,omitempty" yaml:"zone"`
	Sensitivity       int64             `json:"sensitivity,omitempty" yaml:"sensitivity"`
	Tags              map[string]string `json:"tags,omitempty" yaml:"tags"`
	API               bool              `json:"api,omitempty" yaml:"api"` // the unauthenticated get 401, never a redirect
	MaxStaleness      Duration          `json:"max_staleness,omitzero" yaml:"max_staleness"`
	OnStale           string            `json:"on_stale,omitempty" yaml:"on_stale"` // deny (default) or allow
	Audit             Audit             `json:"audit,omitzero" yaml:"audit"`
	Assertion         Assertion         `json:"assertion,omitzero" yaml:"assertion"`
	PreserveHost      bool              `json:"preserve_host,omitempty" yaml:"preserve_host"`
	AllowPaths        []string          `json:"allow_paths,omitempty" yaml:"allow_paths"` // encoded_slash, double_slash, semicolon
	Timeout           Duration          `json:"timeout,omitzero" yaml:"timeout"`          // to the response's head; default 60s

	file string
	line int
}

// Upstream is where the application listens.
type Upstream struct {
	URL    string `json:"url" yaml:"url"` // http or https, host and port alone
	Region string `json:"region,omitempty" yaml:"region"`
	CA     string `json:"ca,omitempty" yaml:"ca"` // PEM, for https; default: the system's roots
}

// Audit says how a route's decisions are kept.
type Audit struct {
	Durable   string `json:"durable,omitempty" yaml:"durable"`       // before_answer (default) or before_forward
	OnFailure string `json:"on_failure,omitempty" yaml:"on_failure"` // refuse (default) or serve
}

// Assertion says what the application is told of the user.
type Assertion struct {
	Audience     string            `json:"audience,omitempty" yaml:"audience"`           // default: the request's host
	Headers      []string          `json:"headers,omitempty" yaml:"headers"`             // further names for the assertion
	ClaimHeaders map[string]string `json:"claim_headers,omitempty" yaml:"claim_headers"` // header: subject, email, groups, name, user
}

// Ref names the route.
func (r *Route) Ref() Ref { return Ref{"Route", r.Name} }

func (r *Route) setSource(file string, line int) { r.file, r.line = file, line }

// DenyStale reports what on_stale says; deny is the default.
func (r *Route) DenyStale() bool { return r.OnStale != "allow" }

// BeforeForward reports whether the decision must be on disk before the application sees the request.
func (r *Route) BeforeForward() bool { return r.Audit.Durable == "before_forward" }

// ServeUnrecorded reports whether the route serves, with a counted gap, while the spool cannot take a record.
func (r *Route) ServeUnrecorded() bool { return r.Audit.OnFailure == "serve" }

// Permits reports whether a path form that is refused by default is allowed here.
func (r *Route) Permits(form string) bool { return slices.Contains(r.AllowPaths, form) }

// Takes reports whether users sign in to the route by that identity provider. A session by any other is nobody's here.
func (r *Route) Takes(provider string) bool { return slices.Contains(r.IdentityProviders, provider) }

// Selected reports whether a route selector covers the route: empty covers all, otherwise a comma-separated list of route
// names, of name prefixes ending in *, or of tag:key=value.
func (r *Route) Selected(selector string) bool {
	if selector == "" {
		return true
	}
	for term := range strings.SplitSeq(selector, ",") {
		term = strings.TrimSpace(term)
		if tag, ok := strings.CutPrefix(term, "tag:"); ok {
			key, value, _ := strings.Cut(tag, "=")
			if have, ok := r.Tags[key]; ok && have == value {
				return true
			}
			continue
		}
		if prefix, ok := strings.CutSuffix(term, "*"); ok && strings.HasPrefix(r.Name, prefix) {
			return true
		}
		if term == r.Name {
			return true
		}
	}
	return false
}

var (
	hostRule   = regexp.MustCompile(`^(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
	regionRule = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)
)

func validHost(h string) error {
	if len(h) > 253 || !hostRule.MatchString(h) {
		return fault.New(fault.Invalid, "host %.80q: want a lower-case host name without a port, perhaps *. before it", h)
	}
	return nil
}

// ValidRegion checks a region's name.
func ValidRegion(s string) error {
	if !regionRule.MatchString(s) {
		return fault.New(fault.Invalid, "region %.40q: want 1 to 32 of a-z, 0-9 and -", s)
	}
	return nil
}

// reservedHeaders may not be set by a claim header: they steer the connection or belong to us.
var reservedHeaders = []string{
	"Connection", "Content-Encoding", "Content-Length", "Content-Type", "Cookie", "Expect", "Forwarded", "Host", "Keep-Alive", "Origin",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Proto",
}

// claims are what a claim header can say.
var claims = []string{"subject", "email", "groups", "name", "user"}

func (r *Route) validate() error {
	errs := []error{validHead(r.Ref(), r.Kind)}
	bad := func(format string, args ...any) { errs = append(errs, fault.New(fault.Invalid, format, args...)) }
	if len(r.Hosts) == 0 {
		bad("hosts: at least one is required")
	}
	for _, h := range r.Hosts {
		if err := validHost(h); err != nil {
			errs = append(errs, fmt.Errorf("hosts: %w", err))
		}
	}
	if r.Path != "" && (!strings.HasPrefix(r.Path, "/") || strings.ContainsAny(r.Path, "?#%;\\\x00") || strings.Contains(r.Path, "//") ||
		slices.ContainsFunc(strings.Split(r.Path, "/"), func(s string) bool { return s == "." || s == ".." })) {
		bad("path %.80q: want / and plain segments", r.Path)
	}
	if strings.HasPrefix(r.Path, "/.iapmesh") || strings.HasPrefix(r.Path, "/.well-known/iapmesh") {
		bad("path %q: belongs to iapmesh itself", r.Path)
	}
	if len(r.Upstreams) == 0 {
		bad("upstreams: at least one is required")
	}
	for i, u := range r.Upstreams {
		p, err := url.Parse(u.URL)
		if err != nil || (p.Scheme != "http" && p.Scheme != "https") || p.Hostname() == "" || (p.Path != "" && p.Path != "/") || strings.ContainsAny(u.URL, "?#") || p.User != nil {
			bad("upstreams[%d].url %.200q: want http or https, host and port alone", i, u.URL)
		}
		if u.Region != "" {
			errs = append(errs, ValidRegion(u.Region))
		}
		if u.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(u.CA)) {
			bad("upstreams[%d].ca: holds no PEM certificate", i)
		}
	}
	oneOf := func(field, got string, want ...string) {
		if got != "" && !slices.Contains(want, got) {
			bad("%s %.40q: want %s%s", field, got, strings.Join(want, " or "), nearest(got, want))
		}
	}
	oneOf("on_stale", r.OnStale, "deny", "allow")
	if r.OnStale != "" && r.MaxStaleness == 0 {
		bad("on_stale: needs max_staleness")
	}
	oneOf("audit.durable", r.Audit.Durable, "before_answer", "before_forward")
	oneOf("audit.on_failure", r.Audit.OnFailure, "refuse", "serve")
	for _, p := range r.AllowPaths {
		oneOf("allow_paths", p, "encoded_slash", "double_slash", "semicolon")
	}
	for _, header := range slices.Sorted(maps.Keys(r.Assertion.ClaimHeaders)) {
		if claim := r.Assertion.ClaimHeaders[header]; !slices.Contains(claims, claim) {
			bad("assertion.claim_headers.%.60s %.40q: want %s%s", header, claim, strings.Join(claims, " or "), nearest(claim, claims))
		}
	}
	set := map[string]bool{}
	for _, h := range r.claimHeaderNames() {
		canonical := textproto.CanonicalMIMEHeaderKey(h)
		if !validHeader(h) || slices.Contains(reservedHeaders, canonical) ||
			strings.HasPrefix(canonical, "Proxy-") || strings.HasPrefix(canonical, "X-Iapmesh-") || strings.HasPrefix(canonical, "Sec-") {
			bad("assertion: header %.60q cannot be set", h)
		}
		if set[canonical] {
			bad("assertion: header %.60q is set twice", h)
		}
		set[canonical] = true
	}
	if r.MaxStaleness != 0 && r.MaxStaleness < Duration(2*time.Second) {
		bad("max_staleness %s: want at least 2s (views are refreshed each second)", time.Duration(r.MaxStaleness))
	}
	return errors.Join(errs...)
}

func (r *Route) claimHeaderNames() []string {
	names := slices.Clone(r.Assertion.Headers)
	for h := range r.Assertion.ClaimHeaders {
		names = append(names, h)
	}
	slices.Sort(names)
	return names
}

func validHeader(h string) bool {
	return h != "" && len(h) <= 128 && !strings.ContainsFunc(h, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-')
	})
}
