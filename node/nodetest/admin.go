package nodetest

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/profile"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/resource"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// call makes one administrator's call of the leader.
func (m *Mesh) call(what string, f profile.Func) {
	m.t.Helper()
	m.must(what, m.Try(f))
}

// Try makes one administrator's call of the leader and returns how it ended.
func (m *Mesh) Try(f profile.Func) error {
	client, err := m.Profile().Dial()
	if err != nil {
		return err
	}
	defer client.Close()
	client.Patience = Patience
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	return client.Call(ctx, f)
}

// callNode makes one administrator's call of the node at a mesh address, again while it does not answer.
func (m *Mesh) callNode(what, address string, f profile.Func) {
	m.t.Helper()
	client, err := m.Profile().Dial()
	m.must("dial", err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	await(unhurried, func() bool {
		err = client.CallNode(ctx, address, f)
		return !fault.Is(err, fault.Unavailable)
	})
	m.must(what, err)
}

// configure gives the mesh its first configuration, waits until every node that has been heard serves it, and returns its receipt.
func (m *Mesh) configure() *iapmeshv1.Receipt {
	m.call("set the client secret", func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		_, err := iapmeshv1.NewConfigServiceClient(conn).SetSecret(ctx, &iapmeshv1.SetSecretRequest{Name: "dev-client", Value: []byte(clientSeed)}, o...)
		return err
	})
	return m.Apply(m.world.yaml())
}

// Apply applies a mesh.yaml and waits until every live node serves it.
func (m *Mesh) Apply(yaml string) *iapmeshv1.Receipt {
	m.t.Helper()
	docs, err := resource.Parse("mesh.yaml", []byte(yaml))
	m.must("parse mesh.yaml", err)
	req := &iapmeshv1.ApplyRequest{}
	for _, d := range docs {
		req.Resources = append(req.Resources, &iapmeshv1.Resource{Kind: d.Ref().Kind, Name: d.Ref().Name, Spec: d.JSON, Source: d.Source})
	}
	var receipt *iapmeshv1.Receipt
	m.call("apply", func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		resp, err := iapmeshv1.NewConfigServiceClient(conn).Apply(ctx, req, o...)
		receipt = resp.GetReceipt()
		return err
	})
	m.AwaitReceipt(receipt)
	return receipt
}

// AwaitReceipt waits until every live node has what the receipt is for.
func (m *Mesh) AwaitReceipt(receipt *iapmeshv1.Receipt) {
	m.t.Helper()
	m.call("await the receipt", func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		stream, err := iapmeshv1.NewClusterServiceClient(conn).WatchReceipt(ctx, &iapmeshv1.WatchReceiptRequest{Revision: receipt.GetRevision()}, o...)
		if err != nil {
			return err
		}
		for {
			resp, err := stream.Recv()
			if err != nil || resp.GetReceipt().GetComplete() {
				return err
			}
		}
	})
}

// Status is the mesh as its leader sees it.
func (m *Mesh) Status() *iapmeshv1.Status {
	m.t.Helper()
	status, err := m.TryStatus()
	m.must("status", err)
	return status
}

// TryStatus is Status where the mesh may not answer yet.
func (m *Mesh) TryStatus() (status *iapmeshv1.Status, err error) {
	err = m.Try(func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		resp, err := iapmeshv1.NewClusterServiceClient(conn).GetStatus(ctx, &iapmeshv1.GetStatusRequest{}, o...)
		status = resp.GetStatus()
		return err
	})
	return status, err
}

// AwaitVoters waits until every node has confirmed its join and reports, and every control node votes; those that were put out are left out.
// A node that is ready may not have confirmed yet.
func (m *Mesh) AwaitVoters() {
	m.t.Helper()
	m.Eventually("all control nodes vote", func() bool {
		nodes := m.Status().Nodes
		if len(nodes) < len(m.order) {
			return false
		}
		for _, n := range nodes {
			switch n.Node.State {
			case iapmeshv1.NodeState_NODE_STATE_ENROLLED:
				return false
			case iapmeshv1.NodeState_NODE_STATE_ACTIVE:
				if !n.Live || slices.Contains(n.Node.Roles, iapmeshv1.Role_ROLE_CONTROL) && !n.Voter {
					return false
				}
			}
		}
		return true
	})
}

// Leader returns the region whose node leads: now. On a machine that stands still for half a second the lead moves, so that nothing may
// depend on who leads later.
func (m *Mesh) Leader() *Region {
	m.t.Helper()
	status := m.Status()
	for _, n := range status.Nodes {
		if n.Leader {
			return m.In(n.Node.Region)
		}
	}
	m.t.Fatal("the status names no leader")
	return nil
}

// Follower returns a control node that does not lead now, other than the first, which is the aggregator, and those to be left out.
func (m *Mesh) Follower(without ...*Region) *Region {
	m.t.Helper()
	leader := m.Leader()
	for _, r := range m.Regions()[1:] {
		if r != leader && slices.Contains(r.config.Roles, "control") && !slices.Contains(without, r) {
			return r
		}
	}
	m.t.Fatal("no control node but the first follows")
	return nil
}

