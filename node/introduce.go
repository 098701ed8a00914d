package node

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/cluster/enroll"
	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// introduce is what this control node says of the last restoration to nodes that know nothing of it.
func (a *assembly) introduce() (*iapmeshv1.IntroduceResponse, error) {
	v := a.source.Load()
	if v == nil {
		return nil, fault.New(fault.Unavailable, "this node has no view of the mesh yet")
	}
	r := v.Keyring.Restoration
	if r == nil {
		return nil, fault.New(fault.NotFound, "this mesh was never restored")
	}
	full := state.RestorationProto(r)
	return &iapmeshv1.IntroduceResponse{
		Statement: full.Statement, Signature: r.Signature, By: r.By, Phase: full.Phase,
		ControlNode: &iapmeshv1.ControlNode{NodeId: a.id.public.NodeID, Region: a.config.Region, Address: a.addresses.Mesh},
	}, nil
}

// introductions is how a node that follows finds back into a mesh that was founded anew while it held a view of before. By its view it
// trusts none of the control nodes that there are now; an administrator whom it knows has signed for the one with which the new history
// begins. From then on it serves nobody by its old view; it tells that one what it remembers as refused, and follows it once it is
// released.
type introductions struct {
	*assembly
	known   atomic.Pointer[introduction]
	told    map[string]int // how many of its denials this node has told, by the restoration's signature; Run's or testify's alone
	parts   int            // calls that told something
	lastErr string         // Run's alone
}

// introduction is a control node of a later epoch than the view's.
type introduction struct {
	epoch uint64
	node  controlNode
	link  *link
}

// How long a node has heard nothing before it asks whether its mesh was restored, and how often it asks.
const (
	introduceAfter = 4 * time.Second
	introduceEvery = 2 * time.Second
)

// carrier is the control node of a later epoch than the view's, if one was introduced.
func (i *introductions) carrier(v *state.View) *introduction {
	if c := i.known.Load(); c != nil && v != nil && v.Revision.Epoch < c.epoch {
		return c
	}
	return nil
}

// Run asks, while nobody is followed, until ctx ends.
func (i *introductions) Run(ctx context.Context) error {
	tick := time.NewTicker(introduceEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			if c := i.known.Load(); c != nil {
				c.link.close()
			}
			return nil
		case <-tick.C:
		}
		v := i.source.Load()
		if age, known := i.freshness.Age(); v == nil || known && age < introduceAfter {
			continue
		}
		for _, address := range i.addressesToAsk(v) {
			err := i.ask(ctx, v, address)
			if err == nil {
				break
			}
			if text := err.Error(); text != i.lastErr && ctx.Err() == nil {
				i.lastErr = text
				i.logger.Info("control node asked for a restoration", "address", address, "error", err)
			}
		}
	}
}

func (i *introductions) addressesToAsk(v *state.View) []string {
	out := slices.Clone(i.config.Join.Addresses)
	for _, n := range v.Keyring.ControlNodes() {
		out = append(out, n.Addresses.Mesh)
	}
	for _, n := range i.id.controlNodes() {
		out = append(out, n.Address)
	}
	slices.Sort(out)
	return slices.DeleteFunc(slices.Compact(out), func(a string) bool { return a == "" })
}

// ask lets the control node at an address introduce itself.
func (i *introductions) ask(ctx context.Context, v *state.View, address string) error {
	authority := v.Keyring.ActiveAuthority()
	if authority == nil {
		return fault.New(fault.Unavailable, "the view knows no authority")
	}
	pinned := peer.Pinned{Pin: keyring.Pin(authority.Certificate), NetDial: i.env.NetDial, Clock: i.env.Now}
	return enroll.AskRestored(ctx, pinned, address, func(ctx context.Context, r enroll.Restored) error {
		s, err := i.believe(v, r)
		if err != nil {
			return err
		}
		i.source.Announce(&keyring.Restoration{ // by which this node serves nobody any more
			Statement: *s, By: r.Answer.By, Signature: r.Answer.Signature, Phase: keyring.RestorationAwaiting, SessionsFrom: revision.Revision{Epoch: s.NewEpoch},
		})
		if err := i.follow(v, r, s, address); err != nil {
			return err
		}
		if r.Answer.Phase == iapmeshv1.RestorationPhase_RESTORATION_PHASE_CONFIRMED {
			return nil
		}
		if err := i.remember(ctx, v, r, s.NewEpoch); err != nil { // another control node may lead
			return fmt.Errorf("tell what this node remembers: %w", err)
		}
		return nil
	})
}

