// Package session mints and verifies the tokens that carry a user's sign-in through the mesh, and ends what is open once it no
// longer holds. A token is signed by the node that minted it, with a key whose private half never leaves that node; every other
// node verifies it by itself.
//
// Invariants. What is cached is the signature, never the permission: the expiry is checked on each hit, and when the view has
// changed, issuer, session, subject, kid, minting node and key are looked up again. A token of one purpose is refused for every
// other. A minting node speaks only for the routes that its selector covers. Nothing larger than MaxToken is parsed. Whatever is
// unknown is refused.
//
// It leaves to others who may see what (policy), how users prove who they are (node/login), and where requests go (node/proxy).
package session

import (
	"errors"
	"fmt"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/identity"
	"github.com/iapmesh/iapmesh/internal/revision"
)

// Session is a verified sign-in. It is shared between requests: read, never change.
type Session struct {
	Identity    identity.Identity
	ID          string            // sid: the same on every host, and after a refresh
	Host        string            // the one host that it is for, lower case without port; empty: any
	Minted      revision.Revision // rev: the minter's at sign-in; revocations committed later refuse it
	KID         string            // of the signing key
	MintingNode string            // node id
	MintingKey  string            // the provisioning key under which the minting node joined
	IssuedAt    time.Time
	Expires     time.Time // exp, to the second; keyring.Skew is tolerated after it

	issuer string // empty in a Session that no token carried
}

// On returns an error, ErrInvalid, unless the session is for the host. A cookie that one host's node or application got hold of is
// worth nothing on another host. Verify does not know the host: whoever reads a cookie asks.
func (s *Session) On(host string) error {
	if s.Host != "" && s.Host != host {
		return invalid("session of host %s", s.Host)
	}
	return nil
}

// Why a token is refused; compare with errors.Is. All are fault.Unauthenticated: signing in again is the way out.
var (
	ErrInvalid = fault.New(fault.Unauthenticated, "session is invalid")
	ErrExpired = fault.New(fault.Unauthenticated, "session has expired")
	ErrRevoked = fault.New(fault.Unauthenticated, "session is revoked")
)

// UnknownKeyError says that the view holds no signing key of that kid. If Newer, the token says that its key is younger than the
// view: Verifier.Await waits for it, and the answer is 503, never a sign-in. Otherwise it is as ErrInvalid.
type UnknownKeyError struct {
	KID   string
	Newer bool
	Needs revision.Revision // which the view must reach; zero unless Newer
}

func (e *UnknownKeyError) Error() string {
	if e.Newer {
		return fmt.Sprintf("signing key %s: this node has not yet reached revision %s", e.KID, e.Needs)
	}
	return fmt.Sprintf("signing key %s is unknown", e.KID)
}

// Unwrap carries the kind: Unavailable if Newer, otherwise Unauthenticated.
func (e *UnknownKeyError) Unwrap() error {
	if e.Newer {
		return fault.New(fault.Unavailable, "the view is too old")
	}
	return ErrInvalid
}

// ProviderError says that a session counts, but not here: its identity provider is none of those that the route names. It is Denied.
type ProviderError struct {
	Session *Session
	Route   string
}

func (e *ProviderError) Error() string {
	return fmt.Sprintf("route %s takes no users of identity provider %s", e.Route, e.Session.Identity.Provider())
}

// Unwrap carries the kind.
func (e *ProviderError) Unwrap() error {
	return fault.New(fault.Denied, "the session is of another identity provider")
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrInvalid, fmt.Errorf(format, args...))
}

func revoked(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrRevoked, fmt.Errorf(format, args...))
}

// reason names why a token was refused, for a metric's label.
func reason(err error) string {
	var unknown *UnknownKeyError
	var other *ProviderError
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &other):
		return "provider"
	case errors.As(err, &unknown) && unknown.Newer:
		return "newer_key"
	case errors.As(err, &unknown):
		return "unknown_key"
	case errors.Is(err, ErrExpired):
		return "expired"
	case errors.Is(err, ErrRevoked):
		return "revoked"
	}
	return "invalid"
}
