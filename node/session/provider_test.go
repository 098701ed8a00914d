package session_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/session"
)

const otherIDP = `
---
kind: IdentityProvider
name: partner
oidc: {issuer: https://partner.example.com, client_id: iapmesh}
`

// A user of one provider is nobody to a route that names another: a partner's provider must not vouch for the staff's applications.
func TestARouteTakesSessionsOfItsProvidersAlone(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		providers string
		taken     bool
	}{
		"its own":        {"identity_providers: [okta]", true},
		"one of several": {"identity_providers: [partner, okta]", true},
		"another":        {"identity_providers: [partner]", false},
		"none":           {"", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t)
			token, s := m.signIn("eu")
			verifier, live := m.verifier(), session.NewLive(session.LiveConfig{Now: m.clock})
			if _, err := verifier.Verify(m.view, m.route("billing"), token); err != nil {
				t.Fatal(err)
			}
			ctx, release := live.Register(t.Context(), session.Entry{View: m.view, Session: s, Route: m.route("billing")})
			defer release()

			m.apply(settingsYAML + otherIDP + strings.ReplaceAll(routesYAML, "identity_providers: [okta]", tc.providers))
			live.Recheck(m.view)

			_, err := verifier.Verify(m.view, m.route("billing"), token)
			cause := context.Cause(ctx)
			if tc.taken {
				if err != nil || cause != nil {
					t.Errorf("verify: %v; open: %v", err, cause)
				}
				return
			}
			var other *session.ProviderError
			if !errors.As(err, &other) || other.Session.ID != s.ID || !fault.Is(err, fault.Denied) {
				t.Errorf("verify: %v", err)
			}
			if !errors.As(cause, &other) || !fault.Is(cause, fault.Denied) {
				t.Errorf("open: %v", cause)
			}
			if _, err := verifier.Identify(m.view, token); err != nil {
				t.Errorf("identify: %v", err)
			}
		})
	}
}
