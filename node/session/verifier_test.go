package session_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/session"
	"github.com/iapmesh/iapmesh/node/state"
)

func TestASessionMeansTheSameOnEveryNode(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	token, minted := m.signIn("eu")
	verified, err := m.verifier().Verify(m.view, m.route("payroll"), token)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(minted, verified, cmpopts.IgnoreUnexported(session.Session{}), cmpopts.EquateApproxTime(0)); diff != "" {
		t.Errorf("minted and verified differ:\n%s", diff)
	}
	want := &session.Session{
		Identity: ana(), ID: minted.ID, Minted: m.at, KID: m.kid("eu"), MintingNode: "eu", MintingKey: "key-of-eu",
		IssuedAt: m.now, Expires: m.now.Add(time.Hour),
	}
	if diff := cmp.Diff(want, verified, cmpopts.IgnoreUnexported(session.Session{}), cmpopts.EquateApproxTime(0)); diff != "" {
		t.Errorf("verified:\n%s", diff)
	}
}

// What a view can change about a token that was good, once with its signature in the cache and once without.
func TestPermissionIsLookedUpInTheView(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(m *mesh, s *session.Session)
		want   error // nil: still good
	}{
		"nothing":              {func(m *mesh, _ *session.Session) { m.commit(func(*keyring.Contents) {}) }, nil},
		"session revoked":      {func(m *mesh, s *session.Session) { m.revoke(keyring.RevokeSession, s.ID, false) }, session.ErrRevoked},
		"other session":        {func(m *mesh, s *session.Session) { m.revoke(keyring.RevokeSession, s.ID+"x", false) }, nil},
		"user revoked":         {func(m *mesh, s *session.Session) { m.revoke(keyring.RevokeSubject, s.Identity.Subject, false) }, session.ErrRevoked},
		"user blocked":         {func(m *mesh, s *session.Session) { m.revoke(keyring.RevokeSubject, s.Identity.Subject, true) }, session.ErrRevoked},
		"other user":           {func(m *mesh, _ *session.Session) { m.revoke(keyring.RevokeSubject, "okta/00u2", true) }, nil},
		"node quarantined":     {func(m *mesh, _ *session.Session) { m.nodeState(keyring.NodeQuarantined) }, session.ErrRevoked},
		"node revoked":         {func(m *mesh, _ *session.Session) { m.nodeState(keyring.NodeRevoked) }, session.ErrRevoked},
		"node departed":        {func(m *mesh, _ *session.Session) { m.nodeState(keyring.NodeDeparted) }, nil},
		"node lapsed":          {func(m *mesh, _ *session.Session) { m.nodeState(keyring.NodeLapsed) }, nil},
		"node state not known": {func(m *mesh, _ *session.Session) { m.nodeState("") }, session.ErrInvalid},
		"node gone": {func(m *mesh, _ *session.Session) {
			m.commit(func(c *keyring.Contents) { delete(c.Nodes, "eu") })
		}, session.ErrInvalid},
		"node no proxy": {func(m *mesh, _ *session.Session) {
			m.editNode("eu", func(n *keyring.Node) { n.Roles = []keyring.Role{keyring.RoleControl} })
		}, session.ErrInvalid},
		"selector narrowed": {func(m *mesh, _ *session.Session) {
			m.editNode("eu", func(n *keyring.Node) { n.RouteSelector = "payroll" })
		}, session.ErrInvalid},
		"key announced":   {func(m *mesh, _ *session.Session) { m.keyState(keyring.SigningAnnounced) }, nil},
		"key verify only": {func(m *mesh, _ *session.Session) { m.keyState(keyring.SigningVerifyOnly) }, nil},
		"key retired":     {func(m *mesh, _ *session.Session) { m.keyState(keyring.SigningRetired) }, session.ErrInvalid},
		"key revoked":     {func(m *mesh, _ *session.Session) { m.keyState(keyring.SigningRevoked) }, session.ErrRevoked},
		"key is another": {func(m *mesh, _ *session.Session) {
			m.editKey(m.kid("eu"), func(k *keyring.SigningKey) { k.PublicKey = m.records.Nodes["bill"].PublicKey })
		}, session.ErrInvalid},
		"key signs assertions": {func(m *mesh, _ *session.Session) {
			m.editKey(m.kid("eu"), func(k *keyring.SigningKey) { k.Kind = keyring.SigningAssertion })
		}, session.ErrInvalid},
		"key gone": {func(m *mesh, _ *session.Session) {
			m.commit(func(c *keyring.Contents) { delete(c.SigningKeys, m.kid("eu")) })
		}, session.ErrInvalid},
		"issuer changed": {func(m *mesh, _ *session.Session) {
			m.apply(strings.Replace(settingsYAML, "https://mesh.", "https://other.", 1) + routesYAML)
		}, session.ErrInvalid},
		"expired":          {func(m *mesh, s *session.Session) { m.now = s.Expires.Add(keyring.Skew) }, session.ErrExpired},
		"within the skew":  {func(m *mesh, s *session.Session) { m.now = s.Expires.Add(keyring.Skew - 1) }, nil},
		"before its issue": {func(m *mesh, s *session.Session) { m.now = s.IssuedAt.Add(-keyring.Skew) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t)
			token, s := m.signIn("eu")
			cached := m.verifier()
			if _, err := cached.Verify(m.view, m.route("billing"), token); err != nil {
				t.Fatal(err)
			}
			tc.change(m, s)
			for how, v := range map[string]*session.Verifier{"cached": cached, "cold": m.verifier()} {
				for range 2 { // the second time from the memo of this view
					_, err := v.Verify(m.view, m.route("billing"), token)
					if !errors.Is(err, tc.want) {
						t.Errorf("%s: %v, want %v", how, err, tc.want)
					}
					if tc.want != nil && !fault.Is(err, fault.Unauthenticated) {
						t.Errorf("%s: kind %v", how, fault.KindOf(err))
					}
					if name == "selector narrowed" {
						continue // the mesh's own pages belong to no route
					}
					if _, err := v.Identify(m.view, token); !errors.Is(err, tc.want) {
						t.Errorf("%s, identify: %v, want %v", how, err, tc.want)
					}
				}
			}
		})
	}
}

