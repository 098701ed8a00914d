// Package node puts one node together: its identity, the engine or the stream that it follows, the view, the mesh port, what it
// does as leader, proxy and aggregator, and the order in which all that starts and ends. It is the composition root: whatever
// runs in a process is made here and belongs to one Run.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/iapmesh/iapmesh/cluster/enroll"
	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// The parts of a data directory.
const (
	raftDir     = "raft"
	replicaDir  = "replica"
	spoolDir    = "spool"
	collectDir  = "audit"
	sessionsDir = "session-keys"
	rotateDir   = "rotate"

	standingFile = "standing.json"
)

// Env is what a node takes from outside its configuration. The zero value is the real world.
type Env struct {
	Logger  *slog.Logger                                                      // nil: none
	Now     func() time.Time                                                  // nil: time.Now
	NetDial func(ctx context.Context, network, addr string) (net.Conn, error) // to other nodes; nil: the network
}

// Node is one node, not yet running.
type Node struct {
	env       Env
	config    Config
	addresses keyring.Addresses
	logger    *slog.Logger
	registry  *prometheus.Registry
	id        *identity
	started   time.Time
}

// New reads the node's identity, or makes one. It needs no network, except where a service keeps its seal: it waits for that.
func New(ctx context.Context, c Config, logger *slog.Logger) (*Node, error) {
	return NewIn(ctx, c, Env{Logger: logger})
}

// NewIn is New in an environment of the caller's.
func NewIn(ctx context.Context, c Config, env Env) (*Node, error) {
	if env.Logger == nil {
		env.Logger = slog.New(slog.DiscardHandler)
	}
	if env.Now == nil {
		env.Now = time.Now
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	addresses, err := c.addresses()
	if err != nil {
		return nil, err
	}
	if c.DataDir, err = filepath.Abs(c.DataDir); err != nil {
		return nil, fault.New(fault.Invalid, "data_dir: %w", err)
	}
	logger := env.Logger.With("node", c.Name, "region", c.Region)
	id, err := awaitIdentity(ctx, &c, logger)
	if err != nil {
		return nil, err
	}
	if err := id.matches(&c); err != nil {
		return nil, err
	}
	if !id.enrolled() && len(c.Join.Addresses) == 0 {
		return nil, fault.New(fault.Invalid, "%s has not joined a mesh: give join.addresses and join.key, or found one with `iapmesh init`", c.DataDir)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return &Node{
		env: env, config: c, addresses: addresses, logger: logger, registry: registry, id: id, started: env.Now(),
	}, nil
}

// Run joins if need be, then serves until ctx ends or a part of the node cannot go on.
func (n *Node) Run(ctx context.Context) error {
	if !n.id.enrolled() {
		if err := n.join(ctx); err != nil {
			return err
		}
	}
	p, err := n.assemble(ctx)
	if err != nil {
		return err
	}
	n.logger.Info("node runs", "id", n.id.public.NodeID, "mesh", n.id.public.MeshID, "roles", n.config.Roles, "mesh_address", n.addresses.Mesh)
	err = runStages(ctx, p.ground, p.shipping, p.base, p.front)
	p.close()
	var turnedAway *TurnedAwayError
	if errors.As(err, &turnedAway) {
		n.logger.Error("this node is turned away for good, and ends", "state", turnedAway.State, "since", turnedAway.Since, "reason", turnedAway.Reason)
		return turnedAway
	}
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	return err
}

// runStages runs all parts and ends them stage by stage, the last first: what serves, then what it stands on, so that the last records
// still reach the aggregator, or at least the disk, then the mesh port, so that a leader can still hand over. A part that ends takes
// everything with it.
func runStages(ctx context.Context, stages ...[]part) error {
	type running struct {
		group *errgroup.Group
		stop  context.CancelFunc
	}
	over, end := context.WithCancelCause(ctx)
	defer end(nil)
	started := make([]running, 0, len(stages))
	for _, parts := range stages {
		stageCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
		g, groupCtx := errgroup.WithContext(stageCtx)
		for _, p := range parts {
			run(g, groupCtx, p)
		}
		context.AfterFunc(groupCtx, func() { end(context.Canceled) })
		started = append(started, running{g, stop})
	}
	<-over.Done()
	var errs []error
	for _, r := range slices.Backward(started) {
		r.stop()
		errs = append(errs, r.group.Wait())
	}
	return errors.Join(errs...)
}

// part is something that runs as long as the node does.
type part struct {
	name string
	run  func(context.Context) error
}

func run(g *errgroup.Group, ctx context.Context, p part) {
	g.Go(func() error {
		err := p.run(ctx)
		switch {
		case err != nil && (ctx.Err() == nil || !errors.Is(err, context.Canceled)):
			return fmt.Errorf("%s: %w", p.name, err)
		case err == nil && ctx.Err() == nil:
			return fault.New(fault.Internal, "%s: ended by itself", p.name)
		}
		return nil
	})
}

// join enrols the node. Its keys and join id are on disk before it asks; what comes back is, before it goes on.
func (n *Node) join(ctx context.Context) error {
	if timeout := n.config.joinTimeout(); timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	text, err := n.config.Join.Key.Read()
	if err != nil {
		return fmt.Errorf("join.key: %w", err)
	}
	secret, err := keyring.ParseSecret(text)
	if err != nil {
		return fmt.Errorf("join.key: %w", err)
	}
	member, err := n.id.member()
	if err != nil {
		return err
	}
	n.logger.Info("joining", "key", secret.ID(), "addresses", n.config.Join.Addresses)
	e, err := enroll.Join(ctx, enroll.Request{
		Addresses: n.config.Join.Addresses, Secret: secret, JoinID: [16]byte(n.id.public.JoinID), NodeKey: n.id.nodeKey(), SessionKey: n.id.sessionKey(),
		SealingKey: member.Key.PublicKey(), Name: n.config.Name, Region: n.config.Region, Roles: state.RolesProto(n.config.roles()),
		Advertise: state.AddressesProto(n.addresses), Logger: n.logger,
		Pinned: func(pin [32]byte) peer.Pinned { return peer.Pinned{Pin: pin, NetDial: n.env.NetDial, Clock: n.env.Now} },
	})
	if err != nil {
		return err
	}
	p := &n.id.public
	p.NodeID, p.MeshID, p.TrustDomain = e.NodeID, e.MeshID, e.TrustDomain
	p.FirstKey = firstKey{Epoch: e.Revision.Epoch, Index: e.Revision.Index}
	p.setCertificate(e.Certificate.Leaf.Raw, e.Certificate.Certificate[1:])
	p.setControlNodes(e.ControlNodes)
	if err := n.id.save(); err != nil {
		return err
	}
	n.logger.Info("joined", "id", e.NodeID, "mesh", e.MeshID, "revision", e.Revision.String())
	return nil
}

func (p *publicIdentity) setCertificate(leaf []byte, roots [][]byte) {
	p.Certificate, p.Bundle = leaf, roots
}

func (p *publicIdentity) setControlNodes(nodes []*iapmeshv1.ControlNode) {
	p.ControlNodes = nil
	for _, c := range nodes {
		p.ControlNodes = append(p.ControlNodes, controlNode{NodeID: c.NodeId, Region: c.Region, Address: c.Address})
	}
}
