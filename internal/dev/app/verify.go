package app

import (
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/iapmesh/iapmesh/internal/fault"
)

const (
	maxAssertion = 16 << 10
	leeway       = time.Minute // clocks of two machines
)

// Claims are those of an assertion.
type Claims struct {
	jwt.Claims
	Email     string   `json:"email,omitempty"`
	Name      string   `json:"name,omitempty"`
	Groups    []string `json:"groups"`
	SessionID string   `json:"sid,omitempty"`
}

// Verifier checks assertions: JWS, ES256 and nothing else, by a key of the mesh's JWKS.
type Verifier struct {
	issuer, audience string
	keys             *keySet
	now              func() time.Time
}

// NewVerifier makes a verifier that believes what c says. It fetches nothing before it is first asked.
func NewVerifier(c Config) *Verifier {
	c = c.withDefaults("verifier")
	return &Verifier{issuer: c.Issuer, audience: c.Audience, now: c.Now, keys: newKeySet(c)}
}

// Caller says who calls by the request's assertion.
func (v *Verifier) Caller(r *http.Request) Caller {
	claims, err := v.verify(r)
	if err != nil {
		return Caller{Reason: err.Error()}
	}
	return Caller{Verified: true, Claims: &claims}
}

func (v *Verifier) verify(r *http.Request) (Claims, error) {
	refused := func(format string, args ...any) (Claims, error) {
		return Claims{}, fault.New(fault.Unauthenticated, format, args...)
	}
	values := r.Header.Values(AssertionHeader)
	switch {
	case len(values) == 0:
		return refused("no %s header", AssertionHeader)
	case len(values) > 1:
		return refused("%d %s headers", len(values), AssertionHeader)
	case len(values[0]) > maxAssertion:
		return refused("assertion of %d bytes: at most %d", len(values[0]), maxAssertion)
	case v.issuer == "" || v.audience == "":
		return refused("the application knows no issuer or audience to expect")
	}
	token, err := jwt.ParseSigned(values[0], []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return refused("parse assertion: %w", err)
	}
	header := token.Headers[0] // a compact JWS has exactly one
	// A token of another purpose (a session, a ticket) carries another type.
	if typ, _ := header.ExtraHeaders[jose.HeaderType].(string); typ != "JWT" {
		return refused("assertion of type %.40q, want JWT", typ)
	}
	if header.KeyID == "" {
		return refused("assertion names no key")
	}
	key, err := v.keys.find(r.Context(), header.KeyID)
	if err != nil {
		return Claims{}, err
	}
	var claims Claims
	if err := token.Claims(key, &claims); err != nil {
		return refused("verify assertion by key %.80q: %w", header.KeyID, err)
	}
	if claims.Expiry == nil || claims.IssuedAt == nil || claims.Subject == "" {
		return refused("assertion lacks sub, iat or exp")
	}
	expected := jwt.Expected{Issuer: v.issuer, AnyAudience: jwt.Audience{v.audience}, Time: v.now()}
	if err := claims.ValidateWithLeeway(expected, leeway); err != nil {
		return refused("assertion: %w (iss %.200q, aud %.200q; want %q, %q)", err, claims.Issuer, claims.Audience, v.issuer, v.audience)
	}
	claims.Groups = append([]string{}, claims.Groups...) // [] for none, never null
	return claims, nil
}
