// Package idp is the development OpenID provider: a real one (OpenID Connect Core 1.0 by zitadel/oidc), with a handful of
// users, one confidential client, and everything in memory but its signing key and generated passwords.
//
// It does what a production provider does where that matters to iapmesh: authorization code with PKCE (S256 required), codes
// that work once and soon expire, exact redirect URIs, a session of its own (a second sign-in within it shows no form, unless
// prompt=login or max_age ask for one), sign-out. It is for development and tests: nobody but 127.0.0.1 should reach it.
// Serving its Handler over TLS is the caller's.
package idp

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// Config says what the provider serves. Issuer, ClientID, ClientSecret and at least one of RedirectURIs or a later
// AllowRedirect are needed.
type Config struct {
	Issuer       string   // https://127.0.0.1:port; the listener's address, which is therefore opened first
	Users        []User   // DefaultUsers() if empty; a missing password is generated
	ClientID     string   //
	ClientSecret string   //
	RedirectURIs []string // exact; a query or another port is another URI
	// PostLogoutRedirectURIs are where end_session may lead, beside the root of each redirect URI's origin.
	PostLogoutRedirectURIs []string
	// Dir keeps the signing key and generated passwords (0600) over restarts. Empty: they live as long as the provider.
	Dir string
	// SessionLifetime is how long a sign-in is remembered; 15 minutes if zero, none if negative.
	SessionLifetime time.Duration
	Logger          *slog.Logger
	Now             func() time.Time // for codes and sessions; tokens carry the system's time
}

// Provider is a running provider's state. Its methods may be called concurrently.
type Provider struct {
	issuer  string
	users   []User
	store   *storage
	op      *op.Provider
	handler http.Handler
	log     *slog.Logger
	now     func() time.Time
}

// New makes a provider; what is wrong with the configuration is Invalid.
func New(c Config) (*Provider, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.SessionLifetime == 0 {
		c.SessionLifetime = 15 * time.Minute
	}
	issuer, err := url.Parse(c.Issuer)
	if err != nil || issuer.Scheme != "https" || issuer.Host == "" || issuer.Path != "" {
		return nil, fault.New(fault.Invalid, "development provider: issuer %q: want https://host:port", c.Issuer)
	}
	if c.ClientID == "" || c.ClientSecret == "" {
		return nil, fault.New(fault.Invalid, "development provider: client id and secret are needed")
	}
	kept, err := openKept(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("development provider: %w", err)
	}
	users, err := completeUsers(c.Users, kept)
	if err != nil {
		return nil, fmt.Errorf("development provider: %w", err)
	}
	if err := kept.save(c.Dir); err != nil {
		return nil, fmt.Errorf("development provider: %w", err)
	}
	store := newStorage(c, users, kept.key)
	for _, uri := range c.RedirectURIs {
		if err := store.client.allow(uri); err != nil {
			return nil, fmt.Errorf("development provider: %w", err)
		}
	}
	p := &Provider{issuer: c.Issuer, users: users, store: store, log: c.Logger, now: c.Now}
	config := &op.Config{
		CryptoKeyId:              "dev",
		CodeMethodS256:           true,
		AuthMethodPost:           true,
		DefaultLogoutRedirectURI: c.Issuer + "/signed_out",
		SupportedScopes:          []string{oidc.ScopeOpenID, oidc.ScopeEmail, oidc.ScopeProfile, scopeGroups},
		SupportedClaims: []string{"sub", "aud", "exp", "iat", "iss", "auth_time", "nonce", "amr", "azp", "at_hash", "c_hash",
			"email", "email_verified", "name", "preferred_username", "groups"},
	}
	_, _ = rand.Read(config.CryptoKey[:]) // never returns an error; codes and access tokens end with the process
	if p.op, err = op.NewProvider(config, store, op.StaticIssuer(c.Issuer), op.WithCORSOptions(nil)); err != nil {
		return nil, fault.New(fault.Invalid, "development provider: %w", err)
	}
	p.handler = p.routes()
	return p, nil
}

// Handler serves the provider under the root of its issuer.
func (p *Provider) Handler() http.Handler { return p.handler }

// Issuer is the provider's issuer URL.
func (p *Provider) Issuer() string { return p.issuer }

// Users lists the users with their passwords, for whoever starts the development mesh to show.
func (p *Provider) Users() []User { return slices.Clone(p.users) }

// AllowRedirect adds a redirect URI of the client, for listeners that open after the provider.
func (p *Provider) AllowRedirect(uri string) error { return p.store.client.allow(uri) }

// EndSessions forgets who is signed in at the provider: everybody's next sign-in shows the form.
func (p *Provider) EndSessions() { p.store.endSessions("") }

func (p *Provider) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", p.home)
	mux.HandleFunc("GET "+loginPath, p.showLogin)
	mux.HandleFunc("POST "+loginPath, p.submitLogin)
	mux.HandleFunc("GET /signed_out", p.signedOut)
	mux.HandleFunc("/end_session", p.endSession)
	// The library would answer more than its storage stands behind.
	mux.HandleFunc("GET /.well-known/openid-configuration", p.discovery)
	mux.Handle("/device_authorization", http.NotFoundHandler())
	mux.Handle("/", p.op)
	// A form posted from elsewhere could sign a visitor in as the attacker.
	guard := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		if r.URL.Path == loginPath {
			guard.Handler(mux).ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// discovery advertises what the provider does; the library's own document also names flows that no client here may use.
func (p *Provider) discovery(w http.ResponseWriter, r *http.Request) {
	doc := op.CreateDiscoveryConfig(op.ContextWithIssuer(r.Context(), p.issuer), p.op, p.store)
	doc.ResponseTypesSupported = []string{string(oidc.ResponseTypeCode)}
	doc.GrantTypesSupported = []oidc.GrantType{oidc.GrantTypeCode}
	doc.DeviceAuthorizationEndpoint = ""
	body, err := json.Marshal(doc)
	if err != nil {
		http.Error(w, "render discovery document", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // the client has gone: nobody is left to tell
}
