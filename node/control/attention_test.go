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

	// The rotator says why; who is not asked to rotate the key says nothing that counts.
	proxy := w.joined(w.boot, "px", "eu-west")
	fails := func(by, key, text string) {
		w.Reports.Set(by, &iapmeshv1.NodeReport{FailingRotations: []*iapmeshv1.FailingRotation{nil, {KeyId: strings.Repeat("k", 1000)}, {KeyId: key, Error: text}}})
	}
	fails(proxy.id(), scheduled.ID(), "a lie")
	says("overdue, and another complains", overdue)
	fails(w.founder.id(), scheduled.ID(), "sink: "+strings.Repeat("disk full, ", 100))
	says("overdue, with why", overdue)
	status, err := w.Status(t.Context())
	must(t, err)
	if text := status.Attention[0].Text; !strings.Contains(text, ", and was not: sink: disk full") || len(text) > 500 {
		t.Errorf("%d bytes: %s", len(text), text)
	}
	failing := w.issue(func(r *iapmeshv1.IssueKeyRequest) {
		r.RotateEvery, r.Rotator, r.Ttl = durationpb.New(time.Hour), w.founder.id(), durationpb.New(90*24*time.Hour)
	})
	fails(w.founder.id(), failing.ID(), "sink: exit status 1")
	says("one that is not due for long", "node founder fails to rotate key", overdue)
	w.everybodyReports()
	_, _, _, err = w.RevokeKey(t.Context(), "admin/ana", revokeKey(failing.ID()))
	must(t, err)
	says("nothing fails any more", overdue)

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
