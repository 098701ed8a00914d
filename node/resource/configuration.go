package resource

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/policy"
)

// Configuration is one whole, consistent set of resources, compiled: what one manifest says. It is immutable.
type Configuration struct {
	Digest    [32]byte // of the manifest
	Settings  *Settings
	Providers map[string]*IdentityProvider
	Routes    []*Route // by name
	Policy    *policy.Set
	table     map[string][]*Route // host → routes, longest path first
	wildcards []wildcard          // longest suffix first
}

type wildcard struct {
	suffix string // ".example.com"
	routes []*Route
}

// Compile checks documents together (references, hosts, policies) and compiles them. regions are the names that the mesh
// knows; all problems are returned at once.
func Compile(docs []Document, regions []string) (*Configuration, error) {
	c := &Configuration{Providers: map[string]*IdentityProvider{}, table: map[string][]*Route{}}
	hashes := map[Ref][32]byte{}
	src := policy.Source{}
	var errs []error
	for _, d := range docs {
		if _, twice := hashes[d.Ref()]; twice {
			errs = append(errs, fault.New(fault.Invalid, "%s: is there twice", d.Ref()))
			continue
		}
		hashes[d.Ref()] = d.Hash
		switch s := d.Spec.(type) {
		case *Settings:
			settings := s.withDefaults()
			c.Settings = &settings
		case *IdentityProvider:
			c.Providers[s.Name] = s
		case *Route:
			c.Routes = append(c.Routes, s)
		case *Policy:
			src.Policies = append(src.Policies, policy.CedarPolicy{Name: s.Name, Cedar: s.Cedar, File: s.file})
		case *Zone:
			src.Zones = append(src.Zones, policy.Zone{Name: s.Name, Parents: s.Parents})
		case *Schedule:
			src.Schedules = append(src.Schedules, policy.Schedule{Name: s.Name, TimeZone: s.TimeZone, Days: s.Days, From: s.From, To: s.To})
		case *Service: // its calls come with the routes that know services
		}
	}
	c.Digest = Digest(hashes)
	slices.SortFunc(c.Routes, func(a, b *Route) int { return strings.Compare(a.Name, b.Name) })
	errs = append(errs, c.checkRoutes()...)
	src.Regions = knownRegions(c, regions)
	for _, r := range c.Routes {
		src.Routes = append(src.Routes, policy.Route{
			Name: r.Name, Zone: r.Zone, Sensitivity: r.Sensitivity, Regions: upstreamRegions(r), Tags: r.Tags,
			Allow: r.Allow, Deny: r.Deny, File: r.file, Line: r.line,
		})
	}
	set, err := policy.Compile(src)
	if err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fault.Wrap(fault.Invalid, err)
	}
	c.Policy = set
	c.index()
	return c, nil
}

func (c *Configuration) checkRoutes() []error {
	var errs []error
	owner := map[string]string{} // host + path → route
	for _, r := range c.Routes {
		for _, h := range r.Hosts {
			at := h + r.prefix()
			if other, taken := owner[at]; taken {
				errs = append(errs, fault.New(fault.Invalid, "Route/%s: %s belongs to Route/%s already", r.Name, at, other))
			}
			owner[at] = r.Name
			if c.Settings != nil && h == c.Settings.SignInHost {
				errs = append(errs, fault.New(fault.Invalid, "Route/%s: host %s is the sign-in host", r.Name, h))
			}
		}
		for _, p := range r.IdentityProviders {
			if c.Providers[p] == nil {
				errs = append(errs, fault.New(fault.Invalid, "Route/%s: identity_providers: no IdentityProvider %q%s", r.Name, p,
					nearest(p, slices.Collect(maps.Keys(c.Providers)))))
			}
		}
		if len(r.IdentityProviders) > 0 && c.Settings == nil {
			errs = append(errs, fault.New(fault.Invalid, "Route/%s: users sign in here, so a Settings with issuer and sign_in_host is needed", r.Name))
		}
	}
	return errs
}

func knownRegions(c *Configuration, regions []string) []string {
	known := slices.Clone(regions)
	if c.Settings != nil {
		known = append(known, c.Settings.Regions...)
	}
	for _, r := range c.Routes {
		known = append(known, upstreamRegions(r)...)
	}
	slices.Sort(known)
	return slices.Compact(known)
}

func upstreamRegions(r *Route) []string {
	var regions []string
	for _, u := range r.Upstreams {
		if u.Region != "" {
			regions = append(regions, u.Region)
		}
	}
	slices.Sort(regions)
	return slices.Compact(regions)
}

func (r *Route) prefix() string { return "/" + strings.Trim(r.Path, "/") }

func (c *Configuration) index() {
	suffixes := map[string][]*Route{}
	for _, r := range c.Routes {
		for _, h := range r.Hosts {
			if suffix, ok := strings.CutPrefix(h, "*"); ok {
				suffixes[suffix] = append(suffixes[suffix], r)
			} else {
				c.table[h] = append(c.table[h], r)
			}
		}
	}
	longestFirst := func(a, b *Route) int { return len(b.prefix()) - len(a.prefix()) }
	for _, routes := range c.table {
		slices.SortStableFunc(routes, longestFirst)
	}
	for suffix, routes := range suffixes {
		slices.SortStableFunc(routes, longestFirst)
		c.wildcards = append(c.wildcards, wildcard{suffix, routes})
	}
	slices.SortFunc(c.wildcards, func(a, b wildcard) int { return len(b.suffix) - len(a.suffix) })
}

// Match returns the route of a host (lower case, no port) and a canonical path: an exact host before a wildcard, then the longest
// prefix of whole segments; nil if there is none.
func (c *Configuration) Match(host, path string) *Route {
	if r := matchPath(c.table[host], path); r != nil {
		return r
	}
	for _, w := range c.wildcards {
		if label, ok := strings.CutSuffix(host, w.suffix); ok && label != "" && !strings.Contains(label, ".") {
			if r := matchPath(w.routes, path); r != nil {
				return r
			}
		}
	}
	return nil
}

func matchPath(routes []*Route, path string) *Route {
	for _, r := range routes {
		p := r.prefix()
		if p == "/" || path == p || strings.HasPrefix(path, p+"/") {
			return r
		}
	}
	return nil
}

// Route returns the route of that name; nil if there is none.
func (c *Configuration) Route(name string) *Route {
	i, ok := slices.BinarySearchFunc(c.Routes, name, func(r *Route, n string) int { return strings.Compare(r.Name, n) })
	if !ok {
		return nil
	}
	return c.Routes[i]
}

// Provider returns the provider that a route signs in with: its first; an error says that it has none.
func (c *Configuration) Provider(r *Route) (*IdentityProvider, error) {
	if len(r.IdentityProviders) == 0 {
		return nil, fault.New(fault.Invalid, "route %s names no identity provider", r.Name)
	}
	return c.Providers[r.IdentityProviders[0]], nil
}

// Source says where the route was written, for people.
func (r *Route) Source() string { return fmt.Sprintf("%s:%d", r.file, r.line) }
