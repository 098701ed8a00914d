package keyring_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

func TestAJoinerTrustsAControlNodeUnderThePinnedRoot(t *testing.T) {
	t.Parallel()
	c := newCA(t)
	leaf := c.node(t, "n-1", true)
	for name, at := range map[string]time.Time{
		"now": now, "a clock that lags": now.Add(-5*time.Minute - 59*time.Second), "a clock that leads": now.Add(24*time.Hour + 59*time.Second),
	} {
		id, err := keyring.VerifyPinned([]*x509.Certificate{leaf, c.Certificate}, keyring.Pin(c.Certificate), at)
		if err != nil || id.Node != "n-1" || id.Region != "eu-west" {
			t.Errorf("%s: %v, %v", name, id, err)
		}
	}
}

func TestVerifyPinnedRefuses(t *testing.T) {
	t.Parallel()
	c, other := newCA(t), newCA(t)
	control := c.node(t, "n-1", true)
	type chain = []*x509.Certificate
	many := chain{control, c.Certificate}
	for range 10 {
		many = append(many, c.Certificate)
	}
	for name, tc := range map[string]struct {
		chain chain
		pin   [32]byte
		at    time.Time
		says  string
	}{
		"nothing":                      {nil, keyring.Pin(c.Certificate), now, "0 certificates"},
		"no root":                      {chain{control}, keyring.Pin(c.Certificate), now, "1 certificates"},
		"too many":                     {many, keyring.Pin(c.Certificate), now, "12 certificates"},
		"another mesh":                 {chain{other.node(t, "n-1", true), other.Certificate}, keyring.Pin(c.Certificate), now, "another mesh"},
		"the root beside another leaf": {chain{other.node(t, "n-1", true), c.Certificate}, keyring.Pin(c.Certificate), now, "unknown authority"},
		"the same with both roots":     {chain{other.node(t, "n-1", true), other.Certificate, c.Certificate}, keyring.Pin(c.Certificate), now, "unknown authority"},
		"an ordinary node":             {chain{c.node(t, "n-2", false), c.Certificate}, keyring.Pin(c.Certificate), now, "no control node"},
		"an administrator":             {chain{c.admin(t, "ana"), c.Certificate}, keyring.Pin(c.Certificate), now, "key usage"},
		"the root itself":              {chain{c.Certificate, c.Certificate}, keyring.Pin(c.Certificate), now, "is a CA's"},
		"the leaf pinned":              {chain{control, control}, keyring.Pin(control), now, "not in its chain"},
		"expired":                      {chain{control, c.Certificate}, keyring.Pin(c.Certificate), now.Add(24*time.Hour + 61*time.Second), "is this machine's clock right?"},
		"not yet valid":                {chain{control, c.Certificate}, keyring.Pin(c.Certificate), now.Add(-5*time.Minute - 61*time.Second), "not yet valid"},
	} {
		_, err := keyring.VerifyPinned(tc.chain, tc.pin, tc.at)
		t.Run(name, func(t *testing.T) { wantRefusal(t, err, fault.Unauthenticated, tc.says) })
	}
}

func TestAPinOutlivesAChangeOfCA(t *testing.T) {
	t.Parallel()
	old, next := newCA(t), newCA(t)
	cross, err := keyring.CrossSign(old.Authority, old.key, next.Authority, now)
	if err != nil {
		t.Fatal(err)
	}
	leaf := next.node(t, "n-1", true)
	for name, pin := range map[string][32]byte{"old": keyring.Pin(old.Certificate), "next": keyring.Pin(next.Certificate)} {
		if _, err := keyring.VerifyPinned([]*x509.Certificate{leaf, next.Certificate, cross, old.Certificate}, pin, now); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := keyring.CrossSign(old.Authority, next.key, next.Authority, now); !fault.Is(err, fault.Invalid) {
		t.Errorf("cross-signed by a foreign key: %v", err)
	}
}
