package login

import (
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/page"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/session"
)

// begin sends the browser to the sign-in host, which will send it back to t.
func (v *visit) begin(t target) {
	if err := v.view.Keyring.Closed(); err != nil {
		v.closed(err)
		return
	}
	if _, _, err := t.route(v.view); err != nil {
		v.fail(failure{kind: fault.KindOf(err), title: "Nobody signs in here", text: "This address belongs to no application that users sign in to.", err: err, quiet: true})
		return
	}
	b, err := v.boxes(v.view)
	if err != nil {
		v.failOn(err)
		return
	}
	sealed, err := b.sealJSON(sealedRequest, "", request{
		Target: t, State: stateHash(t.Host, v.state()), Expires: v.cfg.Now().Add(attemptLife).Unix(),
	})
	if err != nil {
		v.failOn(err)
		return
	}
	v.redirect("sign_in", v.signInURL(pathSignIn, url.Values{"request": {sealed}}))
}

// signInHere is /.iapmesh/sign_in on a route's host: a link, perhaps of another proxy, that names where to return to.
func (v *visit) signInHere() {
	address := v.r.URL.Query().Get("rd")
	if address == "" {
		address = "/"
	}
	t, err := parseReturn(v.host, address)
	if err == nil {
		_, _, err = t.route(v.view)
	}
	switch {
	case err != nil:
		v.fail(failure{kind: fault.Invalid, title: "This link leads nowhere", text: "The address to return to belongs to no application that users sign in to.", err: err, quiet: true})
	case t.Host == v.host:
		v.begin(t)
	case t.Host == v.settings.SignInHost:
		v.redirect("sign_in", t.url(v.port))
	default: // each host sets its own state cookie
		v.redirect("sign_in", target{t.Host, pathSignIn + "?" + url.Values{"rd": {t.URI}}.Encode()}.url(v.port))
	}
}

// signIn is /.iapmesh/sign_in on the sign-in host.
func (v *visit) signIn() {
	if err := v.view.Keyring.Closed(); err != nil {
		v.closed(err)
		return
	}
	query := v.r.URL.Query()
	if query.Has("rd") && !query.Has("request") {
		v.signInHere()
		return
	}
	b, err := v.boxes(v.view)
	if err != nil {
		v.failOn(err)
		return
	}
	asked := request{Target: target{v.settings.SignInHost, pathRoutes}}
	if sealed := query.Get("request"); sealed != "" {
		if err := b.openJSON(sealedRequest, "", sealed, &asked); err != nil {
			v.startAgain(err, v.portalLink()...)
			return
		}
		if v.cfg.Now().Unix() > asked.Expires {
			v.startAgain(fault.New(fault.Invalid, "request: expired"), page.Link{Text: "Open it again", URL: asked.Target.url(v.port)})
			return
		}
	}
	route, candidates, err := asked.Target.route(v.view)
	if err != nil {
		v.fail(failure{kind: fault.NotFound, title: "This application is no longer here", text: "It was removed, or users no longer sign in to it.", err: err, links: v.portalLink()})
		return
	}
	choice := query.Get("provider")
	s, err := v.ownSession(asked.Target)
	if err != nil {
		v.failOn(err)
		return
	}
	if s != nil && slices.Contains(candidates, s.Identity.Provider()) && (choice == "" || choice == s.Identity.Provider()) {
		if route == nil {
			v.redirect("sign_in", asked.Target.url(v.port))
			return
		}
		v.metrics.signIns.WithLabelValues(s.Identity.Provider(), "reused").Inc()
		v.handOver(b, s, asked)
		return
	}
	switch {
	case choice != "" && !slices.Contains(candidates, choice):
		v.fail(failure{kind: fault.Invalid, title: "This identity provider is not for this application"})
	case choice == "" && len(candidates) > 1:
		v.choose(candidates, query.Get("request"))
	case len(candidates) == 0:
		v.fail(failure{kind: fault.Unavailable, title: "Sign-in is not ready", text: "No identity provider is configured."})
	case choice == "":
		v.toProvider(b, candidates[0], asked)
	default:
		v.toProvider(b, choice, asked)
	}
}

