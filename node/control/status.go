package control

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Status says how the mesh is, as the leader sees it.
func (c *Controller) Status(ctx context.Context) (*iapmeshv1.Status, error) {
	term, err := c.mustLead()
	if err != nil {
		return nil, err
	}
	v, err := c.view()
	if err != nil {
		return nil, err
	}
	isVoter := map[string]bool{}
	if c.Voters != nil {
		servers, err := c.Voters.Servers(ctx)
		if err != nil {
			return nil, err
		}
		for _, s := range servers {
			isVoter[s.ID] = s.Voter
		}
	}
	out := &iapmeshv1.Status{
		MeshId: v.Keyring.Mesh.ID, TrustDomain: v.Keyring.Mesh.TrustDomain, Leader: c.NodeID, Term: uint64(term),
		Revision: state.RevisionProto(v.Revision), AnsweredBy: c.NodeID, At: timestamppb.New(c.Now()), ManifestDigest: v.Config.Digest[:],
	}
	out.Attention = c.attention(v)
	for _, n := range sortedNodes(v) {
		s := &iapmeshv1.NodeStatus{Node: state.NodeProto(n), Live: c.Reports.Live(n.ID), Leader: n.ID == c.NodeID, Voter: isVoter[n.ID]}
		if report, ok := c.Reports.Get(n.ID); ok {
			s.Report, s.ReportedAt = report.NodeReport, state.Stamp(report.At)
			s.Lag = lag(v.Revision, state.RevisionOf(report.GetRevision()))
		}
		out.Nodes = append(out.Nodes, s)
	}
	return out, nil
}

// lag is how many revisions behind a node is; across epochs, all of them.
func lag(leader, node revision.Revision) uint64 {
	switch {
	case !node.Before(leader):
		return 0
	case node.Epoch != leader.Epoch:
		return leader.Index
	}
	return leader.Index - node.Index
}
