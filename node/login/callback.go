package login

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/identity"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/page"
	"github.com/iapmesh/iapmesh/node/session"
)

// The sizes of what a provider sends, in bytes.
const (
	maxCode    = 8 << 10
	maxIDToken = 128 << 10
)

// callback is where identity providers send users back to.
func (v *visit) callback() {
	query := v.r.URL.Query()
	b, err := v.boxes(v.view)
	if err != nil {
		v.failOn(err)
		return
	}
	a, err := v.takeAttempt(b, query.Get("state"))
	if err != nil {
		v.startAgain(err, v.portalLink()...)
		return
	}
	result := v.finish(b, a, query)
	v.metrics.signIns.WithLabelValues(a.Provider, result).Inc()
	if result == resultOK {
		v.metrics.seconds.WithLabelValues(a.Provider).Observe(float64(v.cfg.Now().Unix() - a.Began))
	}
}

// finish takes the code of an attempt to a session, answers, and says how it went.
func (v *visit) finish(b *boxes, a attempt, query url.Values) (result string) {
	again := page.Link{Text: "Open it again", URL: a.Request.Target.url(v.port)}
	p, err := v.expected(a, query)
	if err != nil {
		if fault.Is(err, fault.Unavailable) {
			v.fail(failure{kind: fault.Unavailable, code: "provider_unavailable", title: "The identity provider does not answer", text: "Try again in a moment.", links: []page.Link{again}, err: err})
			return "provider_unavailable"
		}
		v.startAgain(err, again)
		return "refused"
	}
	if code := query.Get("error"); code != "" {
		v.fail(failure{
			kind: fault.Denied, title: "You were not signed in", text: a.Provider + " answered: " + plain(code, 64) + ".", links: []page.Link{again},
			err: fault.New(fault.Denied, "provider %s: %s", a.Provider, plain(code, 64)),
		})
		return "refused"
	}
	who, err := v.exchange(p, a, query.Get("code"))
	if err != nil {
		v.fail(failure{
			kind: fault.KindOf(err), title: "You were not signed in", text: a.Provider + " and this mesh did not come to terms. If it happens again, tell your administrator.",
			links: []page.Link{again}, err: err,
		})
		return "refused"
	}
	// Talking to the provider took time: whoever was blocked, whatever was removed meanwhile, counts.
	v.refresh()
	token, s, err := v.cfg.Minter.Mint(v.view, session.Grant{Identity: who, Host: v.host})
	if errors.Is(err, session.ErrBlocked) {
		if err := v.recordRefusal(who, a.Provider, "blocked"); err != nil {
			v.failOn(err)
			return "failed"
		}
		v.failOn(session.ErrBlocked)
		return "blocked"
	}
	if err == nil {
		err = v.recordSignIn(s, a.Request.Target, a.Provider, "provider")
	}
	if err != nil {
		v.failOn(err)
		return "failed"
	}
	session.WriteCookie(v.w, token, s.Expires.Sub(v.cfg.Now()))
	route, candidates, err := a.Request.Target.route(v.view)
	switch {
	case err != nil || !slices.Contains(candidates, a.Provider):
		v.fail(failure{kind: fault.NotFound, title: "This application is no longer here", text: "You are signed in, but it was removed, or takes another identity provider now.", err: err, links: v.portalLink()})
	case route == nil:
		v.redirect("sign_in", a.Request.Target.url(v.port))
	default:
		v.handOver(b, s, a.Request)
	}
	return resultOK
}

// refresh looks at the newest view, unless it is gone.
func (v *visit) refresh() {
	if latest := v.cfg.Views.Load(); latest != nil && !latest.Revision.Before(v.view.Revision) && latest.Config.Settings != nil {
		v.view, v.settings = latest, latest.Config.Settings
	}
}

// expected returns the provider to which an attempt went, if the answer is its and it is still the same.
func (v *visit) expected(a attempt, query url.Values) (*party, error) {
	spec := v.view.Config.Providers[a.Provider]
	if spec == nil || specDigest(spec) != a.Digest {
		return nil, fault.New(fault.Invalid, "callback: provider %s was changed meanwhile", a.Provider)
	}
	if !strings.HasPrefix(a.Redirect, "https://"+v.settings.SignInHost) {
		return nil, fault.New(fault.Invalid, "callback: the sign-in host was changed meanwhile")
	}
	p, err := v.providers.get(v.r.Context(), spec)
	if err != nil {
		return nil, err
	}
	// With one redirect URI for all providers, one of them could pass off another's code as its own (RFC 9207).
	if iss := query["iss"]; (len(iss) > 0 || p.sendsIss) && (len(iss) != 1 || iss[0] != spec.OIDC.Issuer) {
		return nil, fault.New(fault.Invalid, "callback: does not come from provider %s", a.Provider)
	}
	return p, nil
}

