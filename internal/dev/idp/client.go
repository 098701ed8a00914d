package idp

import (
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/iapmesh/iapmesh/internal/fault"
)

const scopeGroups = "groups"

// client is the one relying party: confidential, authorization code only.
type client struct {
	id, secret string
	postLogout []string

	mu        sync.RWMutex // guards redirects
	redirects []string
}

var _ op.Client = (*client)(nil)

// allow adds a redirect URI; a second time is no error.
func (c *client) allow(uri string) error {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Contains(uri, "#") {
		return fault.New(fault.Invalid, "redirect URI %q: want https://host/path", uri)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.redirects, uri) {
		c.redirects = append(c.redirects, uri)
	}
	return nil
}

// formActions are the origins to which the sign-in form's redirects may lead: those of the redirect URIs and their sibling
// hosts, for the client hands the user over to the host that was asked for in the same chain.
func (c *client) formActions() []string {
	actions := []string{"'self'"}
	for _, uri := range c.RedirectURIs() {
		u, err := url.Parse(uri)
		if err != nil {
			continue // refused by allow
		}
		source := u.Scheme + "://" + u.Host
		if _, parent, ok := strings.Cut(u.Hostname(), "."); ok && strings.ContainsFunc(parent, isLetter) {
			source = u.Scheme + "://*." + parent + ":*"
		}
		if !slices.Contains(actions, source) {
			actions = append(actions, source)
		}
	}
	return actions
}

func isLetter(r rune) bool { return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' }

func (c *client) GetID() string { return c.id }

func (c *client) RedirectURIs() []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.Clone(c.redirects)
}

func (c *client) PostLogoutRedirectURIs() []string {
	uris := slices.Clone(c.postLogout)
	for _, uri := range c.RedirectURIs() {
		if u, err := url.Parse(uri); err == nil {
			uris = append(uris, u.Scheme+"://"+u.Host+"/")
		}
	}
	return uris
}

func (c *client) ApplicationType() op.ApplicationType { return op.ApplicationTypeWeb }
func (c *client) AuthMethod() oidc.AuthMethod         { return oidc.AuthMethodBasic }
func (c *client) ResponseTypes() []oidc.ResponseType {
	return []oidc.ResponseType{oidc.ResponseTypeCode}
}
func (c *client) GrantTypes() []oidc.GrantType        { return []oidc.GrantType{oidc.GrantTypeCode} }
func (c *client) LoginURL(id string) string           { return loginPath + "?request=" + url.QueryEscape(id) }
func (c *client) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeBearer }
func (c *client) IDTokenLifetime() time.Duration      { return tokenLifetime }
func (c *client) DevMode() bool                       { return false }
func (c *client) IsScopeAllowed(scope string) bool    { return scope == scopeGroups }
func (c *client) ClockSkew() time.Duration            { return 0 }

// IDTokenUserinfoClaimsAssertion puts e-mail, name and groups into the id token, so that the client needs no second call.
func (c *client) IDTokenUserinfoClaimsAssertion() bool { return true }

func (c *client) RestrictAdditionalIdTokenScopes() func([]string) []string {
	return func(scopes []string) []string { return scopes }
}

func (c *client) RestrictAdditionalAccessTokenScopes() func([]string) []string {
	return func(scopes []string) []string { return scopes }
}
