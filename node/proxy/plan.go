package proxy

import (
	"encoding/hex"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/node/assertion"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/state"
)

const defaultTimeout = time.Minute // to the head of an answer

// plan is what a configuration means to this node, worked out once.
type plan struct {
	view     *state.View // the first that had this configuration
	manifest string      // hex
	trusted  []netip.Prefix
	signIn   string // the sign-in host, which has no applications
	hosts    map[string]bool
	suffixes []string // of wildcard hosts: ".example.com"
	routes   map[*resource.Route]*routePlan
	// own are the folded names of all headers by which some route tells its application who is calling. They are stripped on every
	// route: one application may stand behind an open route and another that needs a session.
	own map[string]bool
}

type routePlan struct {
	route      *resource.Route
	assertions []string // canonical names for the assertion
	claims     []claimHeader
	upstreams  []*upstream // of the nearest kind: this region's, or else those of none, or else all
	next       atomic.Uint32
	seconds    prometheus.Observer
	usual      prometheus.Counter // requests with code 200, allowed
}

type claimHeader struct{ name, claim string }

type upstream struct {
	url   *url.URL
	text  string // for records
	links *links
}

// planFor returns the plan of the view's configuration.
func (p *Proxy) planFor(view *state.View) *plan {
	if have := p.plan.Load(); have != nil && have.view.Config == view.Config {
		return have
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	have := p.plan.Load()
	if have != nil && have.view.Config == view.Config {
		return have
	}
	next := p.makePlan(view)
	if have == nil || !view.Revision.Before(have.view.Revision) { // a request with an old view must not bring its plan back
		p.plan.Store(next)
		p.transports.keep(next)
	}
	return next
}

func (p *Proxy) makePlan(view *state.View) *plan {
	c := view.Config
	n := &plan{view: view, manifest: hex.EncodeToString(c.Digest[:]), hosts: map[string]bool{}, routes: map[*resource.Route]*routePlan{}, own: map[string]bool{}}
	if c.Settings != nil {
		n.signIn = c.Settings.SignInHost
		n.hosts[n.signIn] = true
		n.trusted = trustedBy(c)
	}
	for _, r := range c.Routes {
		for _, h := range r.Hosts {
			if suffix, ok := strings.CutPrefix(h, "*"); ok {
				n.suffixes = append(n.suffixes, suffix)
			} else {
				n.hosts[h] = true
			}
		}
		n.routes[r] = p.planRoute(n, r)
	}
	return n
}

func (p *Proxy) planRoute(n *plan, r *resource.Route) *routePlan {
	rp := &routePlan{
		route: r, assertions: []string{assertion.Header},
		seconds: p.metrics.seconds.WithLabelValues(r.Name), usual: p.metrics.requests.WithLabelValues(r.Name, "200", "allow"),
	}
	own := func(name string) string {
		var buf [128]byte
		n.own[string(foldName(&buf, name))] = true
		return http.CanonicalHeaderKey(name)
	}
	for _, name := range r.Assertion.Headers {
		rp.assertions = append(rp.assertions, own(name))
	}
	for _, name := range slices.Sorted(maps.Keys(r.Assertion.ClaimHeaders)) {
		rp.claims = append(rp.claims, claimHeader{own(name), r.Assertion.ClaimHeaders[name]})
	}
	timeout := time.Duration(r.Timeout)
	if timeout == 0 {
		timeout = defaultTimeout
	}
	for _, u := range nearest(r.Upstreams, p.cfg.Region) {
		parsed, err := url.Parse(u.URL)
		if err != nil {
			continue // routes were validated
		}
		parsed.Path = ""
		rp.upstreams = append(rp.upstreams, &upstream{
			url: parsed, text: parsed.Scheme + "://" + parsed.Host, links: p.transports.get(transportKey{ca: u.CA, timeout: timeout}, p.cfg.ConnectWait),
		})
	}
	return rp
}

// nearest picks the upstreams of a region; if there are none, those that name no region; else all.
func nearest(all []resource.Upstream, region string) []resource.Upstream {
	for _, want := range []string{region, ""} {
		var found []resource.Upstream
		for _, u := range all {
			if u.Region == want {
				found = append(found, u)
			}
		}
		if len(found) > 0 {
			return found
		}
	}
	return all
}

// pick takes turns.
func (rp *routePlan) pick() *upstream {
	switch n := uint32(len(rp.upstreams)); n {
	case 0:
		return nil
	case 1:
		return rp.upstreams[0]
	default:
		return rp.upstreams[rp.next.Add(1)%n]
	}
}

// knows reports whether a host is a route's or the sign-in host; a wildcard covers one label, as in Configuration.Match.
func (n *plan) knows(host string) bool {
	if n.hosts[host] {
		return true
	}
	return slices.ContainsFunc(n.suffixes, func(suffix string) bool {
		label, ok := strings.CutSuffix(host, suffix)
		return ok && label != "" && !strings.Contains(label, ".")
	})
}
