package node

import (
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// describe is what this node reports of itself.
func (a *assembly) describe() *iapmeshv1.NodeReport {
	r := &iapmeshv1.NodeReport{
		Revision: state.RevisionProto(a.source.Served()), Version: Version(), CertificateExpiresAt: timestamppb.New(a.cert.Certificate().Leaf.NotAfter),
		SpoolDepth: a.spool.Depth(), StartedAt: timestamppb.New(a.started),
	}
	if age, known := a.freshness.Age(); known {
		r.ViewAgeMs = uint64(age.Milliseconds())
	}
	if a.users != nil {
		a.users.describe(r, a.source.Load())
	}
	if a.rotator != nil {
		for _, f := range a.rotator.Failing() {
			r.FailingRotations = append(r.FailingRotations, &iapmeshv1.FailingRotation{KeyId: f.Key, Error: f.Error, Since: timestamppb.New(f.Since)})
		}
	}
	return r
}

// members are the nodes as gossip sees them.
func (a *assembly) members() []*iapmeshv1.Member {
	mesh := a.gossip.Load()
	if mesh == nil {
		return nil
	}
	var out []*iapmeshv1.Member
	for _, m := range mesh.Members() {
		out = append(out, &iapmeshv1.Member{
			NodeId: m.NodeID, Region: m.Region, Address: m.Addr.String(), State: string(m.State), Version: m.Version, Roles: m.Roles, Pool: m.Pool,
		})
	}
	return out
}
