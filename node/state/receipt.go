package state

import (
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// PutReceipt encodes a receipt. What has not moved yet carries no revision: that of its entry is the change's, and is not known
// before the commit.
func PutReceipt(r *keyring.Receipt) store.Entry {
	p := ReceiptProto(r)
	if r.State == keyring.ReceiptOpen {
		p.Revision, p.CommittedBy = nil, nil
	}
	return put(ReceiptPath(r.ID), p)
}

// ReceiptProto writes a receipt as the API shows it.
func ReceiptProto(r *keyring.Receipt) *iapmeshv1.ReceiptRecord {
	p := &iapmeshv1.ReceiptRecord{
		Id: r.ID, Action: r.Action, Target: r.Target, By: r.By, Reason: r.Reason, At: Stamp(r.At), State: receiptStates.proto(r.State),
		Unfinished: r.More, Revision: RevisionProto(r.Revision), CommittedBy: Stamp(r.CommittedBy), LiveAt: Stamp(r.LiveAt), EverywhereAt: Stamp(r.EveryAt),
	}
	for _, n := range r.Nodes {
		p.Nodes = append(p.Nodes, &iapmeshv1.ReceiptNode{
			NodeId: n.ID, Name: n.Name, Region: n.Region, AcknowledgedAt: Stamp(n.AckAt), Gone: nodeStates.proto(n.Gone), GoneAt: Stamp(n.GoneAt),
		})
	}
	return p
}

// ReceiptOf reads what PutReceipt wrote, last written at the revision.
func ReceiptOf(p *iapmeshv1.ReceiptRecord, at revision.Revision) *keyring.Receipt {
	r := &keyring.Receipt{
		ID: p.Id, Act: keyring.Act{Action: p.Action, Target: p.Target, By: p.By, Reason: p.Reason, More: p.Unfinished}, At: Time(p.At),
		State: receiptStates.domain(p.State), Revision: RevisionOf(p.Revision), CommittedBy: Time(p.CommittedBy), LiveAt: Time(p.LiveAt), EveryAt: Time(p.EverywhereAt),
	}
	if p.Revision == nil {
		r.Revision = at
	}
	for _, n := range p.Nodes {
		r.Nodes = append(r.Nodes, keyring.ReceiptNode{
			ID: n.NodeId, Name: n.Name, Region: n.Region, AckAt: Time(n.AcknowledgedAt), Gone: nodeStates.domain(n.Gone), GoneAt: Time(n.GoneAt),
		})
	}
	return r
}

// ReceiptSummary writes a receipt without its nodes.
func ReceiptSummary(r *keyring.Receipt) *iapmeshv1.ReceiptSummary {
	p := &iapmeshv1.ReceiptSummary{
		Id: r.ID, Action: r.Action, Target: r.Target, By: r.By, Reason: r.Reason, At: Stamp(r.At), State: receiptStates.proto(r.State),
		Unfinished: r.More, Revision: RevisionProto(r.Revision), LiveAt: Stamp(r.LiveAt), EverywhereAt: Stamp(r.EveryAt), Nodes: uint32(len(r.Nodes)),
	}
	for _, n := range r.Nodes {
		switch {
		case !n.AckAt.IsZero():
			p.Acknowledged++
		case n.Gone != "":
			p.Gone++
		}
	}
	return p
}