// ownSession is the session that this browser has on the sign-in host, if it counts for the target and may be passed on; nil if
// there is none. An error says that this cannot be told just now.
func (v *visit) ownSession(t target) (*session.Session, error) {
	token := session.ReadCookie(v.r)
	if token == "" {
		return nil, nil
	}
	s, err := v.verify(t, token)
	if waited, waitErr := v.cfg.Verifier.Await(v.r.Context(), v.cfg.Views, err); err != nil && waitErr == nil {
		v.view = waited
		s, err = v.verify(t, token)
	}
	if fault.Is(err, fault.Unavailable) {
		return nil, err
	}
	if err != nil || !v.vouchesFor(s.MintingNode) {
		return nil, nil
	}
	return s, nil
}

func (v *visit) verify(t target, token string) (*session.Session, error) {
	route, _, err := t.route(v.view)
	switch {
	case err != nil:
		return nil, err
	case route == nil:
		return v.identify(token)
	}
	s, err := v.cfg.Verifier.Verify(v.view, route, token)
	if err == nil {
		err = s.On(v.host)
	}
	return s, err
}

// identify says whose session on this host a token is.
func (v *visit) identify(token string) (*session.Session, error) {
	s, err := v.cfg.Verifier.Identify(v.view, token)
	if err == nil {
		err = s.On(v.host)
	}
	return s, err
}

// vouchesFor reports whether a node may handle identity for every route that this node does. What a node with a narrower selector
// signed must not become a session of this node, which counts for more: whoever has taken the other would have taken all.
func (v *visit) vouchesFor(minter string) bool {
	if minter == v.cfg.Node {
		return true
	}
	own, other := v.view.Keyring.Nodes[v.cfg.Node], v.view.Keyring.Nodes[minter]
	if own == nil || other == nil {
		return false
	}
	return !slices.ContainsFunc(v.view.Config.Routes, func(r *resource.Route) bool { return v.view.Selects(own, r) && !v.view.Selects(other, r) })
}

// choose shows the providers that the target takes.
func (v *visit) choose(candidates []string, sealed string) {
	m := page.Message{Title: "Sign in", Text: []string{"Choose how:"}}
	for _, name := range candidates {
		query := url.Values{"provider": {name}}
		if sealed != "" {
			query.Set("request", sealed)
		}
		m.Links = append(m.Links, page.Link{Text: name, URL: v.signInURL(pathSignIn, query)})
	}
	m.Write(v.w, http.StatusOK, "sign_in_choose")
}

// toProvider sends the browser to an identity provider.
func (v *visit) toProvider(b *boxes, name string, asked request) {
	spec := v.view.Config.Providers[name]
	p, err := v.providers.get(v.r.Context(), spec)
	if err != nil {
		v.providerDown(name, err)
		return
	}
	now := v.cfg.Now()
	id := newAttemptID(now)
	a := attempt{
		Request: asked, Provider: name, Digest: p.digest, Verifier: oauth2.GenerateVerifier(), Nonce: newAttemptID(now),
		Redirect: v.signInURL(pathCallback, nil), Began: now.Unix(),
	}
	if err := v.writeAttempt(b, id, a); err != nil {
		v.failOn(err)
		return
	}
	v.redirect("sign_in", p.oauth("", a.Redirect).AuthCodeURL(id, oauth2.S256ChallengeOption(a.Verifier), oidc.Nonce(a.Nonce)))
}

func (v *visit) providerDown(name string, err error) {
	v.metrics.signIns.WithLabelValues(name, "provider_unavailable").Inc()
	v.fail(failure{
		kind: fault.Unavailable, code: "provider_unavailable", title: "The identity provider does not answer",
		text:  "Signing in with " + name + " is not possible just now. Whoever is signed in already stays so. Try again in a moment.",
		links: []page.Link{{Text: "Try again", URL: "https://" + v.host + v.port + pathSignIn + "?" + retryQuery(v.r)}}, retry: 10 * time.Second, err: err,
	})
}

// retryQuery keeps what was asked of the sign-in page; a callback's query is used up.
func retryQuery(r *http.Request) string {
	if r.URL.Path != pathSignIn {
		return ""
	}
	query := url.Values{}
	for _, name := range []string{"request", "provider"} {
		if value := r.URL.Query().Get(name); value != "" {
			query.Set(name, value)
		}
	}
	return query.Encode()
}
