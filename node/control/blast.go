package control

import (
	"context"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// PreviewKeyRevocation says what the revocation of a key would do now, and whether it would be refused: it asks the same rules.
func (c *Controller) PreviewKeyRevocation(ctx context.Context, by string, req *iapmeshv1.RevokeKeyRequest) (*keyring.Key, *iapmeshv1.BlastRadius, error) {
	req = proto.CloneOf(req)
	req.DryRun = true
	_, _, _, refused := c.RevokeKey(ctx, by, req)
	if refused != nil && !fault.Is(refused, fault.Denied) {
		return nil, nil, refused
	}
	now, err := c.Survey()
	if err != nil {
		return nil, nil, err
	}
	v := now.view
	k, err := v.Keyring.FindKey(req.Key)
	if err != nil {
		return nil, nil, err
	}
	cascade := state.CascadeOf(req.Cascade)
	if req.Cascade == iapmeshv1.Cascade_CASCADE_UNSPECIFIED {
		cascade = keyring.CascadeKeep
	}
	revoked, changed, err := keyring.RevokeKey(*k, v.Keyring.NodesUnder(k.ID), keyring.RevokeRequest{Cascade: cascade, Reason: req.Reason, Now: c.now(), Unconfirmed: v.Keyring.Unconfirmed()})
	if err != nil {
		return nil, nil, err
	}
	blast := now.KeyBlast(&revoked, changed)
	if refused != nil {
		blast.Refusal = refused.Error()
	}
	return &revoked, blast, nil
}

// PreviewNodeRevocation is the same for a node.
func (c *Controller) PreviewNodeRevocation(ctx context.Context, ref string) (*iapmeshv1.BlastRadius, error) {
	var id string
	_, refused := c.update(ctx, "revoke node "+ref, func(t *tx) error {
		var err error
		if id, err = FindNode(t.View, ref); err != nil {
			return err
		}
		n, err := t.node(id)
		if err != nil {
			return err
		}
		return c.mayRevokeNode(t, n)
	})
	if refused != nil && !fault.Is(refused, fault.Denied) {
		return nil, refused
	}
	now, err := c.Survey()
	if err != nil {
		return nil, err
	}
	n := now.view.Keyring.Nodes[id]
	if n == nil {
		return nil, fault.New(fault.NotFound, "no node %.80q", ref)
	}
	var changed []keyring.Node
	if n.State != keyring.NodeRevoked {
		revoked, err := keyring.RevokeNode(*n, "", c.now())
		if err != nil {
			return nil, err
		}
		changed = append(changed, revoked)
	}
	blast := now.Blast(changed)
	if refused != nil {
		blast.Refusal = refused.Error()
	}
	return blast, nil
}

// mayRevokeNode refuses to revoke the leader, or whom the quorum needs. What is revoked already may be again.
func (c *Controller) mayRevokeNode(t *tx, n *keyring.Node) error {
	switch {
	case n.State == keyring.NodeRevoked:
		return nil // nothing is left to lose
	case n.ID == c.NodeID:
		return c.errLeads(t, n.ID)
	}
	return c.keepsQuorum(t, n.ID)
}

// Survey is the mesh at one moment: what a revocation ends is told by what was there before it.
type Survey struct {
	view *state.View
	live *liveSessions
}

// Survey takes one now.
func (c *Controller) Survey() (*Survey, error) {
	v, err := c.view()
	if err != nil {
		return nil, err
	}
	return &Survey{view: v, live: c.Reports.sessions(v)}, nil
}

// KeyBlast says what ends when a key is revoked, and nodes become changed with it: also the sessions of those that have departed.
func (s *Survey) KeyBlast(revoked *keyring.Key, changed []keyring.Node) *iapmeshv1.BlastRadius {
	return s.blast(changed, s.view.Keyring.LeftBehind(revoked.ID, revoked.Cascade))
}

// Blast says what ends when nodes become changed: quarantined or revoked.
func (s *Survey) Blast(changed []keyring.Node) *iapmeshv1.BlastRadius { return s.blast(changed, nil) }

// blast is both; behind are session keys that end though their nodes stay as they are.
func (s *Survey) blast(changed []keyring.Node, behind []*keyring.SigningKey) *iapmeshv1.BlastRadius {
	v, live := s.view, s.live
	after := map[string]*keyring.Node{}
	out := &iapmeshv1.BlastRadius{}
	for i := range changed {
		after[changed[i].ID] = &changed[i]
	}
	var held []heldSessions
	for _, was := range sortedNodes(v) {
		n := after[was.ID]
		if n == nil {
			continue
		}
		before := state.NodeProto(was).GetState()
		out.Nodes = append(out.Nodes, &iapmeshv1.NodeChange{Node: state.NodeProto(n), Before: before})
		held = append(held, live.minted[n.ID]...)
		for _, k := range v.Keyring.SigningKeysOf(n.ID) {
			if k.Verifies() {
				out.SigningKeys = append(out.SigningKeys, state.SigningKeyProto(k))
			}
		}
		if n.State != keyring.NodeRevoked {
			continue
		}
		for _, k := range knownAssertionKeys(v, was) {
			if !slices.ContainsFunc(out.SigningKeys, func(have *iapmeshv1.SigningKey) bool { return have.Kid == k.KID }) {
				out.SigningKeys = append(out.SigningKeys, state.SigningKeyProto(k))
			}
		}
	}
	for i, k := range behind {
		out.SigningKeys = append(out.SigningKeys, state.SigningKeyProto(k))
		if i == 0 || behind[i-1].Node != k.Node {
			held = append(held, live.minted[k.Node]...)
		}
	}
	out.Sessions = live.count(held)
	out.SigningKeys = append(out.SigningKeys, assertionKeysOf(v, after)...)
	out.Routes = routesLost(v, after)
	return out
}

// assertionKeysOf are the assertion keys whose private half a node could open that is revoked: they are not trusted for a moment longer.
// A quarantined node's get a successor in the ordinary way.
func assertionKeysOf(v *state.View, after map[string]*keyring.Node) []*iapmeshv1.SigningKey {
	var out []*iapmeshv1.SigningKey
	for _, k := range v.Keyring.VerifyingKeys(keyring.SigningAssertion) {
		a := v.Keyring.Audiences[keyring.AssertAudience(k.Region, k.RouteSelector)]
		if a != nil && slices.ContainsFunc(a.Wraps, func(w keyring.Wrap) bool { n := after[w.Node]; return n != nil && n.State == keyring.NodeRevoked }) {
			out = append(out, state.SigningKeyProto(k))
		}
	}
	return out
}

// routesLost are the routes that an active proxy of a region serves now, and none would.
func routesLost(v *state.View, after map[string]*keyring.Node) []*iapmeshv1.RouteLoss {
	regions := map[string][]*keyring.Node{}
	var order []string
	for _, n := range sortedNodes(v) {
		if n.State == keyring.NodeActive && n.HasRole(keyring.RoleProxy) {
			if regions[n.Region] == nil {
				order = append(order, n.Region)
			}
			regions[n.Region] = append(regions[n.Region], n)
		}
	}
	var out []*iapmeshv1.RouteLoss
	for _, r := range v.Config.Routes {
		for _, region := range order {
			if servedBy(v, r, regions[region], nil) && !servedBy(v, r, regions[region], after) {
				out = append(out, &iapmeshv1.RouteLoss{Route: r.Name, Region: region})
			}
		}
	}
	return out
}

// servedBy reports whether one of the proxies serves the route, without those in gone.
func servedBy(v *state.View, r *resource.Route, proxies []*keyring.Node, gone map[string]*keyring.Node) bool {
	return slices.ContainsFunc(proxies, func(n *keyring.Node) bool { return gone[n.ID] == nil && v.Selects(n, r) })
}
