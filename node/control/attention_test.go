package control_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func TestTheStatusSaysWhatWantsAnOperatorsEye(t *testing.T) {
	t.Parallel()
	w := start(t)
	says := func(what string, want ...string) {
		t.Helper()
		status, err := w.Status(t.Context())
		must(t, err)
		var got []string
		for _, a := range status.Attention {
			got = append(got, a.Text+" ("+a.Command+")")
		}
		ok := len(got) == len(want)
		for i := range min(len(got), len(want)) {
			ok = ok && strings.Contains(got[i], want[i])
		}
		if !ok {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	says("a quiet mesh")
	scheduled := w.issue(func(r *iapmeshv1.IssueKeyRequest) {
		r.RotateEvery, r.Rotator, r.Ttl = durationpb.New(time.Hour), w.founder.id(), durationpb.New(90*24*time.Hour)
	})
	w.clock.advance(time.Hour + keyring.OverdueAfter)
	says("due, and not for long")
	w.clock.advance(time.Second)
	overdue := "(" + scheduled.ID() + ") was to be rotated by node founder at "
	says("overdue", overdue)

	saved := w.saved()
	serial, _, err := w.RotateAuthority(t.Context(), "admin/ana")
	must(t, err)
	says("and a CA that waits", serial[:8]+", is prepared: ", overdue)
	_, _, err = w.Restore(t.Context(), "admin/ana", w.signed(saved))
	must(t, err)
	says("restored: the key is held back", "restored under epoch 2", "is prepared")
	w.confirm()
	says("confirmed", "is prepared", overdue)
	_, _, _, err = w.RevokeKey(t.Context(), "admin/ana", revokeKey(scheduled.ID()))
	must(t, err)
	w.eventually("the CA to issue, once all have acknowledged it", func() bool {
		w.clock.advance(time.Second)
		w.everybodyReports()
		return w.view().Keyring.Authorities[serial].State == keyring.AuthorityActive
	})
	says("all is done")
}
