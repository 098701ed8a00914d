package idp

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/iapmesh/iapmesh/internal/fault"
)

const (
	attemptLifetime = 10 * time.Minute // to fill in the form
	codeLifetime    = time.Minute
	tokenLifetime   = 15 * time.Minute
	maxKept         = 10_000 // of attempts, codes, tokens and sessions each
)

// storage is what the provider remembers: attempts, codes, access tokens and sessions, each until it expires.
type storage struct {
	client   *client
	users    []User
	key      *rsa.PrivateKey
	kid      string
	lifetime time.Duration // of a session
	now      func() time.Time

	mu       sync.Mutex // guards all below
	attempts map[string]authRequest
	codes    map[string]code
	tokens   map[string]token
	sessions map[string]session
}

type code struct {
	attempt string
	expires time.Time
}

type token struct {
	subject, clientID string
	scopes            []string
	expires           time.Time
}

// session is a user's sign-in at the provider itself.
type session struct {
	subject  string
	authTime time.Time
	expires  time.Time
}

var (
	_ op.Storage                   = (*storage)(nil)
	_ op.CanSetUserinfoFromRequest = (*storage)(nil)
)

func newStorage(c Config, users []User, key *rsa.PrivateKey) *storage {
	sum := sha256.Sum256(x509.MarshalPKCS1PublicKey(&key.PublicKey))
	return &storage{
		client:   &client{id: c.ClientID, secret: c.ClientSecret, postLogout: slices.Clone(c.PostLogoutRedirectURIs)},
		users:    users,
		key:      key,
		kid:      base64.RawURLEncoding.EncodeToString(sum[:12]),
		lifetime: c.SessionLifetime,
		now:      c.Now,
		attempts: map[string]authRequest{},
		codes:    map[string]code{},
		tokens:   map[string]token{},
		sessions: map[string]session{},
	}
}

func (s *storage) user(subject string) (User, error) {
	for _, u := range s.users {
		if u.Subject == subject {
			return u, nil
		}
	}
	return User{}, fault.New(fault.NotFound, "no such user")
}

// prune drops what has expired from m and reports whether one more fits.
func prune[V any](m map[string]V, expired func(V) bool) bool {
	if len(m) >= maxKept/2 { // small maps need no sweep: expiry is checked on use
		maps.DeleteFunc(m, func(_ string, v V) bool { return expired(v) })
	}
	return len(m) < maxKept
}

