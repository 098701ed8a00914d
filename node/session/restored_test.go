package session_test

import (
	"context"
	"errors"
	"testing"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/session"
)

// A restoration ends every session of before it, for good, and lets nobody sign in until it is confirmed.
func TestARestorationFencesSessions(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	token, before := m.signIn("eu")
	verifier, live := m.verifier(), session.NewLive(session.LiveConfig{})
	if _, err := verifier.Verify(m.view, m.route("payroll"), token); err != nil { // into the cache
		t.Fatal(err)
	}
	open, release := live.Register(t.Context(), session.Entry{View: m.view, Session: before, Route: m.route("payroll"), Stream: true})
	defer release()
	restore := func(phase keyring.RestorationPhase) {
		m.commit(func(c *keyring.Contents) {
			c.Restoration = &keyring.Restoration{Phase: phase, SessionsFrom: revision.Revision{Epoch: m.at.Epoch + 1}}
		})
	}
	refused := func(when string) {
		t.Helper()
		for _, v := range []*session.Verifier{verifier, m.verifier()} {
			if _, err := v.Verify(m.view, m.route("payroll"), token); !errors.Is(err, session.ErrRevoked) {
				t.Errorf("%s: a session of before: %v", when, err)
			}
			if _, err := v.Identify(m.view, token); !errors.Is(err, session.ErrRevoked) {
				t.Errorf("%s: a session of before on our own pages: %v", when, err)
			}
		}
	}
	restore(keyring.RestorationRunning)
	live.Recheck(m.view)
	if !errors.Is(context.Cause(open), session.ErrRevoked) {
		t.Errorf("an open stream ends with %v", context.Cause(open))
	}
	refused("restoring")
	restore(keyring.RestorationAwaiting)
	refused("awaiting")
	if _, _, err := m.minter("eu").Mint(m.view, session.Grant{Identity: ana()}); !errors.Is(err, session.ErrClosed) || !fault.Is(err, fault.Unavailable) {
		t.Errorf("minted while an operator is awaited: %v", err)
	}
	restore(keyring.RestorationConfirmed)
	refused("confirmed")
	if _, _, err := m.minter("eu").Mint(m.view, session.Grant{Identity: ana(), Minted: before.Minted}); !errors.Is(err, session.ErrRevoked) {
		t.Errorf("a sign-in of before becomes a session: %v", err)
	}
	m.at.Epoch++
	m.commit(func(c *keyring.Contents) {
		c.Restoration = &keyring.Restoration{Phase: keyring.RestorationConfirmed, SessionsFrom: revision.Revision{Epoch: m.at.Epoch}}
	})
	fresh, _ := m.signIn("eu")
	if _, err := m.verifier().Verify(m.view, m.route("payroll"), fresh); err != nil {
		t.Errorf("a session of after: %v", err)
	}
	refused("in the new epoch")
}