// secretOf opens a provider's client secret; empty if it has none.
func (v *visit) secretOf(p *party) (string, error) {
	name := p.spec.ClientSecret.Secret
	if name == "" {
		return "", nil
	}
	secret, err := v.cfg.Secrets.Open(v.view.Keyring, keyring.AudienceProxies, keyring.UserSecret(name))
	if err != nil {
		return "", fault.New(fault.Unavailable, "provider %s: client secret %s: %w", p.name, name, err)
	}
	return strings.TrimRight(string(secret), "\r\n"), nil // of the file that it was read from
}

// exchange changes a code into a verified identity.
func (v *visit) exchange(p *party, a attempt, code string) (identity.Identity, error) {
	var none identity.Identity
	if code == "" || len(code) > maxCode {
		return none, fault.New(fault.Unauthenticated, "provider %s: code of %d bytes", p.name, len(code))
	}
	secret, err := v.secretOf(p)
	if err != nil {
		return none, err
	}
	ctx := oidc.ClientContext(v.r.Context(), p.client)
	tokens, err := p.oauth(secret, a.Redirect).Exchange(ctx, code, oauth2.VerifierOption(a.Verifier))
	if err != nil {
		return none, exchangeError(p.name, err)
	}
	raw, _ := tokens.Extra("id_token").(string)
	if raw == "" || len(raw) > maxIDToken {
		return none, fault.New(fault.Unauthenticated, "provider %s: id token of %d bytes", p.name, len(raw))
	}
	now := v.cfg.Now()
	token, err := p.oidc.Verifier(&oidc.Config{
		ClientID: p.spec.ClientID, SupportedSigningAlgs: p.algorithms, Now: func() time.Time { return now.Add(-keyring.Skew) },
	}).Verify(ctx, raw)
	if err != nil {
		return none, fault.New(fault.Unauthenticated, "provider %s: %w", p.name, withoutAddress(err))
	}
	var payload json.RawMessage
	if err := token.Claims(&payload); err != nil {
		return none, fault.New(fault.Unauthenticated, "provider %s: claims: %w", p.name, err)
	}
	if err := checkToken(p, a, token, payload, now); err != nil {
		return none, err
	}
	if token.AccessTokenHash != "" {
		if err := token.VerifyAccessToken(tokens.AccessToken); err != nil {
			return none, fault.New(fault.Unauthenticated, "provider %s: %w", p.name, err)
		}
	}
	return identityOf(p.name, p.spec.GroupsClaim, payload)
}

// checkToken checks what go-oidc leaves to its caller (OpenID Connect Core 1.0 §3.1.3.7).
func checkToken(p *party, a attempt, token *oidc.IDToken, payload json.RawMessage, now time.Time) error {
	var c claimSet
	if err := json.Unmarshal(payload, &c); err != nil {
		return fault.New(fault.Unauthenticated, "provider %s: claims: not a JSON object", p.name)
	}
	azp, named := c["azp"]
	switch {
	case subtle.ConstantTimeCompare([]byte(token.Nonce), []byte(a.Nonce)) != 1:
		return fault.New(fault.Unauthenticated, "provider %s: the id token's nonce is another", p.name)
	case token.Issuer != p.spec.Issuer:
		return fault.New(fault.Unauthenticated, "provider %s: issuer %.200q", p.name, token.Issuer)
	case named && c.text("azp") != p.spec.ClientID:
		return fault.New(fault.Unauthenticated, "provider %s: the id token is authorized for %.100q", p.name, azp)
	case !named && len(token.Audience) != 1:
		return fault.New(fault.Unauthenticated, "provider %s: the id token is for %d audiences and names no authorized party", p.name, len(token.Audience))
	case token.IssuedAt.After(now.Add(keyring.Skew)):
		return fault.New(fault.Unauthenticated, "provider %s: the id token was issued in the future", p.name)
	case c.text("sub") != token.Subject:
		return fault.New(fault.Unauthenticated, "provider %s: the id token has two subjects", p.name)
	}
	return nil
}

// exchangeError keeps the provider's answer, which may name a secret, out of the error.
func exchangeError(provider string, err error) error {
	var refused *oauth2.RetrieveError
	if errors.As(err, &refused) {
		kind := fault.Unauthenticated
		if refused.Response == nil || refused.Response.StatusCode >= 500 || refused.Response.StatusCode == http.StatusTooManyRequests {
			kind = fault.Unavailable
		}
		return fault.New(kind, "provider %s: code refused: %s", provider, plain(refused.ErrorCode, 64))
	}
	return fault.New(fault.Unavailable, "provider %s: exchange the code: %w", provider, withoutAddress(err))
}
