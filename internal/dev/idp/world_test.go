package idp_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/iapmesh/iapmesh/internal/dev"
	"github.com/iapmesh/iapmesh/internal/dev/ca"
	"github.com/iapmesh/iapmesh/internal/dev/idp"
)

// world is a provider and a relying party that run, and a browser that trusts both.
type world struct {
	t        *testing.T
	provider *idp.Provider
	browser  *dev.Browser
	client   *http.Client // the relying party's
	oauth    oauth2.Config
	oidc     *oidc.Provider
	clock    *atomic.Int64 // seconds that the provider's clock is ahead
}

func start(t *testing.T, change func(*idp.Config)) *world {
	t.Helper()
	authority, err := ca.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := authority.Leaf("auth.localhost", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	serve := func(h http.Handler) *httptest.Server {
		s := httptest.NewUnstartedServer(h)
		s.TLS = &tls.Config{Certificates: []tls.Certificate{leaf}}
		s.StartTLS()
		t.Cleanup(s.Close)
		return s
	}
	// The relying party's callback shows what it was sent.
	party := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.URL.RawQuery) }))
	_, port, err := net.SplitHostPort(party.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	redirect := "https://auth.localhost:" + port + "/.iapmesh/callback"

	var handler atomic.Pointer[http.Handler]
	server := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*handler.Load()).ServeHTTP(w, r) }))
	w := &world{t: t, clock: new(atomic.Int64)}
	config := idp.Config{
		Issuer: server.URL, ClientID: "iapmesh", ClientSecret: "a secret/with+signs:", RedirectURIs: []string{redirect},
		Now: func() time.Time { return time.Now().Add(time.Duration(w.clock.Load()) * time.Second) },
	}
	if change != nil {
		change(&config)
	}
	if w.provider, err = idp.New(config); err != nil {
		t.Fatal(err)
	}
	h := w.provider.Handler()
	handler.Store(&h)
	w.browser = dev.NewBrowser(dev.Config{CA: authority.Pool()})
	w.client = dev.Client(dev.Config{CA: authority.Pool(), NoRedirects: true})
	t.Cleanup(w.browser.Client.CloseIdleConnections)
	t.Cleanup(w.client.CloseIdleConnections)
	if w.oidc, err = oidc.NewProvider(oidc.ClientContext(t.Context(), w.client), server.URL); err != nil {
		t.Fatal(err)
	}
	w.oauth = oauth2.Config{
		ClientID: config.ClientID, ClientSecret: config.ClientSecret, RedirectURL: redirect, Endpoint: w.oidc.Endpoint(),
		Scopes: []string{oidc.ScopeOpenID, "email", "profile", "groups"},
	}
	return w
}

func (w *world) password(username string) string {
	for _, u := range w.provider.Users() {
		if u.Username == username {
			return u.Password
		}
	}
	w.t.Fatalf("no user %s", username)
	return ""
}

func (w *world) ctx() context.Context { return oidc.ClientContext(w.t.Context(), w.client) }

const verifier = "a-pkce-verifier-that-is-at-least-43-characters-long"

func (w *world) authorizeURL(options ...oauth2.AuthCodeOption) string {
	return w.oauth.AuthCodeURL("the state", append(options, oauth2.S256ChallengeOption(verifier), oidc.Nonce("the nonce"))...)
}

// arrived is the query with which a browser came to the callback.
func (w *world) arrived(page *http.Response, err error) url.Values {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
	body, err := io.ReadAll(page.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	if page.Request.URL.Path != "/.iapmesh/callback" {
		w.t.Fatalf("arrived at %s with %d: %s", page.Request.URL, page.StatusCode, body)
	}
	query, err := url.ParseQuery(string(body))
	if err != nil {
		w.t.Fatal(err)
	}
	return query
}

type claims struct {
	Subject       string   `json:"sub"`
	Email         string   `json:"email"`
	EmailVerified bool     `json:"email_verified"`
	Name          string   `json:"name"`
	Groups        []string `json:"groups"`
	AuthTime      int64    `json:"auth_time"`
	AMR           []string `json:"amr"`
}

func (w *world) exchange(code string) (claims, *oauth2.Token) {
	w.t.Helper()
	token, err := w.oauth.Exchange(w.ctx(), code, oauth2.VerifierOption(verifier))
	if err != nil {
		w.t.Fatal(err)
	}
	raw, _ := token.Extra("id_token").(string)
	verified, err := w.oidc.Verifier(&oidc.Config{ClientID: w.oauth.ClientID}).Verify(w.ctx(), raw)
	if err != nil {
		w.t.Fatal(err)
	}
	if verified.Nonce != "the nonce" {
		w.t.Errorf("nonce %q", verified.Nonce)
	}
	if err := verified.VerifyAccessToken(token.AccessToken); err != nil {
		w.t.Error(err)
	}
	var c claims
	if err := verified.Claims(&c); err != nil {
		w.t.Fatal(err)
	}
	return c, token
}