// ToAFollower does to a control node what is refused to the one that leads, and returns which: another, where that has come to lead meanwhile.
func (m *Mesh) ToAFollower(do func(*Region) error) *Region {
	m.t.Helper()
	var r *Region
	m.Eventually("it is done to a node that does not lead", func() bool {
		r = m.Follower()
		err := do(r)
		if Leads(err) {
			return false
		}
		m.must(r.Name, err)
		return true
	})
	return r
}

// Leads reports whether a node was spared because it leads.
func Leads(err error) bool {
	return fault.Is(err, fault.Denied) && strings.Contains(err.Error(), " leads: hand the lead to another first")
}

// Revoke revokes a user, by any region's word, and waits until every live node refuses him.
func (m *Mesh) Revoke(s *Session) {
	m.t.Helper()
	m.AwaitReceipt(m.revoke(iapmeshv1.RevokeTarget_REVOKE_TARGET_USER, s.Subject))
}

// RevokeAtOnce revokes a user, waits for nobody, and returns the receipt as it stood.
func (m *Mesh) RevokeAtOnce(s *Session) *iapmeshv1.Receipt {
	m.t.Helper()
	return m.revoke(iapmeshv1.RevokeTarget_REVOKE_TARGET_USER, s.Subject)
}

// Receipt returns a receipt that is kept.
func (m *Mesh) Receipt(id string) *iapmeshv1.GetReceiptResponse {
	m.t.Helper()
	var out *iapmeshv1.GetReceiptResponse
	m.look("get receipt "+id, func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) (err error) {
		out, err = iapmeshv1.NewClusterServiceClient(conn).GetReceipt(ctx, &iapmeshv1.GetReceiptRequest{Id: id}, o...)
		return err
	})
	return out
}

// RevokeNode revokes a node, and waits until every live node refuses it.
func (m *Mesh) RevokeNode(name string) {
	m.t.Helper()
	m.must("revoke "+name, m.TryRevokeNode(name))
}

// TryRevokeNode is RevokeNode where it may be refused.
func (m *Mesh) TryRevokeNode(name string) error {
	m.t.Helper()
	receipt, err := m.tryRevoke(iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE, name)
	if err == nil {
		m.AwaitReceipt(receipt)
	}
	return err
}

// RevokeNodeAtOnce revokes a node, and waits for nobody.
func (m *Mesh) RevokeNodeAtOnce(name string) {
	m.t.Helper()
	m.revoke(iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE, name)
}

func (m *Mesh) revoke(target iapmeshv1.RevokeTarget, value string) *iapmeshv1.Receipt {
	m.t.Helper()
	receipt, err := m.tryRevoke(target, value)
	m.must("revoke "+value, err)
	return receipt
}

func (m *Mesh) tryRevoke(target iapmeshv1.RevokeTarget, value string) (receipt *iapmeshv1.Receipt, err error) {
	err = m.Try(func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		resp, err := iapmeshv1.NewRevocationServiceClient(conn).Revoke(ctx, &iapmeshv1.RevokeRequest{Target: target, Value: value, Reason: "test"}, o...)
		receipt = resp.GetReceipt()
		return err
	})
	return receipt, err
}

// RotateSigningKeys asks for successors of all signing keys and returns the kids that they replace.
func (m *Mesh) RotateSigningKeys() []string {
	m.t.Helper()
	var kids []string
	m.call("rotate signing keys", func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		resp, err := iapmeshv1.NewKeyServiceClient(conn).RotateSigningKeys(ctx, &iapmeshv1.RotateSigningKeysRequest{}, o...)
		kids = resp.GetRotating()
		return err
	})
	return kids
}

// SigningKeys lists all signing keys.
func (m *Mesh) SigningKeys() []*iapmeshv1.SigningKeyStatus {
	m.t.Helper()
	var keys []*iapmeshv1.SigningKeyStatus
	m.call("list signing keys", func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		resp, err := iapmeshv1.NewKeyServiceClient(conn).ListSigningKeys(ctx, &iapmeshv1.ListSigningKeysRequest{}, o...)
		keys = resp.GetKeys()
		return err
	})
	return keys
}

// Records returns the audit records that the aggregator has stored and that the query selects.
func (m *Mesh) Records(query *iapmeshv1.QueryRequest) []*iapmeshv1.QueryResponse {
	m.t.Helper()
	var out []*iapmeshv1.QueryResponse
	m.callNode("query the trail", m.In(m.order[0]).config.Listen.Mesh, func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		out = nil
		stream, err := iapmeshv1.NewAuditServiceClient(conn).Query(ctx, query, o...)
		if err != nil {
			return err
		}
		for {
			resp, err := stream.Recv()
			if err != nil {
				return ignoreEOF(err)
			}
			out = append(out, resp)
		}
	})
	return out
}

// NewSecret makes a provisioning key that pins the mesh's root. The mesh does not know it until it is issued.
func (m *Mesh) NewSecret() keyring.ProvisioningSecret {
	m.t.Helper()
	secret, err := keyring.GenerateKey(m.founded.Bootstrap.Pin(), nil)
	m.must("make a key", err)
	return secret
}
