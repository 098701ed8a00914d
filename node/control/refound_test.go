package control_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"maps"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// survivor is what the founder's own state is recovered by.
func (w *world) survivor() *control.Refounding {
	w.t.Helper()
	entries, at, err := w.engine.List(w.t.Context(), "")
	must(w.t, err)
	digest := sha256.Sum256([]byte(at.String()))
	r := &control.Refounding{Entries: entries, Revision: at, Now: w.clock.now(), Survivor: w.founder.id()}
	r.Statement = keyring.RestorationStatement{
		Mesh: "m-1", Kind: keyring.RestoreSurvivor, OldEpoch: at.Epoch, NewEpoch: at.Epoch + 1, Digest: digest[:], SnapshotRevision: at,
		SnapshotTime: r.Now, Time: r.Now, Nonce: make([]byte, 16), Carrier: r.Survivor,
	}
	r.Signature = ed25519.Sign(w.admin, r.Statement.Message())
	return r
}

func TestARecoveryOfAnUnconfirmedRestoreHoldsBackTheSame(t *testing.T) {
	t.Parallel()
	w := start(t)
	key, thief := w.issue(nil), w.issue(nil)
	proxy := w.joined(key, "px", "eu-west")
	saved := w.saved()
	_, _, _, err := w.RevokeKey(t.Context(), "admin/ana", revokeKey(thief.ID()))
	must(t, err)
	_, _, err = w.Restore(t.Context(), "admin/ana", w.signed(saved))
	must(t, err)
	plan, err := w.survivor().Plan()
	must(t, err)
	if s := plan.Status; s.Restoration.Statement.NewEpoch != 3 || len(s.Keys) != 2 || len(s.Nodes) != 1 || s.Nodes[0].Id != proxy.id() {
		t.Errorf("epoch %d; to be confirmed: keys %v, nodes %v", s.Restoration.Statement.NewEpoch, s.Keys, s.Nodes)
	}
	for _, k := range plan.Status.Keys {
		if k.Id == thief.ID() {
			t.Error("a revoked key is to be confirmed")
		}
	}
}

// What the survivor knew as revoked is in no list of what others remember: who confirms reads how much it is.
func TestWhatIsRevokedIsCounted(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.issue(nil)
	fleet := w.issue(nil)
	w.joined(fleet, "px-1", "eu-west")
	w.joined(fleet, "px-2", "eu-west")
	w.revokeKey(fleet.ID(), iapmeshv1.Cascade_CASCADE_KILL)
	for value, block := range map[string]bool{"dev/eve": true, "dev/bob": false} { // bob may sign in again
		must(t, second(w.revoke(user, value, block)))
	}
	must(t, second(w.revoke(session, "sid-1", false)))
	plan, err := w.survivor().Plan()
	must(t, err)
	if want := (&iapmeshv1.RevokedCount{Keys: 1, Nodes: 2, Users: 1}); !proto.Equal(plan.Status.Revoked, want) || len(plan.Status.Refused) != 0 {
		t.Errorf("revoked %v, want %v; refused %v", plan.Status.Revoked, want, plan.Status.Refused)
	}
}

func TestWhoMayRecover(t *testing.T) {
	t.Parallel()
	w := start(t)
	proxy := w.joined(w.issue(nil), "px", "eu-west")
	if _, err := w.survivor().Plan(); err != nil {
		t.Fatal(err)
	}
	sign := func(r *control.Refounding) { r.Signature = ed25519.Sign(w.admin, r.Statement.Message()) }
	for name, tc := range map[string]struct {
		change func(*control.Refounding)
		kind   fault.Kind
	}{
		"signed by a stranger":    {func(r *control.Refounding) { r.Signature = ed25519.Sign(newKey(t), r.Statement.Message()) }, fault.Denied},
		"signed for another node": {func(r *control.Refounding) { r.Statement.Carrier = "n-2"; sign(r) }, fault.Conflict},
		"of another epoch":        {func(r *control.Refounding) { r.Statement.OldEpoch, r.Statement.NewEpoch = 7, 8; sign(r) }, fault.Conflict},
		"of another mesh":         {func(r *control.Refounding) { r.Statement.Mesh = "m-2"; sign(r) }, fault.Conflict},
		"from a proxy":            {func(r *control.Refounding) { r.Survivor, r.Statement.Carrier = proxy.id(), proxy.id(); sign(r) }, fault.Denied},
		"from nobody":             {func(r *control.Refounding) { r.Survivor, r.Statement.Carrier = "", ""; sign(r) }, fault.Conflict},
		"by one who is remembered as revoked": {func(r *control.Refounding) {
			r.Remembered = []keyring.Denial{{Kind: keyring.DenyAdmin, Value: keyring.AdminID(public(w.admin))}}
		}, fault.Denied},
	} {
		r := w.survivor()
		tc.change(r)
		_, err := r.Plan()
		wantKind(t, name, err, tc.kind, "")
	}
}

// Of whom nobody trusts any more it is not said that it is a control node: it then takes nothing back.
func TestWhoIsTrustedNoMoreIsNoWriter(t *testing.T) {
	t.Parallel()
	node := func(s keyring.NodeState, roles ...keyring.Role) *keyring.Node {
		return &keyring.Node{State: s, Roles: roles}
	}
	got := control.Writers(&state.View{Keyring: keyring.NewSnapshot(revision.Revision{}, keyring.Contents{Nodes: map[string]*keyring.Node{
		"active": node(keyring.NodeActive, keyring.RoleControl, keyring.RoleProxy), "lapsed": node(keyring.NodeLapsed, keyring.RoleControl),
		"quarantined": node(keyring.NodeQuarantined, keyring.RoleControl), "revoked": node(keyring.NodeRevoked, keyring.RoleControl),
		"departed": node(keyring.NodeDeparted, keyring.RoleControl), "proxy": node(keyring.NodeActive, keyring.RoleProxy), "thief": node(keyring.NodeRevoked, keyring.RoleProxy),
	}})})
	want := map[string]bool{"active": true, "lapsed": true, "proxy": false, "thief": false}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
