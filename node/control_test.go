package node_test

import (
	"testing"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/nodetest"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func TestTheLeadIsHandedOver(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	first := mesh.Leader()
	second := mesh.In("us-east")
	if first == second {
		second = mesh.In("ap-south")
	}
	if _, err := first.TryQuarantine(); !fault.Is(err, fault.Denied) {
		t.Errorf("quarantine the leader: %v", err)
	}
	from, to := first.NodeID(), second.NodeID()
	resp, err := mesh.TryTransferLead(second.Config().Name)
	if err != nil || resp.From != from || resp.Leader != to || mesh.Leader() != second {
		t.Fatalf("the lead went from %s to %s, which %s now has: %v; want it from %s to %s", resp.GetFrom(), resp.GetLeader(), mesh.Leader().Name, err, from, to)
	}
	if again, err := mesh.TryTransferLead(to); err != nil || again.Leader != to || again.From != to {
		t.Errorf("to whom leads already: %v, %v", again, err)
	}
	mesh.Eventually("the record", func() bool {
		for _, r := range mesh.Records(&iapmeshv1.QueryRequest{Kind: "admin"}) {
			record, err := audit.Decode(r.Record)
			if err != nil {
				t.Fatal(err)
			}
			if d := record.Detail; d["action"] == "control.transfer" && d["from"] == from && d["leader"] == to && record.Actor.Subject == "admin/root" {
				return true
			}
		}
		return false
	})
	mesh.AwaitVoters() // the new leader has heard everybody
	if _, err := first.TryQuarantine(); err != nil {
		t.Errorf("quarantine whoever led before: %v", err)
	}
	// Whoever is left takes over from the second, unnamed; the quarantined one does not.
	mesh.Eventually("the third leads", func() bool {
		resp, err := mesh.TryTransferLead("")
		return err == nil && resp.Leader != to && resp.Leader != from
	})
}
