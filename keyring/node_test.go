package keyring_test

import (
	"strings"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

var allNodeStates = []keyring.NodeState{
	keyring.NodeEnrolled, keyring.NodeActive, keyring.NodeLapsed, keyring.NodeDeparted, keyring.NodeQuarantined, keyring.NodeRevoked,
}

// What is not in an operation's row is a Conflict; what stays as it is keeps its time.
func TestSomebodyMaySayThatASilentNodeIsNoMore(t *testing.T) {
	t.Parallel()
	for reason, unheard := range map[string]bool{keyring.ReasonSilent: true, keyring.ReasonUnconfirmed: true, keyring.ReasonLeftBehind: true, "left": false, "scrapped": false} {
		if n := (keyring.Node{State: keyring.NodeDeparted, Reason: reason}); n.DepartedUnheard() != unheard {
			t.Errorf("departed, %s: unheard is %t", reason, !unheard)
		}
	}
	silent := keyring.Node{ID: "n-1", State: keyring.NodeDeparted, Reason: keyring.ReasonSilent, StateSince: now}
	got, err := keyring.DepartNode(silent, "scrapped", now.Add(time.Hour))
	if err != nil || got.State != keyring.NodeDeparted || got.Reason != "scrapped" || !got.StateSince.Equal(now) {
		t.Errorf("%+v, %v", got, err)
	}
	if again, err := keyring.DepartNode(got, "lost", now.Add(2*time.Hour)); err != nil || again.Reason != "scrapped" {
		t.Errorf("said again: %+v, %v", again, err)
	}
}

func TestNodeTransitions(t *testing.T) {
	t.Parallel()
	later := now.Add(time.Hour)
	type moves map[keyring.NodeState]keyring.NodeState
	for name, tc := range map[string]struct {
		do    func(n keyring.Node) (keyring.Node, error)
		moves moves
	}{
		"confirm": {
			func(n keyring.Node) (keyring.Node, error) { return keyring.ConfirmNode(n, later) },
			moves{keyring.NodeEnrolled: keyring.NodeActive, keyring.NodeActive: keyring.NodeActive},
		},
		"recover": {
			func(n keyring.Node) (keyring.Node, error) { return keyring.RecoverNode(n, later) },
			moves{keyring.NodeLapsed: keyring.NodeActive, keyring.NodeActive: keyring.NodeActive},
		},
		"depart": {
			func(n keyring.Node) (keyring.Node, error) { return keyring.DepartNode(n, "left", later) },
			moves{
				keyring.NodeEnrolled: keyring.NodeDeparted, keyring.NodeActive: keyring.NodeDeparted,
				keyring.NodeLapsed: keyring.NodeDeparted, keyring.NodeDeparted: keyring.NodeDeparted,
			},
		},
		"quarantine": {
			func(n keyring.Node) (keyring.Node, error) { return keyring.QuarantineNode(n, "odd", later) },
			moves{
				keyring.NodeEnrolled: keyring.NodeQuarantined, keyring.NodeActive: keyring.NodeQuarantined,
				keyring.NodeLapsed: keyring.NodeQuarantined, keyring.NodeQuarantined: keyring.NodeQuarantined,
			},
		},
		"release": {
			func(n keyring.Node) (keyring.Node, error) { return keyring.ReleaseNode(n, later) },
			moves{keyring.NodeQuarantined: keyring.NodeActive},
		},
		"revoke": {
			func(n keyring.Node) (keyring.Node, error) { return keyring.RevokeNode(n, "stolen", later) },
			moves{
				keyring.NodeEnrolled: keyring.NodeRevoked, keyring.NodeActive: keyring.NodeRevoked, keyring.NodeLapsed: keyring.NodeRevoked,
				keyring.NodeDeparted: keyring.NodeRevoked, keyring.NodeQuarantined: keyring.NodeRevoked, keyring.NodeRevoked: keyring.NodeRevoked,
			},
		},
	} {
		for _, from := range allNodeStates {
			t.Run(name+" "+string(from), func(t *testing.T) {
				t.Parallel()
				after, err := tc.do(in(enrolled(t, issued(t, nil), "a"), from))
				want, ok := tc.moves[from]
				if !ok {
					wantRefusal(t, err, fault.Conflict, string(from))
					want = from
				} else if err != nil {
					t.Error(err)
				}
				since := later
				if want == from {
					since = now
				}
				if after.State != want || after.StateSince != since {
					t.Errorf("%s since %v, want %s since %v", after.State, after.StateSince, want, since)
				}
			})
		}
	}
}

func TestALongReasonChangesNothing(t *testing.T) {
	t.Parallel()
	n := in(enrolled(t, issued(t, nil), "a"), keyring.NodeActive)
	after, err := keyring.RevokeNode(n, strings.Repeat("x", 513), now)
	wantRefusal(t, err, fault.Invalid, "reason")
	if after.State != keyring.NodeActive {
		t.Errorf("it is %s", after.State)
	}
}

func TestSilenceMovesNodes(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		state      keyring.NodeState
		silentFor  time.Duration // of a node that joined 30 days ago
		never      bool
		want       keyring.NodeState
		returnsUse bool
	}{
		"active, heard today":             {keyring.NodeActive, 23 * time.Hour, false, keyring.NodeActive, false},
		"active, silent for a day":        {keyring.NodeActive, 24 * time.Hour, false, keyring.NodeLapsed, false},
		"lapsed, silent for six days":     {keyring.NodeLapsed, 6 * 24 * time.Hour, false, keyring.NodeLapsed, false},
		"lapsed, silent for seven":        {keyring.NodeLapsed, 7 * 24 * time.Hour, false, keyring.NodeDeparted, false},
		"never confirmed":                 {keyring.NodeEnrolled, 0, false, keyring.NodeDeparted, true},
		"quarantined":                     {keyring.NodeQuarantined, 9999 * time.Hour, false, keyring.NodeQuarantined, false},
		"revoked":                         {keyring.NodeRevoked, 9999 * time.Hour, false, keyring.NodeRevoked, false},
		"active, but nobody has listened": {keyring.NodeActive, 0, true, keyring.NodeActive, false},
	} {
		n := in(enrolled(t, issued(t, nil), "a"), tc.state)
		at := now.Add(30 * 24 * time.Hour)
		silentSince := at.Add(-tc.silentFor)
		if tc.never {
			silentSince = time.Time{}
		}
		after, changed, returnUse := keyring.SweepNode(n, silentSince, at)
		if after.State != tc.want || changed != (tc.want != tc.state) || returnUse != tc.returnsUse {
			t.Errorf("%s: %s, changed %v, returns use %v", name, after.State, changed, returnUse)
		}
	}
	young := enrolled(t, issued(t, nil), "a")
	if _, changed, _ := keyring.SweepNode(young, now, now.Add(9*time.Minute)); changed {
		t.Error("an enrolled node did not get its ten minutes")
	}
}

func TestAMeshThatWasOffForAMonthKeepsItsNodes(t *testing.T) {
	t.Parallel()
	n := in(enrolled(t, issued(t, nil), "a"), keyring.NodeActive)
	leaderBegan := now.Add(30 * 24 * time.Hour)
	if _, changed, _ := keyring.SweepNode(n, leaderBegan, leaderBegan.Add(time.Minute)); changed {
		t.Error("the node was dismissed before it could report")
	}
}

func TestWhoseTokensCount(t *testing.T) {
	t.Parallel()
	for state, want := range map[keyring.NodeState]bool{
		keyring.NodeEnrolled: true, keyring.NodeActive: true, keyring.NodeLapsed: true, keyring.NodeDeparted: true,
		keyring.NodeQuarantined: false, keyring.NodeRevoked: false,
	} {
		if n := (&keyring.Node{State: state}); n.TokensCount() != want {
			t.Errorf("%s: %v", state, n.TokensCount())
		}
	}
}
