package idp

import (
	"context"
	"slices"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// setClaims fills info with what the scopes ask for. Groups are always there, [] for none: a client that misses them would
// deny, and one that gets null might not.
func setClaims(info *oidc.UserInfo, u User, scopes []string) {
	info.Subject = u.Subject
	info.AppendClaims(scopeGroups, u.Groups)
	if slices.Contains(scopes, oidc.ScopeEmail) {
		info.Email, info.EmailVerified = u.Username, true
	}
	if slices.Contains(scopes, oidc.ScopeProfile) {
		info.Name, info.PreferredUsername = u.Name, u.Username
	}
}

// SetUserinfoFromRequest fills the id token.
func (s *storage) SetUserinfoFromRequest(_ context.Context, info *oidc.UserInfo, r op.IDTokenRequest, scopes []string) error {
	u, err := s.user(r.GetSubject())
	if err != nil {
		return err
	}
	setClaims(info, u, scopes)
	return nil
}

// SetUserinfoFromScopes is superseded by SetUserinfoFromRequest; the library calls both.
func (s *storage) SetUserinfoFromScopes(context.Context, *oidc.UserInfo, string, string, []string) error {
	return nil
}

// SetUserinfoFromToken answers the userinfo endpoint.
func (s *storage) SetUserinfoFromToken(_ context.Context, info *oidc.UserInfo, id, subject, _ string) error {
	t, ok := s.token(id, subject)
	if !ok {
		return fault.New(fault.Unauthenticated, "access token is unknown or has expired")
	}
	u, err := s.user(t.subject)
	if err != nil {
		return err
	}
	setClaims(info, u, t.scopes)
	return nil
}

// SetIntrospectionFromToken answers the introspection endpoint (RFC 7662); the library has authenticated the client.
func (s *storage) SetIntrospectionFromToken(_ context.Context, r *oidc.IntrospectionResponse, id, subject, clientID string) error {
	t, ok := s.token(id, subject)
	if !ok || t.clientID != clientID {
		return fault.New(fault.NotFound, "access token is unknown or has expired")
	}
	u, err := s.user(t.subject)
	if err != nil {
		return err
	}
	info := new(oidc.UserInfo)
	setClaims(info, u, t.scopes)
	r.SetUserInfo(info)
	r.Scope, r.ClientID, r.Expiration = t.scopes, t.clientID, oidc.FromTime(t.expires)
	return nil
}

func (s *storage) GetPrivateClaimsFromScopes(context.Context, string, string, []string) (map[string]any, error) {
	return nil, nil // access tokens are opaque: they carry no claims
}

func (s *storage) GetKeyByIDAndClientID(context.Context, string, string) (*jose.JSONWebKey, error) {
	return nil, fault.New(fault.NotFound, "the client has no keys: it authenticates by its secret")
}

func (s *storage) ValidateJWTProfileScopes(context.Context, string, []string) ([]string, error) {
	return nil, oidc.ErrUnsupportedGrantType()
}
