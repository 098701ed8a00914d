package control_test

import (
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/control"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// A voter whose machine is dead keeps its record for a day: it does not stand for one that is taken away meanwhile.
func TestASilentVoterIsNoneOfTheQuorumThatRemains(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := &electorate{members: map[string]control.Voter{}}
	must(t, e.set(w.founder.id(), "127.0.0.1:1", true))
	w.Voters, w.PromoteAfter = e, 100*time.Hour
	w.start()
	key := w.issue(func(r *iapmeshv1.IssueKeyRequest) { r.Grants = []iapmeshv1.Role{iapmeshv1.Role_ROLE_CONTROL} })
	lives, dies := w.joined(key, "lives", "us-east", iapmeshv1.Role_ROLE_CONTROL), w.joined(w.boot, "dies", "ap-south", iapmeshv1.Role_ROLE_CONTROL)
	for _, j := range []*joiner{lives, dies} {
		w.eventually("a follower", func() bool { member, _ := e.votes(j); return member })
		must(t, e.set(j.id(), "127.0.0.1:9", true))
	}
	attempts := map[string]func() error{
		"revoke": func() error { _, err := w.revoke(onNode, "lives", false); return err },
		"revoke its key": func() error {
			return fourth(w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: key.ID(), Cascade: iapmeshv1.Cascade_CASCADE_QUARANTINE}))
		},
		"quarantine": func() error { return errOf(w.QuarantineNode(t.Context(), "admin/ana", "lives", "odd")) },
		"remove":     func() error { return errOf(w.RemoveNode(t.Context(), "admin/ana", "lives", "")) },
		"leave":      func() error { return second(w.Leave(t.Context(), lives.id())) },
	}
	for what, attempt := range attempts {
		wantKind(t, what+", before this leader has heard anybody", attempt(), fault.Unavailable, "is not known yet")
	}
	w.everybodyReports()
	if blast, err := w.PreviewNodeRevocation(t.Context(), "lives"); err != nil || blast.Refusal != "" {
		t.Errorf("as soon as it has heard them: %v, %v", blast, err)
	}

	w.clock.advance(keyring.LiveWithin + time.Second)
	w.everybodyReports(dies)
	const says = "leave 1 live, where 2 are needed to commit anything; dies ("
	for what, attempt := range attempts {
		wantKind(t, what, attempt(), fault.Denied, says)
	}
	blast, err := w.PreviewNodeRevocation(t.Context(), "lives")
	must(t, err)
	_, ofKey, err := w.PreviewKeyRevocation(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: key.ID(), Cascade: iapmeshv1.Cascade_CASCADE_KILL})
	must(t, err)
	for what, refusal := range map[string]string{"node": blast.Refusal, "key": ofKey.Refusal} {
		wantKind(t, "the dry run of the "+what, fault.New(fault.Denied, "%s", refusal), fault.Denied, says)
	}

	// The way out: the silent one is taken out; or it is back.
	_, _, err = w.RemoveNode(t.Context(), "admin/ana", "dies", "scrapped")
	must(t, err)
	w.eventually("its removal", func() bool { member, _ := e.votes(dies); return !member })
	wantKind(t, "one of two", attempts["revoke"](), fault.Denied, "leave 1 live, where 2 are needed to commit anything; add control nodes first")
	back := w.joined(w.boot, "back", "ap-south", iapmeshv1.Role_ROLE_CONTROL)
	w.eventually("a follower", func() bool { member, _ := e.votes(back); return member })
	must(t, e.set(back.id(), "127.0.0.1:9", true))
	w.everybodyReports()
	must(t, attempts["revoke"]())
	w.eventually("its removal", func() bool { member, _ := e.votes(lives); return !member })
}
