package node

import (
	"context"
	"crypto/ed25519"
	"net"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/iapmesh/iapmesh/audit/collect"
	"github.com/iapmesh/iapmesh/audit/spool"
	"github.com/iapmesh/iapmesh/cluster/enroll"
	"github.com/iapmesh/iapmesh/cluster/gossip"
	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/cluster/raftstore"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/rotate"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// parts are what runs, in stages: the front stands on the base, and all of it on the ground. What ships the trail ends after all that
// writes into it.
type parts struct {
	ground, shipping, base, front []part
	closers                       []func()
}

func (p *parts) close() {
	for i := len(p.closers) - 1; i >= 0; i-- {
		p.closers[i]()
	}
}

// assembly is a node while it is put together: each part takes what it needs from here.
type assembly struct {
	*Node
	parts
	member    seal.Member
	cert      *peer.Identity
	dialer    *peer.Dialer
	port      *peer.Port
	engine    engine
	store     *raftstore.Store // nil on nodes that follow
	source    *state.Source
	freshness *state.Freshness
	control   *control.Controller // nil on nodes that cannot lead
	link      *link
	gossip    atomic.Pointer[gossip.Mesh]
	ring      ringInUse
	spool     *spool.Spool
	trail     *trail
	refusals  *spool.Refusals
	users     *users // nil on nodes that serve none
	standing  *standing
	shipper   *collect.Shipper
	rotator   *rotate.Rotator // nil on nodes that rotate no keys
}

// viewTrust is the local view as cluster/peer asks for it: nil while there is none.
type viewTrust struct{ source **state.Source }

func (t viewTrust) Snapshot() *keyring.Snapshot {
	if *t.source == nil {
		return nil
	}
	if v := (*t.source).Load(); v != nil {
		return v.Keyring
	}
	return nil
}

// assemble makes every part and starts none.
func (n *Node) assemble(ctx context.Context) (*parts, error) {
	a := &assembly{Node: n}
	for _, step := range []func(context.Context) error{
		a.connect, a.openEngine, a.follow, a.record, a.lead, a.report, a.rotateKeys, a.serveUsers, a.serveMesh, a.talk, a.serveOps,
	} {
		if err := step(ctx); err != nil {
			a.close()
			return nil, err
		}
	}
	return &a.parts, nil
}

// connect opens the mesh port and the way to other nodes'.
func (a *assembly) connect(ctx context.Context) error {
	var err error
	if a.member, err = a.id.member(); err != nil {
		return err
	}
	cert, err := a.id.certificate()
	if err != nil {
		return err
	}
	if a.cert, err = peer.NewIdentity(cert); err != nil {
		return err
	}
	roots, err := a.id.roots()
	if err != nil {
		return err
	}
	bundle := &peer.Bundle{Roots: roots, TrustDomain: a.id.public.TrustDomain}
	trust, bundled := viewTrust{&a.source}, func() *peer.Bundle { return bundle }
	a.dialer, err = peer.NewDialer(peer.DialConfig{
		Identity: a.cert, Trust: trust, Bundle: bundled, NetDial: a.env.NetDial, Clock: a.env.Now, Logger: a.logger, Registerer: a.registry,
	})
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", a.config.Listen.Mesh)
	if err != nil {
		return fault.New(fault.Unavailable, "listen.mesh: %w", err)
	}
	a.closers = append(a.closers, func() { listener.Close() })
	a.port, err = peer.NewPort(peer.Config{Listener: listener, Identity: a.cert, Trust: trust, Bundle: bundled, Clock: a.env.Now, Logger: a.logger, Registerer: a.registry,
		Linger: map[string]time.Duration{peer.ProtoMesh: time.Second}}) // for the change that tells a follower that it is revoked
	if err != nil {
		return err
	}
	a.ground = append(a.ground, part{"mesh port", a.port.Run})
	return nil
}

// follow turns the engine's changes into views; each view is applied to what is open before it counts as served.
func (a *assembly) follow(context.Context) error {
	a.source = state.NewSource(a.engine, a.logger,
		a.followAuthorities,
		func(*state.View) { a.port.Recheck() },
		func(*state.View) { a.dialer.Recheck() },
		func(v *state.View) {
			if a.users != nil {
				a.users.live.Recheck(v)
			}
		},
		a.turnGossipKeys,
	)
	a.base = append(a.base, part{"view", a.source.Run})
	a.freshness = state.NewFreshness(a.source, a.env.Now)
	return a.freshness.RestoreFile(filepath.Join(a.config.DataDir, freshnessFile))
}

// report keeps the leader informed, the certificate new, and the join confirmed.
func (a *assembly) report(context.Context) error {
	a.link = &link{dialer: a.dialer, source: a.source, known: a.id.public.ControlNodes, hint: a.engine.Leader, logger: a.logger}
	a.closers = append(a.closers, a.link.close)
	reporter := &reporter{
		link: a.link, source: a.source, freshness: a.freshness, measure: a.config.HasRole(keyring.RoleControl), describe: a.describe,
		logger: a.logger, dataDir: a.config.DataDir, now: a.env.Now,
	}
	renewer := &renewer{id: a.id, cert: a.cert, link: a.link, source: a.source, logger: a.logger, nodeID: a.id.public.NodeID, now: a.env.Now, told: make(chan struct{}, 1)}
	reporter.lapsed = renewer.hearLapsed
	rebinder := &rebinder{key: a.id.nodeKey(), nodeID: a.id.public.NodeID, link: a.link, source: a.source, logger: a.logger}
	a.standing = &standing{
		nodeID: a.id.public.NodeID, source: a.source, ask: a.askStanding, heard: a.trustedSince(reporter), record: a.trail.Record, handIn: a.handIn,
		file: filepath.Join(a.config.DataDir, standingFile), logger: a.logger, settled: make(chan struct{}),
	}
	if err := a.standing.recall(); err != nil {
		return err
	}
	if a.store != nil { // other nodes tell it as soon as they hear of a restoration, and come back
		a.standing.last = (&introductions{assembly: a}).testify
	}
	a.base = append(a.base, part{"reports", reporter.Run}, part{"certificate", renewer.Run}, part{"provisioning key", rebinder.Run}, part{"standing", a.standing.Run})
	return nil
}

// trustedSince says when the mesh last showed that it trusts this node: its leader has answered it, or it leads. What it was told of itself
// would keep a leader from its own port.
func (a *assembly) trustedSince(r *reporter) func() time.Time {
	return func() time.Time {
		if a.control != nil {
			if term, _ := a.control.Leading(); term != 0 {
				return time.Now()
			}
		}
		return r.heard()
	}
}

// serveJoins terminates joins on a control node, and takes them to whoever leads; every other node says where control nodes are.
func (a *assembly) serveJoins() error {
	l, err := a.port.Listen(peer.ProtoJoin, peer.Nobody)
	if err != nil {
		return err
	}
	var admit enroll.Admit
	if a.control != nil {
		admit = a.relayJoin
	}
	server := enroll.NewServer(admit, a.locate, a.logger, a.registry)
	server.KeyOf = a.provisioningKey
	if a.control != nil {
		server.Revoke = a.relayRevokeByHolder
		server.AnswerStanding(a.findNode)
		server.ServeRestorations(enroll.Restorations{Introduce: a.introduce, Remember: a.control.Remember})
	}
	a.front = append(a.front, part{"joins", func(ctx context.Context) error { return server.Run(ctx, l) }})
	return nil
}

// provisioningKey is a key's public half; nil if this node knows none.
func (a *assembly) provisioningKey(id string) ed25519.PublicKey {
	if v := a.source.Load(); v != nil {
		if k := v.Keyring.Keys[id]; k != nil {
			return k.PublicKey
		}
	}
	return nil
}

// locate says where control nodes are.
func (a *assembly) locate() []*iapmeshv1.ControlNode {
	if v := a.source.Load(); v != nil {
		return control.Nodes(v, "")
	}
	return nil
}
