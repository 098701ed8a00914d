package idp

import (
	"slices"
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// authRequest is one attempt to sign in, from /authorize to the exchange of its code. It is never changed: who finished it is
// set on a copy.
type authRequest struct {
	id      string
	request oidc.AuthRequest
	hinted  string // the subject of id_token_hint, if any
	expires time.Time

	subject  string // empty until the user has signed in
	authTime time.Time
}

var _ op.AuthRequest = authRequest{}

func (a authRequest) GetID() string                      { return a.id }
func (a authRequest) GetACR() string                     { return "" }
func (a authRequest) GetAMR() []string                   { return []string{"pwd"} } // RFC 8176
func (a authRequest) GetAudience() []string              { return []string{a.request.ClientID} }
func (a authRequest) GetAuthTime() time.Time             { return a.authTime }
func (a authRequest) GetClientID() string                { return a.request.ClientID }
func (a authRequest) GetNonce() string                   { return a.request.Nonce }
func (a authRequest) GetRedirectURI() string             { return a.request.RedirectURI }
func (a authRequest) GetResponseType() oidc.ResponseType { return a.request.ResponseType }
func (a authRequest) GetResponseMode() oidc.ResponseMode { return a.request.ResponseMode }
func (a authRequest) GetScopes() []string                { return a.request.Scopes }
func (a authRequest) GetState() string                   { return a.request.State }
func (a authRequest) GetSubject() string                 { return a.subject }
func (a authRequest) Done() bool                         { return a.subject != "" }

func (a authRequest) GetCodeChallenge() *oidc.CodeChallenge {
	return &oidc.CodeChallenge{Challenge: a.request.CodeChallenge, Method: a.request.CodeChallengeMethod}
}

func (a authRequest) prompts(prompt string) bool { return slices.Contains(a.request.Prompt, prompt) }

// accepts reports whether an earlier sign-in is recent enough, and by whom the client expects it to be.
func (a authRequest) accepts(s session, now time.Time) bool {
	if a.prompts(oidc.PromptLogin) || a.prompts(oidc.PromptSelectAccount) {
		return false
	}
	if max := a.request.MaxAge; max != nil && now.Sub(s.authTime) > time.Duration(min(*max, 1<<31))*time.Second {
		return false
	}
	return a.hinted == "" || a.hinted == s.subject
}
