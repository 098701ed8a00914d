// Package assertion tells applications who is calling: it issues the ES256 tokens that a request carries to its application, and
// publishes the keys that applications verify them with.
//
// Invariants. There is one key for each region and route selector, and it lies in the state encrypted to the nodes of that audience;
// an application is shown, on its own host, only keys whose selector covers one of the host's routes, so that a node that joined
// for one application cannot speak to another. A token is used again for 60 % of its life and never once its key has changed
// state. It leaves to others who may call (policy) and what else a request carries (node/proxy).
package assertion

import (
	"crypto/rand"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/identity"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/state"
)

// Header carries the assertion to every application; a route may name further ones.
const Header = "X-Iapmesh-Jwt-Assertion"

// reuseFor is how long a token is used again: an application that clocks differ from still has 40 % of its life.
const reuseFor = keyring.AssertionTokenLife * 6 / 10

// Subject is who is asserted. Identity is read and kept, never changed.
type Subject struct {
	Identity *identity.Identity
	Session  string // sid; empty for a caller without one
}

// Config is an Issuer's. Node and Secrets are required.
type Config struct {
	Node       string // id of this node
	Secrets    Secrets
	Now        func() time.Time      // default time.Now
	Registerer prometheus.Registerer // nil: no metrics
	CacheSize  int                   // tokens; default 16,384
}

// Secrets opens what is encrypted to this node; seal.Member is one.
type Secrets interface {
	Open(s *keyring.Snapshot, audience, name string) ([]byte, error)
}

// Issuer issues assertions. It is safe for concurrent use, and takes no lock.
type Issuer struct {
	cfg     Config
	key     signer
	cache   *cache
	metrics *metrics
}

// NewIssuer makes an Issuer.
func NewIssuer(cfg Config) *Issuer {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Issuer{
		cfg: cfg, key: signer{node: cfg.Node, secrets: cfg.Secrets}, cache: newCache(cfg.CacheSize), metrics: newMetrics(cfg.Registerer),
	}
}

type claims struct {
	Issuer   string   `json:"iss"`
	Audience string   `json:"aud"`
	Subject  string   `json:"sub"`
	Email    string   `json:"email,omitempty"`
	Name     string   `json:"name,omitempty"`
	Groups   []string `json:"groups"` // [] never null
	Session  string   `json:"sid,omitempty"`
	ID       string   `json:"jti"`
	IssuedAt int64    `json:"iat"`
	Expires  int64    `json:"exp"`
}

// For returns the assertion for the application behind a route, for a request to host (lower case, without port). Unavailable:
// this node has no key to sign with, or cannot open it, in this view.
func (i *Issuer) For(view *state.View, s Subject, route *resource.Route, host string) (string, error) {
	settings := view.Config.Settings
	if settings == nil || settings.Issuer == "" {
		return "", fault.New(fault.Unavailable, "assert: no Settings with an issuer was applied")
	}
	key := i.key.load(view)
	if key.err != nil {
		return "", key.err
	}
	audience := route.Assertion.Audience
	if audience == "" {
		audience = host
	}
	now := i.cfg.Now()
	want := issued{subject: s, audience: audience, issuer: settings.Issuer, kid: key.kid}
	want.hash = i.cache.hash(&want)
	if have := i.cache.get(&want, now); have != nil {
		i.metrics.hits.Inc()
		return have.token, nil
	}
	i.metrics.misses.Inc()
	token, err := key.sign(&want, now)
	if err != nil {
		return "", err
	}
	fresh := want // a copy, so that want stays on the stack where there is nothing to sign
	fresh.token, fresh.until = token, now.Add(reuseFor)
	i.cache.put(&fresh, now)
	return token, nil
}

func (k *current) sign(want *issued, now time.Time) (string, error) {
	who := want.subject.Identity
	now = now.Truncate(time.Second)
	c := claims{
		Issuer: want.issuer, Audience: want.audience, Subject: who.Subject, Email: who.Email, Name: who.Name, Groups: who.Groups,
		Session: want.subject.Session, ID: rand.Text(), IssuedAt: now.Unix(), Expires: now.Add(keyring.AssertionTokenLife).Unix(),
	}
	if c.Groups == nil {
		c.Groups = []string{}
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return "", fault.New(fault.Internal, "encode an assertion: %w", err)
	}
	signed, err := k.signer.Sign(payload)
	if err != nil {
		return "", fault.New(fault.Internal, "sign an assertion by key %s: %w", k.kid, err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		return "", fault.New(fault.Internal, "sign an assertion by key %s: %w", k.kid, err)
	}
	return token, nil
}

// same reports whether two identities make the same claims.
func same(a, b *identity.Identity) bool {
	return a == b || a.Subject == b.Subject && a.Email == b.Email && a.Name == b.Name && slices.Equal(a.Groups, b.Groups)
}

func newSigner(private any, kid string) (jose.Signer, error) {
	return jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: private, KeyID: kid}},
		(&jose.SignerOptions{}).WithType("JWT"))
}

// hostOf is a Host header without port, in lower case.
func hostOf(header string) (host, port string) {
	host, port, _ = strings.Cut(strings.ToLower(header), ":")
	return host, port
}
