package session_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/session"
)

// Who has left and kept a key signs for nobody; what it signed before it left counts until it is over, whatever two clocks say of when.
func TestADepartedNodeSignsNoMore(t *testing.T) {
	t.Parallel()
	depart := func(m *mesh, after time.Duration) { // after the token was issued
		m.editNode("eu", func(n *keyring.Node) { n.State, n.StateSince = keyring.NodeDeparted, m.now.Add(after) })
	}
	for name, tc := range map[string]struct {
		change func(m *mesh)
		want   error
	}{
		"it departs later":                   {func(m *mesh) { depart(m, time.Minute) }, nil},
		"as the token is issued":             {func(m *mesh) { depart(m, 0) }, nil},
		"before, as far as clocks can tell":  {func(m *mesh) { depart(m, -keyring.Skew) }, nil},
		"before":                             {func(m *mesh) { depart(m, -keyring.Skew-time.Second) }, session.ErrInvalid},
		"its key stopped before, it goes on": {func(m *mesh) { m.stopSigning(-time.Hour) }, nil}, // cut off, it has not heard
		"its key stopped before, it departs": {func(m *mesh) { m.stopSigning(-time.Hour); depart(m, -30*time.Minute) }, session.ErrInvalid},
		"its key stopped, it departs later":  {func(m *mesh) { m.stopSigning(-time.Hour); depart(m, 30*time.Minute) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t)
			token, s := m.signIn("eu")
			ticket, err := m.minter("eu").Sign(m.view, session.Handoff("billing.example.com"), "a body")
			if err != nil {
				t.Fatal(err)
			}
			cached, live := m.verifier(), session.NewLive(session.LiveConfig{Now: m.clock})
			if _, err := cached.Verify(m.view, m.route("billing"), token); err != nil {
				t.Fatal(err)
			}
			open, release := live.Register(t.Context(), session.Entry{View: m.view, Session: s, Route: m.route("billing")})
			defer release()
			tc.change(m)
			for how, v := range map[string]*session.Verifier{"cached": cached, "cold": m.verifier()} {
				if _, err := v.Verify(m.view, m.route("billing"), token); !errors.Is(err, tc.want) {
					t.Errorf("%s: %v, want %v", how, err, tc.want)
				}
				if _, err := v.Identify(m.view, token); !errors.Is(err, tc.want) {
					t.Errorf("%s, identify: %v, want %v", how, err, tc.want)
				}
			}
			var body string
			if err := m.verifier().VerifyAs(m.view, m.route("billing"), session.Handoff("billing.example.com"), ticket, &body); !errors.Is(err, tc.want) {
				t.Errorf("a ticket: %v, want %v", err, tc.want)
			}
			live.Recheck(m.view)
			if err := context.Cause(open); !errors.Is(err, tc.want) {
				t.Errorf("what is open: %v, want %v", err, tc.want)
			}
		})
	}
}

// stopSigning puts eu's key down in favour of another.
func (m *mesh) stopSigning(at time.Duration) {
	m.editKey(m.kid("eu"), func(k *keyring.SigningKey) {
		stopped, err := keyring.StopSigning(*k, m.now.Add(at))
		if err != nil {
			m.t.Fatal(err)
		}
		*k = stopped
	})
}
