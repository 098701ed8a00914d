package login

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
	"golang.org/x/sync/singleflight"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/resource"
)

// How providers are talked to.
const (
	maxAnswer      = 1 << 20 // bytes of a provider's answer
	exchangeFor    = 15 * time.Second
	rediscoverEach = time.Hour
	failureFor     = 2 * time.Second // a provider that is down is not asked again by every user
)

// signingAlgorithms are those that an id token may be signed with: all asymmetric, SHA-1 and none left out.
var signingAlgorithms = []string{
	oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.EdDSA,
} // never written

// party is a provider as discovered, for one state of its specification.
type party struct {
	name       string
	digest     string // of the specification
	spec       resource.OIDC
	client     *http.Client
	oidc       *oidc.Provider
	endpoint   oauth2.Endpoint
	algorithms []string
	sendsIss   bool // the callback names the issuer (RFC 9207)
	fetched    time.Time
}

// failed is a discovery that went wrong lately.
type failed struct {
	digest string
	err    error
	until  time.Time
}

// providers discovers identity providers when they are first needed, and remembers them.
type providers struct {
	now      func() time.Time
	patience time.Duration // by which a provider may take longer; 0 but in tests
	flight   singleflight.Group

	mu     sync.Mutex
	known  map[string]*party // by name; guarded by mu
	failed map[string]failed // by name; guarded by mu
}

func newProviders(now func() time.Time) *providers {
	return &providers{now: now, known: map[string]*party{}, failed: map[string]failed{}}
}

// specDigest names a state of a provider's specification.
func specDigest(p *resource.IdentityProvider) string {
	spec, _ := json.Marshal(p.OIDC) // strings all of it
	sum := sha256.Sum256(spec)
	return hex.EncodeToString(sum[:])
}

// get returns a provider, discovered. Unavailable: it does not answer, or not as a provider does.
func (ps *providers) get(ctx context.Context, p *resource.IdentityProvider) (*party, error) {
	digest, now := specDigest(p), ps.now()
	ps.mu.Lock()
	known, lately := ps.known[p.Name], ps.failed[p.Name]
	ps.mu.Unlock()
	if known != nil && known.digest != digest {
		known = nil
	}
	if known != nil && now.Sub(known.fetched) < rediscoverEach {
		return known, nil
	}
	if lately.digest == digest && now.Before(lately.until) {
		return known.orElse(lately.err)
	}
	// The flight is everybody's: it does not end with the request that began it.
	done := ps.flight.DoChan(p.Name+"/"+digest, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), exchangeFor+ps.patience)
		defer cancel()
		found, err := discover(ctx, p, digest, ps.patience)
		ps.mu.Lock()
		defer ps.mu.Unlock()
		if err != nil {
			ps.failed[p.Name] = failed{digest, err, ps.now().Add(failureFor)}
			return nil, err
		}
		delete(ps.failed, p.Name)
		if old := ps.known[p.Name]; old != nil {
			old.client.CloseIdleConnections()
		}
		found.fetched = ps.now()
		ps.known[p.Name] = found
		return found, nil
	})
	select {
	case <-ctx.Done():
		return known.orElse(fault.New(fault.Unavailable, "discover provider %s: %w", p.Name, context.Cause(ctx)))
	case result := <-done:
		if result.Err != nil {
			return known.orElse(result.Err)
		}
		return result.Val.(*party), nil
	}
}

// orElse is the provider as it was known before, for one that cannot be discovered again just now.
func (p *party) orElse(err error) (*party, error) {
	if p == nil {
		return nil, err
	}
	return p, nil
}

func discover(ctx context.Context, p *resource.IdentityProvider, digest string, patience time.Duration) (*party, error) {
	client, err := providerClient(p.OIDC.CA, patience)
	if err != nil {
		return nil, fmt.Errorf("provider %s: %w", p.Name, err)
	}
	found, err := oidc.NewProvider(oidc.ClientContext(ctx, client), p.OIDC.Issuer)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "discover provider %s: %w", p.Name, withoutAddress(err))
	}
	var more struct {
		JWKS        string   `json:"jwks_uri"`
		Algorithms  []string `json:"id_token_signing_alg_values_supported"`
		AuthMethods []string `json:"token_endpoint_auth_methods_supported"`
		SendsIss    bool     `json:"authorization_response_iss_parameter_supported"`
	}
	if err := found.Claims(&more); err != nil {
		return nil, fault.New(fault.Unavailable, "discover provider %s: %w", p.Name, err)
	}
	out := &party{name: p.Name, digest: digest, spec: p.OIDC, client: client, oidc: found, endpoint: found.Endpoint(), sendsIss: more.SendsIss}
	for _, endpoint := range []string{out.endpoint.AuthURL, out.endpoint.TokenURL, more.JWKS} {
		if u, err := url.Parse(endpoint); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
			return nil, fault.New(fault.Unavailable, "discover provider %s: endpoint %.200q is no https URL", p.Name, endpoint)
		}
	}
	for _, a := range more.Algorithms {
		if slices.Contains(signingAlgorithms, a) {
			out.algorithms = append(out.algorithms, a)
		}
	}
	if len(out.algorithms) == 0 {
		out.algorithms = []string{oidc.RS256} // which each provider must support (OpenID Connect Core 1.0 §15.1)
	}
	// Said outright, so that x/oauth2 does not find out by trial: a code may be tried once.
	out.endpoint.AuthStyle = oauth2.AuthStyleInHeader
	if m := more.AuthMethods; p.OIDC.ClientSecret.Secret == "" || (m != nil && !slices.Contains(m, "client_secret_basic")) {
		out.endpoint.AuthStyle = oauth2.AuthStyleInParams
	}
	return out, nil
}

// oauth is the provider as the oauth2 package knows it.
func (p *party) oauth(secret, redirect string) *oauth2.Config {
	scopes := p.spec.Scopes
	if len(scopes) == 0 {
		scopes = []string{oidc.ScopeOpenID, oidc.ScopeEmail, oidc.ScopeProfile}
	}
	return &oauth2.Config{ClientID: p.spec.ClientID, ClientSecret: secret, Endpoint: p.endpoint, RedirectURL: redirect, Scopes: scopes}
}

// providerClient follows no redirects: a provider's endpoints are what its discovery document says.
func providerClient(ca string, patience time.Duration) (*http.Client, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM([]byte(ca)) {
			return nil, fault.New(fault.Invalid, "ca: holds no PEM certificate")
		}
	}
	return &http.Client{
		Timeout:       exchangeFor + patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("redirects are not followed") },
		Transport: capped{&http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: 5*time.Second + patience}).DialContext,
			TLSClientConfig:        config,
			TLSHandshakeTimeout:    5*time.Second + patience,
			ResponseHeaderTimeout:  10*time.Second + patience,
			MaxResponseHeaderBytes: 64 << 10,
			MaxIdleConnsPerHost:    4,
			IdleConnTimeout:        30 * time.Second,
			ForceAttemptHTTP2:      true,
		}},
	}, nil
}

// capped bounds answers: the libraries above read all there is.
type capped struct{ *http.Transport }

func (c capped) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := c.Transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	response.Body = &cappedBody{response.Body, maxAnswer}
	return response, nil
}

type cappedBody struct {
	io.ReadCloser
	left int
}

func (b *cappedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= n; b.left < 0 {
		return 0, fmt.Errorf("answer of more than %d bytes", maxAnswer)
	}
	return n, err
}

// withoutAddress strips the request's URL off an error: it may carry a code.
func withoutAddress(err error) error {
	var failed *url.Error
	if errors.As(err, &failed) {
		return failed.Err
	}
	return err
}
