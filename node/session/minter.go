package session

import (
	"crypto/rand"
	"fmt"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/identity"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
)

// ErrBlocked says that the user is blocked: no new sign-in until an operator lifts it.
var ErrBlocked = fault.New(fault.Denied, "user is blocked")

// ErrClosed says that the mesh was restored and signs nobody in until an operator has confirmed it.
var ErrClosed = fault.New(fault.Unavailable, "the mesh was restored and awaits an operator: nobody signs in until then")

// Grant is what a session is minted for.
type Grant struct {
	Identity identity.Identity
	ID       string            // default: a new one. The same for the same sign-in on every host
	Host     string            // the one host that the session is for; default: any
	Minted   revision.Revision // the sign-in's, where it came from elsewhere; default: the view's
}

// Minter mints sessions with the node's own keys. It is safe for concurrent use.
type Minter struct {
	keys *Keys
	now  func() time.Time
}

// NewMinter makes a Minter; a nil now is time.Now.
func NewMinter(keys *Keys, now func() time.Time) *Minter {
	if now == nil {
		now = time.Now
	}
	return &Minter{keys: keys, now: now}
}

// Mint returns a token and the session in it. Errors: ErrClosed; ErrBlocked; ErrRevoked if the sign-in was revoked since; Invalid for an
// identity that is none or does not fit; Unavailable while this node cannot mint.
func (m *Minter) Mint(view *state.View, g Grant) (string, *Session, error) {
	if err := g.Identity.Validate(); err != nil {
		return "", nil, err
	}
	if g.ID == "" {
		g.ID = rand.Text()
	} else if err := keyring.ValidSessionID(g.ID); err != nil {
		return "", nil, err
	}
	if g.Minted.IsZero() {
		g.Minted = view.Revision
	}
	if err := view.Keyring.Closed(); err != nil {
		return "", nil, fmt.Errorf("%w: %w", ErrClosed, err)
	}
	if view.Keyring.Fenced(g.Minted) {
		return "", nil, revoked("signed in at revision %s, before the mesh was restored", g.Minted)
	}
	if view.Keyring.Blocked(g.Identity.Subject) != nil {
		return "", nil, ErrBlocked
	}
	if r := view.Keyring.Revoked(g.ID, g.Identity.Subject, g.Minted); r != nil {
		return "", nil, revoked("%s, at revision %s", r.Kind, r.Revision)
	}
	settings := view.Config.Settings
	if settings == nil || settings.Issuer == "" {
		return "", nil, fault.New(fault.Unavailable, "mint a session: no Settings with an issuer was applied")
	}
	key, node, err := m.keys.signer(view)
	if err != nil {
		return "", nil, err
	}
	now := m.now().Truncate(time.Second)
	s := &Session{
		Identity: g.Identity, ID: g.ID, Host: g.Host, Minted: g.Minted, KID: key.record.KID, MintingNode: node.ID, MintingKey: node.ProvisioningKey,
		IssuedAt: now, Expires: now.Add(time.Duration(settings.SessionLifetime)).Truncate(time.Second), issuer: settings.Issuer,
	}
	c := claims{
		registered: registered{settings.Issuer, sessions().audience, s.IssuedAt.Unix(), s.Expires.Unix()},
		Subject:    g.Identity.Subject, Email: g.Identity.Email, Name: g.Identity.Name, Groups: g.Identity.Groups,
		Session: s.ID, Host: s.Host, AMR: g.Identity.AMR, Revision: s.Minted.String(),
	}
	if c.Groups == nil {
		c.Groups = []string{}
	}
	if t := g.Identity.AuthTime; !t.IsZero() {
		c.AuthTime = t.Unix()
	}
	token, err := sign(key, sessions(), c)
	if err != nil {
		return "", nil, err
	}
	m.keys.metrics.minted.Inc()
	return token, s, nil
}

// Sign signs body for a purpose other than a session, for as long as the purpose allows. Verifier.VerifyAs is its inverse.
func (m *Minter) Sign(view *state.View, p Purpose, body any) (string, error) {
	settings := view.Config.Settings
	switch {
	case p.typ == "" || p.typ == sessionType || p.audience == "":
		return "", fault.New(fault.Internal, "sign a token: want a purpose and an audience")
	case settings == nil || settings.Issuer == "":
		return "", fault.New(fault.Unavailable, "sign %s: no Settings with an issuer was applied", p.typ)
	}
	key, _, err := m.keys.signer(view)
	if err != nil {
		return "", err
	}
	now := m.now().Truncate(time.Second)
	return sign(key, p, struct {
		registered
		ID   string `json:"jti"`
		Body any    `json:"body"`
	}{registered{settings.Issuer, p.audience, now.Unix(), now.Add(p.life).Unix()}, rand.Text(), body})
}