func (m *mesh) nodeState(s keyring.NodeState) {
	m.editNode("eu", func(n *keyring.Node) { n.State, n.StateSince = s, m.now })
}

func (m *mesh) keyState(s keyring.SigningState) {
	m.editKey(m.kid("eu"), func(k *keyring.SigningKey) { k.State = s })
}

// Revocation goes by revision: what was minted at or after it counts again, unless the user is blocked.
func TestASignInAfterTheRevocationCounts(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	old, _ := m.signIn("eu")
	m.revoke(keyring.RevokeSubject, ana().Subject, false)
	fresh, s := m.signIn("eu")
	v := m.verifier()
	if _, err := v.Verify(m.view, m.route("billing"), old); !errors.Is(err, session.ErrRevoked) {
		t.Errorf("minted before: %v", err)
	}
	if _, err := v.Verify(m.view, m.route("billing"), fresh); err != nil || s.Minted != m.at {
		t.Errorf("minted at the revocation: %v", err)
	}
	m.revoke(keyring.RevokeSubject, ana().Subject, true)
	if _, err := v.Verify(m.view, m.route("billing"), fresh); !errors.Is(err, session.ErrRevoked) {
		t.Errorf("blocked: %v", err)
	}
}

func TestANodeSpeaksOnlyForItsRoutes(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	token, _ := m.signIn("bill")
	v := m.verifier()
	for range 2 {
		if _, err := v.Verify(m.view, m.route("billing"), token); err != nil {
			t.Errorf("its own route: %v", err)
		}
		if _, err := v.Verify(m.view, m.route("payroll"), token); !errors.Is(err, session.ErrInvalid) {
			t.Errorf("another's route: %v", err)
		}
	}
	if _, err := v.Verify(m.view, nil, token); !errors.Is(err, session.ErrInvalid) {
		t.Errorf("no route: %v", err)
	}
	if s, err := v.Identify(m.view, token); err != nil || s.Identity.Subject != ana().Subject {
		t.Errorf("the mesh's own pages: %v", err)
	}
}

// A cached session follows its minting node's lineage, and the old one is left as it was for whoever holds it.
func TestLineageFollowsTheRecord(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	token, _ := m.signIn("eu")
	v := m.verifier()
	before, err := v.Verify(m.view, m.route("billing"), token)
	if err != nil {
		t.Fatal(err)
	}
	m.commit(func(*keyring.Contents) {})
	if same, _ := v.Verify(m.view, m.route("billing"), token); same != before {
		t.Error("another Session although nothing has changed")
	}
	m.editNode("eu", func(n *keyring.Node) { n.ProvisioningKey = "another" })
	after, err := v.Verify(m.view, m.route("billing"), token)
	if err != nil || after.MintingKey != "another" || before.MintingKey != "key-of-eu" {
		t.Errorf("%v: before %q, after %q", err, before.MintingKey, after.MintingKey)
	}
}

func TestAKeyNewerThanTheViewIsWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // half a second is soon over on a busy machine
		m := newMesh(t)
		old := m.view
		m.join("new", "")
		token, _ := m.signIn("new")
		v := m.verifier()
		_, err := v.Verify(old, m.route("billing"), token)
		var unknown *session.UnknownKeyError
		if !errors.As(err, &unknown) || !unknown.Newer || unknown.KID != m.kid("new") || unknown.Needs != m.at {
			t.Fatalf("%v: want a newer key at %v", err, m.at)
		}
		if !fault.Is(err, fault.Unavailable) || errors.Is(err, session.ErrInvalid) {
			t.Errorf("kind %v: want unavailable, so that it is never a sign-in", fault.KindOf(err))
		}
		source, commit := m.source(old)
		arrived := make(chan *state.View, 1)
		go func() {
			view, err := v.Await(t.Context(), source, err)
			if err != nil {
				t.Errorf("await: %v", err)
			}
			arrived <- view
		}()
		synctest.Wait()
		if len(arrived) != 0 {
			t.Error("it is not waited for")
		}
		commit(m.view)
		view := <-arrived
		if view == nil {
			t.FailNow()
		}
		if _, err := v.Verify(view, m.route("billing"), token); err != nil {
			t.Errorf("in the view that was waited for: %v", err)
		}
	})
}

func TestWhatNoViewCanMendIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	for _, err := range []error{session.ErrExpired, &session.UnknownKeyError{KID: "k"}} {
		if view, got := session.NewVerifier(session.Config{}).Await(t.Context(), never{}, err); !errors.Is(got, err) || view != nil {
			t.Errorf("%v became %v", err, got)
		}
	}
}

// never is a source whose next view does not come.
type never struct{}

func (never) WaitRevision(ctx context.Context, _ revision.Revision) (*state.View, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// Forged headers cannot pile up requests: beyond a bound nobody waits.
func TestFewWaitAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := session.NewVerifier(session.Config{})
		asked := &session.UnknownKeyError{KID: "k", Newer: true, Needs: revision.Revision{Epoch: 9}}
		began := time.Now()
		var wg sync.WaitGroup
		var atOnce atomic.Int64
		for range 300 {
			wg.Go(func() {
				if _, err := v.Await(t.Context(), never{}, asked); !errors.Is(err, asked) {
					t.Errorf("%v", err)
				}
				if time.Since(began) == 0 {
					atOnce.Add(1)
				}
			})
		}
		wg.Wait()
		if n := atOnce.Load(); n != 300-256 {
			t.Errorf("%d did not wait", n)
		}
		if took := time.Since(began); took != 500*time.Millisecond {
			t.Errorf("the others waited %s", took)
		}
	})
}

func TestAnUnknownKeyOfAnOldRevisionIsASignIn(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	token, _ := m.signIn("eu")
	m.commit(func(c *keyring.Contents) { delete(c.SigningKeys, m.kid("eu")) })
	_, err := m.verifier().Verify(m.view, m.route("billing"), token)
	var unknown *session.UnknownKeyError
	if !errors.As(err, &unknown) || unknown.Newer || !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("%v", err)
	}
}

// A full cache forgets, and forgets nothing that matters.
func TestASmallCacheStillVerifies(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	registry := prometheus.NewPedanticRegistry()
	v := session.NewVerifier(session.Config{Now: m.clock, CacheSize: 8, Registerer: registry})
	tokens := make([]string, 40)
	for i := range tokens {
		tokens[i], _ = m.signIn("eu")
	}
	for range 2 {
		for i, token := range tokens {
			if _, err := v.Verify(m.view, m.route("billing"), token); err != nil {
				t.Fatalf("token %d: %v", i, err)
			}
			m.now = m.now.Add(time.Second)
		}
	}
	recent := 0
	for range v.Recent(time.Hour) {
		recent++
	}
	if recent != 8 {
		t.Errorf("%d in a cache of 8", recent)
	}
	if n, err := testutil.GatherAndCount(registry, "iapmesh_session_cache_hits_total", "iapmesh_session_cache_misses_total"); n != 2 || err != nil {
		t.Errorf("%d metrics, %v", n, err)
	}
}

// Views are swapped while tokens are verified: whoever loads a view gets that view's answer.
func TestVerifyWhileViewsChange(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	token, s := m.signIn("eu")
	good := m.view
	bad := m.revoke(keyring.RevokeSession, s.ID, false)
	v := m.verifier()
	route := m.route("billing")
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				view, want := good, error(nil)
				if (i+worker)%2 == 0 {
					view, want = bad, session.ErrRevoked
				}
				if _, err := v.Verify(view, route, token); !errors.Is(err, want) {
					t.Errorf("%v, want %v", err, want)
					return
				}
			}
		})
	}
	wg.Wait()
}
