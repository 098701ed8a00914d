package session_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/session"
	"github.com/iapmesh/iapmesh/node/state"
)

var errDenied = fault.New(fault.Denied, "no longer in the group")

// A node that is told that it was put out has another view of the revision that it has: a request that was let through by the one ends, too.
func TestNothingSlipsThroughBetweenTwoViewsOfOneRevision(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	live := session.NewLive(session.LiveConfig{Node: "bill", Now: m.clock})
	_, s := m.signIn("eu")
	before := m.view
	m.editNode("bill", func(n *keyring.Node) { n.State = keyring.NodeQuarantined })
	told := *m.view
	told.Revision = before.Revision
	live.Recheck(&told)
	ctx, release := live.Register(t.Context(), session.Entry{View: before, Session: s, Route: m.route("billing")})
	defer release()
	if !errors.Is(context.Cause(ctx), session.ErrNodeEnded) {
		t.Errorf("cause %v", context.Cause(ctx))
	}
}

func TestRecheckEndsWhatNoLongerHolds(t *testing.T) {
	t.Parallel()
	deny := func(*state.View) error { return errDenied }
	for name, tc := range map[string]struct {
		decide func(*state.View) error
		change func(m *mesh, s *session.Session)
		want   error // the cause; nil: goes on
	}{
		"nothing changed":  {deny, func(m *mesh, _ *session.Session) { m.commit(func(*keyring.Contents) {}) }, nil},
		"session revoked":  {nil, func(m *mesh, s *session.Session) { m.revoke(keyring.RevokeSession, s.ID, false) }, session.ErrRevoked},
		"user revoked":     {nil, func(m *mesh, s *session.Session) { m.revoke(keyring.RevokeSubject, s.Identity.Subject, false) }, session.ErrRevoked},
		"minting node out": {nil, func(m *mesh, _ *session.Session) { m.nodeState(keyring.NodeQuarantined) }, session.ErrRevoked},
		"minting node left": {nil, func(m *mesh, _ *session.Session) {
			m.nodeState(keyring.NodeDeparted)
		}, nil},
		"signing key revoked": {nil, func(m *mesh, _ *session.Session) { m.keyState(keyring.SigningRevoked) }, session.ErrRevoked},
		"this node out": {nil, func(m *mesh, _ *session.Session) {
			m.editNode("bill", func(n *keyring.Node) { n.State = keyring.NodeQuarantined })
		}, session.ErrNodeEnded},
		"route gone": {nil, func(m *mesh, _ *session.Session) {
			m.apply(settingsYAML + strings.ReplaceAll(routesYAML, "name: billing", "name: invoices"))
		}, session.ErrRouteGone},
		"issuer changed": {nil, func(m *mesh, _ *session.Session) {
			m.apply(strings.Replace(settingsYAML, "https://mesh.", "https://other.", 1) + routesYAML)
		}, session.ErrInvalid},
		"decision changed":   {deny, func(m *mesh, _ *session.Session) { m.apply(settingsYAML + routesYAML) }, errDenied},
		"decision unchanged": {func(*state.View) error { return nil }, func(m *mesh, _ *session.Session) { m.apply(settingsYAML + routesYAML) }, nil},
	} {
		for _, late := range []bool{false, true} {
			t.Run(name+map[bool]string{false: "", true: ", before it was registered"}[late], func(t *testing.T) {
				t.Parallel()
				m := newMesh(t)
				live := session.NewLive(session.LiveConfig{Node: "bill", Now: m.clock})
				_, s := m.signIn("eu")
				e := session.Entry{View: m.view, Session: s, Route: m.route("billing"), Decide: tc.decide}
				var ctx context.Context
				var release func()
				if late {
					tc.change(m, s)
					live.Recheck(m.view)
					ctx, release = live.Register(t.Context(), e)
				} else {
					ctx, release = live.Register(t.Context(), e)
					tc.change(m, s)
					live.Recheck(m.view)
				}
				defer release()
				if tc.want == nil {
					if ctx.Err() != nil {
						t.Errorf("ended: %v", context.Cause(ctx))
					}
					return
				}
				if !errors.Is(context.Cause(ctx), tc.want) {
					t.Errorf("cause %v, want %v", context.Cause(ctx), tc.want)
				}
			})
		}
	}
}

