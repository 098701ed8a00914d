package session_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/identity"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/session"
	"github.com/iapmesh/iapmesh/node/state"
)

// What PROTOCOLS.md says of a session token, field by field.
func TestTokenIsWhatTheProtocolSays(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	token, _, err := m.minter("eu").Mint(m.view, session.Grant{
		Identity: identity.Identity{Subject: "okta/00u1"}, ID: "s1", Minted: revision.Revision{Epoch: 1, Index: 3},
	})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		t.Fatal(err)
	}
	h := parsed.Signatures[0].Protected
	krev := m.records.SigningKeys[m.kid("eu")].Revision.String()
	if h.KeyID != m.kid("eu") || h.ExtraHeaders["typ"] != "iapmesh-session+jwt" || h.ExtraHeaders["krev"] != krev {
		t.Errorf("header %+v, want krev %s", h, krev)
	}
	got := string(parsed.UnsafePayloadWithoutVerification())
	want := fmt.Sprintf(`{"iss":"https://mesh.example.com","aud":"session","iat":%d,"exp":%d,"sub":"okta/00u1","groups":[],"sid":"s1","rev":"1.3"}`,
		m.now.Unix(), m.now.Add(time.Hour).Unix())
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestMintRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(m *mesh, g *session.Grant)
		kind   fault.Kind
		is     error
	}{
		"blocked user": {func(m *mesh, _ *session.Grant) { m.revoke(keyring.RevokeSubject, "okta/00u1", true) }, fault.Denied, session.ErrBlocked},
		"sign-in revoked since": {func(m *mesh, g *session.Grant) {
			g.Minted = m.at
			m.revoke(keyring.RevokeSubject, "okta/00u1", false)
		}, fault.Unauthenticated, session.ErrRevoked},
		"session revoked": {func(m *mesh, g *session.Grant) {
			g.ID = "s1"
			m.revoke(keyring.RevokeSession, "s1", false)
		}, fault.Unauthenticated, session.ErrRevoked},
		"no identity":     {func(_ *mesh, g *session.Grant) { g.Identity = identity.Identity{} }, fault.Invalid, nil},
		"bad session id":  {func(_ *mesh, g *session.Grant) { g.ID = "a/b" }, fault.Invalid, nil},
		"too many groups": {func(_ *mesh, g *session.Grant) { g.Identity.Groups = groups(1000) }, fault.Invalid, nil},
		"no settings":     {func(m *mesh, _ *session.Grant) { m.apply(zoneYAML) }, fault.Unavailable, nil},
		"quarantined":     {func(m *mesh, _ *session.Grant) { m.nodeState(keyring.NodeQuarantined) }, fault.Unavailable, nil},
		"key not active":  {func(m *mesh, _ *session.Grant) { m.keyState(keyring.SigningVerifyOnly) }, fault.Unavailable, nil},
		"key of another": {func(m *mesh, _ *session.Grant) {
			m.editKey(m.kid("eu"), func(k *keyring.SigningKey) { k.Node = "bill" })
		}, fault.Unavailable, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t)
			g := session.Grant{Identity: ana()}
			tc.change(m, &g)
			_, _, err := m.minter("eu").Mint(m.view, g)
			if !fault.Is(err, tc.kind) || (tc.is != nil && !errors.Is(err, tc.is)) {
				t.Errorf("%v (%v)", err, fault.KindOf(err))
			}
		})
	}
}

func TestSessionLifetimeIsTheSettings(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.apply(settingsYAML + "session_lifetime: 10m\n" + strings.TrimPrefix(routesYAML, "\n"))
	_, s := m.signIn("eu")
	if life := s.Expires.Sub(s.IssuedAt); life != 10*time.Minute {
		t.Errorf("%s", life)
	}
}

func TestTheLargestTokenFits(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	who := ana()
	who.Groups = groups(200)
	token, _, err := m.minter("eu").Mint(m.view, session.Grant{Identity: who})
	if err != nil {
		t.Fatal(err)
	}
	if s, err := m.verifier().Verify(m.view, m.route("billing"), token); err != nil || len(s.Identity.Groups) != 200 {
		t.Errorf("%d bytes: %v", len(token), err)
	}
}

// zoneYAML is a configuration without Settings.
const zoneYAML = "kind: Zone\nname: z\n"

func groups(n int) []string {
	g := make([]string, n)
	for i := range g {
		g[i] = fmt.Sprintf("okta/0d9f%032d", i) // as long as a GUID
	}
	return g
}

var _ session.KeyViews = (*state.Source)(nil)