func (s *storage) CreateAuthRequest(_ context.Context, r *oidc.AuthRequest, hinted string) (op.AuthRequest, error) {
	if r.CodeChallenge == "" || r.CodeChallengeMethod != oidc.CodeChallengeMethodS256 {
		return nil, oidc.ErrInvalidRequest().WithDescription("PKCE with S256 is required")
	}
	now := s.now()
	a := authRequest{id: rand.Text(), request: *r, hinted: hinted, expires: now.Add(attemptLifetime)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !prune(s.attempts, func(a authRequest) bool { return now.After(a.expires) }) {
		return nil, oidc.ErrServerError().WithDescription("too many sign-ins under way")
	}
	s.attempts[a.id] = a
	return a, nil
}

func (s *storage) attempt(id string) (authRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.attempts[id]
	if !ok || s.now().After(a.expires) {
		return authRequest{}, fault.New(fault.NotFound, "this sign-in is unknown or has expired")
	}
	return a, nil
}

func (s *storage) AuthRequestByID(_ context.Context, id string) (op.AuthRequest, error) {
	a, err := s.attempt(id)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// finish records who signed in.
func (s *storage) finish(id, subject string, authTime time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a, ok := s.attempts[id]; ok {
		a.subject, a.authTime = subject, authTime
		s.attempts[id] = a
	}
}

func (s *storage) SaveAuthCode(_ context.Context, id, value string) error {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !prune(s.codes, func(c code) bool { return now.After(c.expires) }) {
		return oidc.ErrServerError().WithDescription("too many codes")
	}
	s.codes[value] = code{attempt: id, expires: now.Add(codeLifetime)}
	return nil
}

// AuthRequestByCode takes the code with it: whatever follows, it has been used.
func (s *storage) AuthRequestByCode(_ context.Context, value string) (op.AuthRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.codes[value]
	delete(s.codes, value)
	a, known := s.attempts[c.attempt]
	if !ok || !known || s.now().After(c.expires) {
		return nil, fault.New(fault.NotFound, "code is unknown, used or expired")
	}
	return a, nil
}

func (s *storage) DeleteAuthRequest(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.attempts, id)
	return nil
}

func (s *storage) CreateAccessToken(_ context.Context, r op.TokenRequest) (string, time.Time, error) {
	now, id := s.now(), rand.Text()
	t := token{subject: r.GetSubject(), clientID: s.client.id, scopes: r.GetScopes(), expires: now.Add(tokenLifetime)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !prune(s.tokens, func(t token) bool { return now.After(t.expires) }) {
		return "", time.Time{}, oidc.ErrServerError().WithDescription("too many tokens")
	}
	s.tokens[id] = t
	return id, t.expires, nil
}

func (s *storage) token(id, subject string) (token, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tokens[id]
	return t, ok && t.subject == subject && !s.now().After(t.expires)
}

// The provider issues no refresh tokens: the client's grant types leave them out.

func (s *storage) CreateAccessAndRefreshTokens(context.Context, op.TokenRequest, string) (string, string, time.Time, error) {
	return "", "", time.Time{}, oidc.ErrUnsupportedGrantType()
}

func (s *storage) TokenRequestByRefreshToken(context.Context, string) (op.RefreshTokenRequest, error) {
	return nil, op.ErrInvalidRefreshToken
}

func (s *storage) GetRefreshTokenInfo(context.Context, string, string) (string, string, error) {
	return "", "", op.ErrInvalidRefreshToken
}

func (s *storage) RevokeToken(_ context.Context, id, subject, clientID string) *oidc.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.tokens[id]; ok && t.subject == subject {
		if t.clientID != clientID {
			return oidc.ErrInvalidClient().WithDescription("token was not issued to this client")
		}
		delete(s.tokens, id)
	}
	return nil // an unknown token counts as revoked (RFC 7009 §2.2)
}

func (s *storage) TerminateSession(_ context.Context, subject, _ string) error {
	if subject != "" { // without an id_token_hint the browser's own session, already ended, is all that is known
		s.endSessions(subject)
	}
	return nil
}

func (s *storage) GetClientByClientID(_ context.Context, id string) (op.Client, error) {
	if id != s.client.id {
		return nil, fault.New(fault.NotFound, "no such client")
	}
	return s.client, nil
}

func (s *storage) AuthorizeClientIDSecret(_ context.Context, id, secret string) error {
	want, got := sha256.Sum256([]byte(s.client.secret)), sha256.Sum256([]byte(secret))
	if id != s.client.id || subtle.ConstantTimeCompare(want[:], got[:]) != 1 {
		return fault.New(fault.Unauthenticated, "wrong client id or secret")
	}
	return nil
}

// signingKey and publicKey are the library's two views of the one RSA key.
type signingKey struct{ s *storage }

func (k signingKey) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (k signingKey) Key() any                                    { return k.s.key }
func (k signingKey) ID() string                                  { return k.s.kid }

type publicKey struct{ s *storage }

func (k publicKey) ID() string                         { return k.s.kid }
func (k publicKey) Algorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (k publicKey) Use() string                        { return "sig" }
func (k publicKey) Key() any                           { return &k.s.key.PublicKey }

func (s *storage) SigningKey(context.Context) (op.SigningKey, error) { return signingKey{s}, nil }

func (s *storage) SignatureAlgorithms(context.Context) ([]jose.SignatureAlgorithm, error) {
	return []jose.SignatureAlgorithm{jose.RS256}, nil
}

func (s *storage) KeySet(context.Context) ([]op.Key, error) { return []op.Key{publicKey{s}}, nil }

func (s *storage) Health(context.Context) error { return nil }