// A request that was let through by a newer view than the one being gone through is not ended by the older one.
func TestAnOlderViewEndsNothingOfANewerOne(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	old := m.view
	m.join("new", "")
	_, s := m.signIn("new")
	live := session.NewLive(session.LiveConfig{Now: m.clock})
	ctx, release := live.Register(t.Context(), session.Entry{View: m.view, Session: s, Route: m.route("billing")})
	defer release()
	live.Recheck(old)
	if ctx.Err() != nil {
		t.Errorf("ended: %v", context.Cause(ctx))
	}
}

func TestStatsCountWhatIsOpen(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	live := session.NewLive(session.LiveConfig{Now: m.clock})
	_, one := m.signIn("eu")
	_, two := m.signIn("eu")
	var releases []func()
	for _, e := range []session.Entry{{Session: one}, {Session: one, Stream: true}, {Session: two}, {Stream: true}} {
		e.View, e.Route = m.view, m.route("billing")
		_, release := live.Register(t.Context(), e)
		releases = append(releases, release)
	}
	if diff := cmp.Diff(session.Stats{Sessions: 2, Requests: 2, Streams: 2}, live.Stats(nil)); diff != "" {
		t.Error(diff)
	}
	recent := slices.Values([]string{one.ID, "another"})
	if diff := cmp.Diff(session.Stats{Sessions: 3, Requests: 2, Streams: 2}, live.Stats(recent)); diff != "" {
		t.Error(diff)
	}
	for _, release := range releases {
		release()
		release() // twice does no harm
	}
	if diff := cmp.Diff(session.Stats{}, live.Stats(nil)); diff != "" {
		t.Error(diff)
	}
}

func TestTimeEndsWhatViewsDoNot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		m.now = time.Now()
		live := session.NewLive(session.LiveConfig{})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := live.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		began := time.Now()
		_, s := m.signIn("eu")
		open, release := live.Register(ctx, session.Entry{View: m.view, Session: s, Route: m.route("billing"), Stream: true})
		defer release()
		officeHours := began.Add(30 * time.Minute)
		office, release2 := live.Register(ctx, session.Entry{View: m.view, Route: m.route("billing"), Decide: func(*state.View) error {
			if time.Now().Before(officeHours) {
				return nil
			}
			return errDenied
		}})
		defer release2()

		<-office.Done()
		if after := time.Since(began); !errors.Is(context.Cause(office), errDenied) || after > 31*time.Minute {
			t.Errorf("a condition on time: %v after %s", context.Cause(office), after)
		}
		<-open.Done()
		end := time.Hour + keyring.Skew
		if after := time.Since(began); !errors.Is(context.Cause(open), session.ErrExpired) || after < end-time.Second || after > end+2*time.Second {
			t.Errorf("a stream past exp: %v after %s", context.Cause(open), after)
		}
		cancel()
		wg.Wait()
	})
}

// Whatever the interleaving, nothing that is open survives the view that revokes it.
func TestNothingSlipsThrough(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	_, s := m.signIn("eu")
	good, route := m.view, m.route("billing")
	bad := m.revoke(keyring.RevokeSession, s.ID, false)
	for range 200 {
		live := session.NewLive(session.LiveConfig{Now: m.clock})
		var open atomic.Int64
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 5 {
					ctx, release := live.Register(t.Context(), session.Entry{View: good, Session: s, Route: route})
					open.Add(1)
					wg.Go(func() {
						<-ctx.Done()
						if !errors.Is(context.Cause(ctx), session.ErrRevoked) {
							t.Errorf("cause %v", context.Cause(ctx))
						}
						release()
						open.Add(-1)
					})
				}
			})
		}
		wg.Go(func() { live.Recheck(bad) })
		wg.Wait() // hangs if one slips through
		if n := open.Load(); n != 0 {
			t.Fatalf("%d still open", n)
		}
	}
}
