package keyring_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

func awaiting(t testing.TB) keyring.Key {
	t.Helper()
	return issued(t, func(r *keyring.KeyRequest) { r.NeedsApproval = true })
}

func TestAKeyThatAwaitsApprovalAdmitsNobody(t *testing.T) {
	t.Parallel()
	k := awaiting(t)
	_, err := keyring.AdmitJoin(k, facts(nil))
	wantRefusal(t, err, fault.Denied, "it awaits the approval of another administrator than ana")
	_, err = keyring.ActivateKey(k, now)
	wantRefusal(t, err, fault.Denied, "it awaits the approval of another administrator than ana")
	pending := issued(t, func(r *keyring.KeyRequest) { r.Pending = true })
	_, err = keyring.AdmitJoin(pending, facts(nil))
	wantRefusal(t, err, fault.Denied, "an operator has yet to activate it")

	approved, predecessor, err := keyring.ApproveKey(k, keyring.ApproveRequest{By: "ben", Now: now.Add(time.Hour)})
	if err != nil || predecessor != nil {
		t.Fatal(predecessor, err)
	}
	want := k
	want.State, want.ApprovedBy, want.ApprovedAt = keyring.KeyActive, "ben", now.Add(time.Hour)
	if diff := cmp.Diff(want, approved); diff != "" {
		t.Error(diff)
	}
	if _, err := keyring.AdmitJoin(approved, facts(nil)); err != nil {
		t.Error(err)
	}
}

// Until the approval nothing happens to the predecessor; its grace counts from there.
func TestASuccessorTakesOverWithItsApproval(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		grace time.Duration
		want  keyring.KeyState
	}{
		"with a grace": {time.Hour, keyring.KeyRetiring},
		"without":      {0, keyring.KeyRetired},
	} {
		k := issued(t, nil)
		same, next, err := keyring.RotateKey(k, keyring.RotateRequest{SuccessorPublicKey: public("next"), Grace: tc.grace, NeedsApproval: true, By: "ana", Now: now})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(k, same); diff != "" {
			t.Errorf("%s: the predecessor changed before the approval: %s", name, diff)
		}
		if !next.AwaitsApproval() || next.Predecessor != k.ID {
			t.Errorf("%s: successor %+v", name, next)
		}
		used, err := keyring.AdmitJoin(same, facts(nil)) // meanwhile it goes on
		if err != nil {
			t.Fatal(err)
		}
		later := now.Add(3 * time.Hour)
		_, _, err = keyring.ApproveKey(next, keyring.ApproveRequest{Predecessor: &used, By: "ana", Now: later})
		wantRefusal(t, err, fault.Denied, "another administrator")
		approved, old, err := keyring.ApproveKey(next, keyring.ApproveRequest{Predecessor: &used, By: "ben", Now: later})
		if err != nil {
			t.Fatal(err)
		}
		if approved.State != keyring.KeyActive || old.State != tc.want || old.Successor != next.ID || old.GraceUntil != later.Add(tc.grace) || old.Uses != 1 {
			t.Errorf("%s: %+v after %+v", name, approved, old)
		}
		if used.Successor != "" {
			t.Errorf("%s: the key that went in was changed", name)
		}
	}
}

// What may have become of the predecessor while its successor waited: where it has no place to give up, the approval is refused, and
// nobody's word brings a key in through the back door.
func TestAnApprovalThatComesTooLate(t *testing.T) {
	t.Parallel()
	k := issued(t, nil)
	_, next, err := keyring.RotateKey(k, keyring.RotateRequest{SuccessorPublicKey: public("next"), Grace: time.Hour, NeedsApproval: true, By: "ana", Now: now})
	if err != nil {
		t.Fatal(err)
	}
	for _, state := range allKeyStates {
		before := k
		before.State = state
		approved, old, err := keyring.ApproveKey(next, keyring.ApproveRequest{Predecessor: &before, By: "ben", Now: now})
		switch state {
		case keyring.KeyActive, keyring.KeyExhausted, keyring.KeyExpired:
			if err != nil || approved.State != keyring.KeyActive || old.State != keyring.KeyRetiring {
				t.Errorf("%s: %+v, %v", state, old, err)
			}
		default:
			wantRefusal(t, err, fault.Conflict, "is "+string(state)+" meanwhile")
			if approved.State != keyring.KeyPending || old != nil {
				t.Errorf("%s: refused, but it is %s", state, approved.State)
			}
		}
	}
	other := issued(t, func(r *keyring.KeyRequest) { r.PublicKey = public("other") })
	for name, p := range map[string]*keyring.Key{"none": nil, "another": &other} {
		if _, _, err := keyring.ApproveKey(next, keyring.ApproveRequest{Predecessor: p, By: "ben", Now: now}); !fault.Is(err, fault.Internal) {
			t.Errorf("with %s as the predecessor: %v", name, err)
		}
	}
	_, _, err = keyring.ApproveKey(next, keyring.ApproveRequest{Predecessor: &k, By: "ben", Now: now.Add(48 * time.Hour)})
	wantRefusal(t, err, fault.Conflict, "its time was over")
	_, _, err = keyring.ApproveKey(next, keyring.ApproveRequest{Predecessor: &k, Now: now})
	wantRefusal(t, err, fault.Denied, "another administrator")
}

func TestFindAwaiting(t *testing.T) {
	t.Parallel()
	s := snapshot(keyring.Contents{Keys: map[string]*keyring.Key{
		"k1": {ID: "k1", Name: "edge", State: keyring.KeyActive},
		"k2": {ID: "k2", Name: "edge", State: keyring.KeyPending, Predecessor: "k1", NeedsApproval: true},
		"k3": {ID: "k3", Name: "new", State: keyring.KeyPending, NeedsApproval: true},
		"k4": {ID: "k4", Name: "proposed", State: keyring.KeyPending, Predecessor: "k1"},
		"k5": {ID: "k5", Name: "twice", State: keyring.KeyPending, NeedsApproval: true},
		"k6": {ID: "k6", Name: "twice", State: keyring.KeyPending, NeedsApproval: true},
		"k7": {ID: "k7", Name: "gone", State: keyring.KeyRevoked, NeedsApproval: true},
	}})
	for name, tc := range map[string]struct {
		ask, want string
		kind      fault.Kind
	}{
		"by id":                       {"k2", "k2", 0},
		"by the name that both have":  {"edge", "k2", 0},
		"by the predecessor":          {"k1", "k2", 0},
		"without one":                 {"new", "k3", 0},
		"pending for another reason":  {"k4", "", fault.Conflict},
		"two":                         {"twice", "", fault.Invalid},
		"one that was revoked":        {"gone", "", fault.Conflict},
		"an unknown name":             {"x", "", fault.NotFound},
		"nothing":                     {"", "", fault.NotFound},
		"one of two that have a name": {"k5", "k5", 0},
	} {
		k, err := s.FindAwaiting(tc.ask)
		if tc.want == "" && !fault.Is(err, tc.kind) || tc.want != "" && (err != nil || k.ID != tc.want) {
			t.Errorf("%s: %v, %v", name, k, err)
		}
	}
	if k := s.SuccessorAwaiting("k1"); k == nil || k.ID != "k2" {
		t.Errorf("the successor of k1: %v", k)
	}
	if k := s.SuccessorAwaiting(""); k != nil {
		t.Errorf("the successor of no key: %v", k)
	}
}