// believe checks a restoration by the view of before it: a mesh of the same name, a later epoch, and the signature of an administrator
// whom the view knows and has not revoked.
func (i *introductions) believe(v *state.View, r enroll.Restored) (*keyring.RestorationStatement, error) {
	s := state.StatementOf(r.Answer.Statement)
	admin := v.Keyring.Admins[r.Answer.By]
	switch {
	case s.Mesh != v.Keyring.Mesh.ID:
		return nil, fault.New(fault.Denied, "it restored another mesh")
	case s.NewEpoch <= v.Revision.Epoch:
		return nil, fault.New(fault.NotFound, "its mesh was not restored since")
	case r.Answer.ControlNode.GetNodeId() != r.Node:
		return nil, fault.New(fault.Denied, "it is node %s and says that it is %.64q", r.Node, r.Answer.ControlNode.GetNodeId())
	case admin == nil:
		return nil, fault.New(fault.Denied, "its restoration was signed by an administrator whom this node does not know")
	}
	if err := admin.Check(i.env.Now()); err != nil {
		return nil, err
	}
	if err := s.VerifySignature(admin.PublicKey, r.Answer.Signature); err != nil {
		return nil, err
	}
	if n := v.Keyring.Nodes[r.Node]; s.Carrier != r.Node && (n == nil || !n.Trusted() || !n.HasRole(keyring.RoleControl)) {
		return nil, fault.New(fault.Denied, "node %s is neither trusted nor the one that the administrator signed for", r.Node)
	}
	return s, nil
}

// testify tells, once, what a control node remembers whose log a restoration has left behind: it is about to end for that, and what was
// revoked by it and others that are gone would be known to nobody.
func (i *introductions) testify(ctx context.Context) {
	v := i.source.Load()
	if v == nil || v.Keyring.ActiveAuthority() == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, testifyWithin)
	defer cancel()
	for before := -1; i.parts != before; { // an attempt that got on is worth another
		before = i.parts
		if i.testifyOnce(ctx, v) {
			return
		}
	}
}

func (i *introductions) testifyOnce(ctx context.Context, v *state.View) (told bool) {
	pinned := peer.Pinned{Pin: keyring.Pin(v.Keyring.ActiveAuthority().Certificate), NetDial: i.env.NetDial, Clock: i.env.Now}
	for _, address := range i.addressesToAsk(v) {
		err := enroll.AskRestored(ctx, pinned, address, func(ctx context.Context, r enroll.Restored) error {
			s, err := i.believe(v, r)
			if err != nil || r.Answer.Phase == iapmeshv1.RestorationPhase_RESTORATION_PHASE_CONFIRMED {
				return err
			}
			told = true
			return i.remember(ctx, v, r, s.NewEpoch)
		})
		switch {
		case err != nil:
			i.logger.Info("a control node was not told what this node remembers", "address", address, "error", err)
		case told:
			i.logger.Warn("the mesh was restored without this node's log: it was told what this node remembers", "address", address, "denials", len(v.Keyring.Denials()))
			return true
		}
	}
	return false
}

// testifyWithin bounds for how long a node that ends tries.
const testifyWithin = 20 * time.Second

// remember tells the leader what this node's view refuses, from where an earlier attempt ended, and that this was all: again each time,
// since a leader keeps that in memory.
func (i *introductions) remember(ctx context.Context, v *state.View, r enroll.Restored, epoch uint64) error {
	if i.told == nil {
		i.told = map[string]int{}
	}
	this, left := string(r.Answer.Signature)+v.Revision.String(), state.DenialsProto(v.Keyring.Denials())
	for left = left[i.told[this]:]; ; {
		part := left[:partOf(left)]
		left = left[len(part):]
		body, err := proto.Marshal(&iapmeshv1.RememberBody{NodeId: i.id.public.NodeID, Epoch: epoch, Denials: part, Last: len(left) == 0})
		if err != nil {
			return fault.New(fault.Internal, "remember: %w", err)
		}
		signature, err := keyring.SignRemember(i.id.nodeKey(), r.EKM, body)
		if err != nil {
			return err
		}
		if _, err := r.Client.Remember(ctx, &iapmeshv1.RememberRequest{Body: body, Signature: signature}); err != nil {
			return fault.FromStatus(err)
		}
		i.told[this] += len(part)
		i.parts++
		if len(left) == 0 {
			return nil
		}
	}
}

// What one call tells at most, well below keyring.MaxRemembered.
const (
	partDenials = 40
	partBytes   = 12 << 10
)

// partOf is how many of the denials one call tells.
func partOf(denials []*iapmeshv1.Denial) int {
	size := 0
	for n, d := range denials {
		if size += proto.Size(d); n == partDenials || size > partBytes && n > 0 {
			return n
		}
	}
	return len(denials)
}

// follow makes the control node the one to follow, if the administrator has signed for it. It is verified by chain, since no record of
// it is known; with its first change the view holds one.
func (i *introductions) follow(v *state.View, r enroll.Restored, s *keyring.RestorationStatement, address string) error {
	if s.Carrier != r.Node || i.carrier(v) != nil {
		return nil
	}
	bundle := &peer.Bundle{Roots: v.Keyring.Roots(), TrustDomain: v.Keyring.Mesh.TrustDomain}
	dialer, err := peer.NewDialer(peer.DialConfig{
		Identity: i.cert, Bundle: func() *peer.Bundle { return bundle }, NetDial: i.env.NetDial, Clock: i.env.Now, Logger: i.logger,
	})
	if err != nil {
		return err
	}
	nobody := func() (id, address string) { return "", "" }
	c := &introduction{
		epoch: s.NewEpoch, node: controlNode{NodeID: r.Node, Address: address},
		link: &link{dialer: dialer, source: new(state.Source), hint: nobody, logger: i.logger},
	}
	i.logger.Warn("the mesh was restored: this node follows again once it is released", "epoch", s.NewEpoch, "node", r.Node, "address", address, "by", r.Answer.By)
	i.known.Store(c)
	return nil
}
