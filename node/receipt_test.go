package node_test

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/node/nodetest"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func TestAReceiptTellsWhatGoesOnInACutOffRegionAndWhenARevocationWasInEffectEverywhere(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	for attempt := 1; !receiptTells(t, mesh); attempt++ {
		if attempt == 5 {
			t.Fatal("no leader stays for as long as this takes")
		}
	}
}

// receiptTells follows the receipt of a revocation until everybody has it, or returns false: the lead has moved before it was given. A leader
// that is new has not heard what the region served when it was cut off, so that its receipts say less.
func receiptTells(t *testing.T, mesh *nodetest.Mesh) bool {
	t.Helper()
	var term uint64
	mesh.Eventually("the leader has heard everybody", func() bool {
		status := mesh.Status()
		term = status.Term
		return !slices.ContainsFunc(status.Nodes, func(n *iapmeshv1.NodeStatus) bool { return !n.Live })
	})
	away := mesh.Follower()
	ana := away.SignIn("ana@example.com")
	bob := away.SignInAt("bob@example.com", nodetest.FinanceHost)
	mesh.Cut(away.Name)
	receipt := mesh.RevokeAtOnce(ana)
	revoked := time.Now()
	if mesh.Status().Term != term {
		mesh.Heal(away.Name)
		mesh.AwaitReceipt(receipt) // or ana's next session, by a view from before, would be refused for this
		return false
	}

	// At once the receipt names who lags, and the moment at which billing, whose max_staleness is 3 s, stops there by itself.
	lagging := func(r *iapmeshv1.Receipt) *iapmeshv1.Laggard {
		for _, l := range r.GetLagging() {
			if l.Region == away.Name {
				return l
			}
		}
		return nil
	}
	l := lagging(receipt)
	if l == nil || receipt.Complete || receipt.Id == "" {
		t.Fatalf("the receipt of a revocation that %s cannot know: %+v", away.Name, receipt)
	}
	if !slices.Equal(l.RoutesThatStop, []string{"billing"}) || !slices.Equal(l.RoutesThatGoOn, []string{"echo"}) {
		t.Errorf("stop %v, go on %v", l.RoutesThatStop, l.RoutesThatGoOn)
	}
	by := l.StopsBy.AsTime()
	if by.After(revoked.Add(3 * time.Second)) {
		t.Errorf("billing stops by %v, revoked at %v", by, revoked)
	}
	<-time.After(time.Until(by))
	if got := bob.Get(away, nodetest.FinanceHost, "/"); got.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("billing answers %s after the moment by which it stops", got.Status)
	}
	away.Serves(ana, http.StatusOK) // echo goes on by its old view, as the receipt says

	// Once the region is no longer live, every live node has it; everybody has it when the cut heals.
	var shown *iapmeshv1.GetReceiptResponse
	mesh.Eventually("every live node has it", func() bool {
		shown = mesh.Receipt(receipt.Id)
		return shown.Record.LiveAt != nil
	})
	same := mesh.Status().Term == term
	if l := lagging(shown.Receipt); l == nil || l.Live || same && l.StopsBy.AsTime().After(by) || shown.Record.EverywhereAt != nil {
		t.Errorf("while the cut lasts: %+v", shown)
	}
	healed := time.Now()
	mesh.Heal(away.Name)
	away.EventuallyRefuses(ana)
	mesh.Eventually("everybody has it", func() bool {
		shown = mesh.Receipt(receipt.Id)
		return shown.Record.EverywhereAt != nil
	})
	record := shown.Record
	if at := record.EverywhereAt.AsTime(); at.Before(healed.Truncate(time.Millisecond)) || !shown.Receipt.Everywhere || record.Revision.Index != receipt.Revision.Index {
		t.Errorf("everywhere at %v, healed at %v: %+v", at, healed, shown)
	}
	for _, n := range record.Nodes {
		if n.AcknowledgedAt == nil || (n.Region == away.Name) != n.AcknowledgedAt.AsTime().After(healed.Add(-time.Millisecond)) {
			t.Errorf("%s acknowledged at %v, healed at %v", n.Name, n.AcknowledgedAt.AsTime(), healed)
		}
	}
	return true
}
