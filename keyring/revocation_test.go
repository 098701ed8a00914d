package keyring_test

import (
	"strings"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

func TestARevocationEndsWithTheLongestSessionUnlessItBlocks(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		r    keyring.RevocationRequest
		over time.Duration // 0: never
	}{
		"session":        {keyring.RevocationRequest{Kind: keyring.RevokeSession, Value: "S1-_x"}, 12*time.Hour + time.Minute},
		"user":           {keyring.RevocationRequest{Kind: keyring.RevokeSubject, Value: "okta/00u1"}, 12*time.Hour + time.Minute},
		"blocked user":   {keyring.RevocationRequest{Kind: keyring.RevokeSubject, Value: "okta/00u1", Block: true}, 0},
		"a slash inside": {keyring.RevocationRequest{Kind: keyring.RevokeSubject, Value: "okta/a/b"}, 12*time.Hour + time.Minute},
	} {
		tc.r.Now = now
		r, err := keyring.NewRevocation(tc.r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		switch {
		case tc.over == 0 && r.Over(now.Add(1e6*time.Hour)):
			t.Errorf("%s: it ends", name)
		case tc.over != 0 && (r.Over(now.Add(tc.over-time.Second)) || !r.Over(now.Add(tc.over))):
			t.Errorf("%s: it ends at %v", name, r.ExpiresAt)
		}
	}
}

func TestNewRevocationRefuses(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]keyring.RevocationRequest{
		"no kind":              {Value: "x"},
		"another kind":         {Kind: "node", Value: "n-1"},
		"no session":           {Kind: keyring.RevokeSession},
		"a session with slash": {Kind: keyring.RevokeSession, Value: "../x"},
		"a long session":       {Kind: keyring.RevokeSession, Value: strings.Repeat("x", 129)},
		"a blocked session":    {Kind: keyring.RevokeSession, Value: "x", Block: true},
		"an e-mail":            {Kind: keyring.RevokeSubject, Value: "ana@example.com"},
		"no subject":           {Kind: keyring.RevokeSubject, Value: "okta/"},
		"a subject of rubbish": {Kind: keyring.RevokeSubject, Value: "okta/\xff"},
		"a long subject":       {Kind: keyring.RevokeSubject, Value: "okta/" + strings.Repeat("x", 508)},
		"a long reason":        {Kind: keyring.RevokeSession, Value: "x", Reason: strings.Repeat("x", 513)},
		"a forged author":      {Kind: keyring.RevokeSession, Value: "x", By: "ana\r\n"},
	} {
		if _, err := keyring.NewRevocation(r); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestABlockOutlivesALaterRevocation(t *testing.T) {
	t.Parallel()
	plain := keyring.Revocation{Kind: keyring.RevokeSubject, Value: "okta/a", ExpiresAt: now, Reason: "new"}
	block := keyring.Revocation{Kind: keyring.RevokeSubject, Value: "okta/a", Block: true}
	if m := keyring.MergeRevocation(block, plain); !m.Block || !m.ExpiresAt.IsZero() || m.Reason != "new" {
		t.Errorf("plain on block: %+v", m)
	}
	if m := keyring.MergeRevocation(plain, block); !m.Block || !m.ExpiresAt.IsZero() {
		t.Errorf("block on plain: %+v", m)
	}
	if m := keyring.MergeRevocation(plain, plain); m.Block || m.ExpiresAt.IsZero() {
		t.Errorf("plain on plain: %+v", m)
	}
}
