package node_test

import (
	"testing"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/node/nodetest"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func TestTheLeadIsHandedOver(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	mesh.Eventually("the leader is not quarantined", func() bool {
		r := mesh.Leader()
		_, err := r.TryQuarantine()
		if err == nil { // it led no more
			r.Release()
			mesh.AwaitVoters()
		}
		return nodetest.Leads(err)
	})
	// The lead may move by itself, also from whoever was just asked: then it is handed over from where it is.
	var first *nodetest.Region
	var from, to string
	mesh.Eventually("the lead is handed over", func() bool {
		first = mesh.Leader()
		second := mesh.Follower()
		from, to = first.NodeID(), second.NodeID()
		resp, err := mesh.TryTransferLead(second.Config().Name)
		return err == nil && resp.From == from && resp.Leader == to && mesh.Leader() == second
	})
	mesh.Eventually("to whom leads already nothing is handed", func() bool {
		again, err := mesh.TryTransferLead(to)
		return err == nil && again.Leader == to && again.From == to
	})
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
	mesh.Eventually("whoever led before is quarantined", func() bool {
		_, err := first.TryQuarantine()
		if nodetest.Leads(err) {
			_, _ = mesh.TryTransferLead(to) // it has come to lead again
		} else if err != nil {
			t.Fatal(err)
		}
		return err == nil
	})
	// Whoever is left takes over from the second, unnamed; the quarantined one does not.
	mesh.Eventually("the third leads", func() bool {
		resp, err := mesh.TryTransferLead("")
		return err == nil && resp.Leader != to && resp.Leader != from
	})
}
