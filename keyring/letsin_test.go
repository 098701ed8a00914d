package keyring_test

import (
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/keyring"
)

func TestWhichChangeOfAKeyLetsIn(t *testing.T) {
	t.Parallel()
	in := func(s keyring.KeyState) *keyring.Key { return &keyring.Key{State: s} }
	awaiting, approved := &keyring.Key{State: keyring.KeyPending, NeedsApproval: true}, &keyring.Key{State: keyring.KeyActive, NeedsApproval: true, ApprovedAt: now}
	proposed := &keyring.Key{State: keyring.KeyPending, ProposedBy: "n-1", Predecessor: "k-0"}
	for name, tc := range map[string]struct {
		before, after *keyring.Key
		want          bool
	}{
		"issued":                     {nil, in(keyring.KeyActive), false},
		"a successor":                {nil, &keyring.Key{State: keyring.KeyActive, Predecessor: "k-0"}, true},
		"a successor that waits":     {nil, &keyring.Key{State: keyring.KeyPending, Predecessor: "k-0", NeedsApproval: true}, false},
		"proposed":                   {nil, proposed, false},
		"its rotation is complete":   {proposed, &keyring.Key{State: keyring.KeyActive, ProposedBy: "n-1", Predecessor: "k-0"}, true},
		"resumed":                    {in(keyring.KeySuspended), in(keyring.KeyActive), true},
		"resumed into retirement":    {in(keyring.KeySuspended), in(keyring.KeyRetiring), true},
		"approved":                   {awaiting, approved, true},
		"a use returned":             {in(keyring.KeyExhausted), in(keyring.KeyActive), true},
		"its time has come":          {in(keyring.KeyPending), in(keyring.KeyActive), false},
		"rotated":                    {in(keyring.KeyActive), in(keyring.KeyRetiring), false},
		"suspended":                  {in(keyring.KeyActive), in(keyring.KeySuspended), false},
		"revoked":                    {in(keyring.KeySuspended), in(keyring.KeyRevoked), false},
		"suspended, another reason":  {in(keyring.KeySuspended), &keyring.Key{State: keyring.KeySuspended, Reason: "x"}, false},
		"revoked while it waits":     {awaiting, in(keyring.KeyRevoked), false},
		"approved, its secret waits": {proposed, &keyring.Key{State: keyring.KeyPending, ProposedBy: "n-1", NeedsApproval: true, ApprovedAt: now}, false},
	} {
		if got := keyring.KeyLetsIn(tc.before, tc.after); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestWhichChangeOfANodeLetsIn(t *testing.T) {
	t.Parallel()
	in := func(s keyring.NodeState) *keyring.Node { return &keyring.Node{State: s, BoundKey: "k-1"} }
	for name, tc := range map[string]struct {
		before, after *keyring.Node
		want          bool
	}{
		"enrolled":               {nil, in(keyring.NodeEnrolled), true},
		"unknown, quarantined":   {nil, in(keyring.NodeQuarantined), false},
		"released":               {in(keyring.NodeQuarantined), in(keyring.NodeActive), true},
		"recovered":              {in(keyring.NodeLapsed), in(keyring.NodeActive), false},
		"confirmed":              {in(keyring.NodeEnrolled), in(keyring.NodeActive), false},
		"quarantined":            {in(keyring.NodeActive), in(keyring.NodeQuarantined), false},
		"revoked":                {in(keyring.NodeQuarantined), in(keyring.NodeRevoked), false},
		"re-bound":               {in(keyring.NodeActive), &keyring.Node{State: keyring.NodeActive, BoundKey: "k-2"}, true},
		"given a word":           {in(keyring.NodeQuarantined), &keyring.Node{State: keyring.NodeQuarantined, BoundKey: "k-1", RebindTo: "k-2"}, true},
		"whose word is void now": {&keyring.Node{State: keyring.NodeActive, RebindTo: "k-2"}, &keyring.Node{State: keyring.NodeActive}, false},
	} {
		if got := keyring.NodeLetsIn(tc.before, tc.after); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestWhenAScheduledRotationIsOverdue(t *testing.T) {
	t.Parallel()
	k := keyring.Key{State: keyring.KeyActive, NotBefore: now, ExpiresAt: now.Add(90 * 24 * time.Hour), RotateEvery: time.Hour, Rotator: "n-1"}
	due := now.Add(time.Hour)
	suspended, unscheduled := k, k
	suspended.State, unscheduled.RotateEvery = keyring.KeySuspended, 0
	for name, tc := range map[string]struct {
		key  keyring.Key
		at   time.Time
		want bool
	}{
		"not yet due":          {k, due.Add(-time.Second), false},
		"just due":             {k, due.Add(keyring.OverdueAfter), false},
		"overdue":              {k, due.Add(keyring.OverdueAfter + time.Second), true},
		"nobody may rotate it": {suspended, due.Add(time.Hour), false},
		"without a schedule":   {unscheduled, due.Add(time.Hour), false},
	} {
		if got := keyring.RotationOverdue(tc.key, tc.at); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
