package control_test

import (
	"slices"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func TestTheLeadGoesToALiveVoterAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := &electorate{members: map[string]control.Voter{}}
	must(t, e.set(w.founder.id(), "127.0.0.1:1", true))
	w.Voters, w.PromoteAfter = e, 100*time.Hour
	w.start()
	transfer := func(to, from string) (*iapmeshv1.TransferLeadResponse, error) {
		return w.TransferLead(t.Context(), "admin/ana", &iapmeshv1.TransferLeadRequest{To: to, From: from})
	}
	_, err := transfer("", "")
	wantKind(t, "nobody else votes", err, fault.Conflict, "no other control node votes")

	near, far := w.joined(w.boot, "near", "us-east", iapmeshv1.Role_ROLE_CONTROL), w.joined(w.boot, "far", "ap-south", iapmeshv1.Role_ROLE_CONTROL)
	w.joined(w.boot, "px", "eu-west")
	for _, j := range []*joiner{near, far} {
		w.eventually("a follower", func() bool { member, _ := e.votes(j); return member })
	}
	_, err = transfer("near", "")
	wantKind(t, "who does not vote", err, fault.Conflict, "does not vote")
	must(t, e.set(near.id(), "127.0.0.1:9", true))
	must(t, e.set(far.id(), "127.0.0.1:9", true))
	_, err = transfer("near", "")
	wantKind(t, "who is silent", err, fault.Conflict, "is silent")
	_, err = transfer("", "")
	wantKind(t, "all are silent", err, fault.Conflict, "is live")
	_, err = transfer("px", "")
	wantKind(t, "a proxy", err, fault.Conflict, "does not vote")
	_, err = transfer("nobody", "")
	wantKind(t, "nobody", err, fault.NotFound, "nobody")

	w.Reports.Set(far.id(), &iapmeshv1.NodeReport{Revision: &iapmeshv1.Revision{Epoch: 1, Index: 1}})
	w.Reports.Set(near.id(), &iapmeshv1.NodeReport{Revision: state.RevisionProto(w.view().Revision)})
	for name, tc := range map[string]struct{ to, from, leader string }{
		"it leads already":           {"founder", "", w.founder.id()},
		"another led, by the caller": {"", near.id(), w.founder.id()}, // the answer to a first call was lost
	} {
		if resp, err := transfer(tc.to, tc.from); err != nil || resp.Leader != tc.leader {
			t.Errorf("%s: %v, %v", name, resp, err)
		}
	}
	if len(e.lead) != 0 {
		t.Errorf("the lead went to %v", e.lead)
	}
	for _, to := range []string{"", "far"} {
		if _, err := transfer(to, w.founder.id()); err != nil {
			t.Errorf("to %q: %v", to, err)
		}
	}
	if !slices.Equal(e.lead, []string{near.id(), far.id()}) || len(w.trail.with("admin", "action", "control.transfer")) != 2 {
		t.Errorf("the lead went to %v, want near, which is least behind, then far; records: %v", e.lead, w.trail.with("admin", "action", "control.transfer"))
	}
	w.clock.advance(keyring.LiveWithin + time.Second)
	_, err = transfer("far", "")
	wantKind(t, "who fell silent", err, fault.Conflict, "is silent")
}
