package gossip

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// pool is this node's part in one pool. It is memberlist's delegate; those methods run under memberlist's lock, never block,
// and never call memberlist.
type pool struct {
	mesh      *Mesh
	name      string
	label     string
	transport *transport
	queue     *memberlist.TransmitLimitedQueue
	wake      chan struct{}                         // what this node says of itself may have changed
	list      atomic.Pointer[memberlist.Memberlist] // nil before and after run
}

func (p *pool) settings() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	config := &p.mesh.config
	if p.name == PoolWAN {
		c.SuspicionMult = 5
		c.ProbeInterval, c.ProbeTimeout = 3*time.Second, 1500*time.Millisecond
	} else {
		c.TCPTimeout = 5 * time.Second
	}
	if config.ProbeInterval > 0 {
		c.ProbeInterval, c.ProbeTimeout = config.ProbeInterval, config.ProbeInterval/2
	}
	c.Name = config.Self.NodeID
	c.Transport = p.transport
	c.Label = p.label
	c.SkipInboundLabelCheck = true // the socket has read the label, and sends here only what bears ours
	c.Keyring = p.mesh.keys
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	c.EnableCompression = false
	c.PushPullInterval = 10 * time.Second
	c.DeadNodeReclaimTime = config.ReclaimTime
	c.Delegate, c.Events, c.Alive, c.Conflict = p, p, p, p
	c.Logger = newLogger(config.Logger, p.name)
	return c
}

// run takes part until ctx ends.
func (p *pool) run(ctx context.Context) {
	defer p.transport.stop() // also where memberlist never started
	list := p.create(ctx)
	if list == nil {
		return
	}
	p.list.Store(list)
	p.rejoin(ctx, list)
	p.mesh.goodbye(p)
	if err := list.Leave(p.mesh.config.LeaveTimeout); err != nil {
		p.mesh.config.Logger.Warn("gossip good-bye did not get out", "pool", p.name, "error", err.Error())
	}
	p.list.Store(nil)
	_ = list.Shutdown() // always nil
}

// create starts memberlist, which resolves this node's own advertised name: that may take until a resolver answers.
func (p *pool) create(ctx context.Context) *memberlist.Memberlist {
	for pause := time.Second; ; pause = min(2*pause, 30*time.Second) {
		list, err := memberlist.Create(p.settings())
		if err == nil {
			return list
		}
		p.mesh.config.Logger.Warn("gossip cannot start", "pool", p.name, "error", err.Error())
		if !sleep(ctx, pause) {
			return nil
		}
	}
}

// rejoin keeps reaching out to seeds that are not members until ctx ends: memberlist forgets the dead, and two halves of a pool
// that were apart for long would never meet again.
func (p *pool) rejoin(ctx context.Context, list *memberlist.Memberlist) {
	interval := p.mesh.config.RejoinInterval
	for {
		p.announce(list)
		wait := interval
		if p.reach(list) {
			wait = min(interval, time.Second)
		}
		timer := time.NewTimer(wait/2 + rand.N(wait/2+1)) //nolint:gosec // spreads load, keeps no secret
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-p.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// announce tells the pool what this node says of itself now, if the pool has heard otherwise. What does not get out, such as
// when memberlist refutes a suspicion at the same moment, the next round tells again.
func (p *pool) announce(list *memberlist.Memberlist) {
	told, known := p.mesh.members.get(p.name, p.mesh.config.Self.NodeID)
	meta, err := told.encode()
	if known && err == nil && bytes.Equal(meta, p.mesh.meta()) {
		return
	}
	if err := list.UpdateNode(time.Second); err != nil {
		p.mesh.config.Logger.Debug("gossip could not announce this node's data yet", "pool", p.name, "error", err.Error())
	}
}

// reach tries some of the seeds that are not members, and reports whether this node is still alone.
func (p *pool) reach(list *memberlist.Memberlist) (alone bool) {
	alive := p.mesh.members.alive(p.name)
	var missing []string
	for _, seed := range p.mesh.config.Seeds(p.name) {
		if alive[seed] == "" && seed != p.mesh.config.Advertise {
			missing = append(missing, seed)
		}
	}
	rand.Shuffle(len(missing), func(i, j int) { missing[i], missing[j] = missing[j], missing[i] }) //nolint:gosec // the same
	if len(missing) > 0 {
		_, _ = list.Join(missing[:min(3, len(missing))]) // memberlist logs what went wrong
	}
	return len(p.mesh.members.alive(p.name)) <= 1
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (p *pool) size() int { return len(p.mesh.members.alive(p.name)) }

func (p *pool) health() float64 {
	if list := p.list.Load(); list != nil {
		return float64(list.GetHealthScore())
	}
	return 0
}

func (p *pool) enqueue(msg []byte) {
	p.queue.QueueBroadcast(broadcast(msg))
	p.queue.Prune(maxQueued)
}

// maxFanOut bounds the packets that one message is worth at once.
const maxFanOut = 64

// send sends msg to the living members, at most maxFanOut of them, at once.
func (p *pool) send(msg []byte) {
	list := p.list.Load()
	if list == nil {
		return
	}
	sent := 0
	for addr, node := range p.mesh.members.alive(p.name) { // in random order
		if node == p.mesh.config.Self.NodeID {
			continue
		}
		if sent++; sent > maxFanOut {
			return
		}
		_ = list.SendToAddress(memberlist.Address{Addr: addr}, msg) // a lost packet is gossip's to make good
	}
}

type broadcast []byte

func (broadcast) Invalidates(memberlist.Broadcast) bool { return false }
func (b broadcast) Message() []byte                     { return b }
func (broadcast) Finished()                             {}
func (broadcast) UniqueBroadcast()                      {} // spares the queue a search for what it invalidates

// NodeMeta implements memberlist.Delegate.
func (p *pool) NodeMeta(int) []byte { return p.mesh.meta() }

// NotifyMsg implements memberlist.Delegate.
func (p *pool) NotifyMsg(msg []byte) { p.mesh.messages.arrive(p.name, msg) }

// GetBroadcasts implements memberlist.Delegate.
func (p *pool) GetBroadcasts(overhead, limit int) [][]byte {
	return p.queue.GetBroadcasts(overhead, limit)
}

// LocalState implements memberlist.Delegate: what a node that was away should hear.
func (p *pool) LocalState(bool) []byte { return encodeState(p.mesh.config.Messages()) }

// MergeRemoteState implements memberlist.Delegate.
func (p *pool) MergeRemoteState(b []byte, _ bool) {
	all, err := decodeState(b)
	if err != nil {
		p.mesh.metrics.messages.WithLabelValues("malformed").Inc()
		return
	}
	for _, msg := range all {
		p.mesh.messages.arrive(p.name, msg)
	}
}

// NotifyAlive implements memberlist.AliveDelegate: a member whose data cannot be read, or who is of another region, is none.
func (p *pool) NotifyAlive(n *memberlist.Node) error {
	_, err := p.member(n)
	return err
}

func (p *pool) member(n *memberlist.Node) (Member, error) {
	self, err := decodeMeta(n.Meta)
	if err != nil {
		return Member{}, err
	}
	if self.NodeID != n.Name {
		return Member{}, fault.New(fault.Invalid, "gossip: member %.80q says that it is %q", n.Name, self.NodeID)
	}
	if p.name == PoolRegion && self.Region != p.mesh.config.Self.Region {
		return Member{}, fault.New(fault.Invalid, "gossip: member %q is of region %q", self.NodeID, self.Region)
	}
	addr, ok := netip.AddrFromSlice(n.Addr)
	if !ok {
		return Member{}, fault.New(fault.Invalid, "gossip: member %q has no address", self.NodeID)
	}
	return Member{Self: self, Addr: netip.AddrPortFrom(addr.Unmap(), n.Port), Pool: p.name}, nil
}

// NotifyJoin implements memberlist.EventDelegate.
func (p *pool) NotifyJoin(n *memberlist.Node) {
	m, err := p.member(n)
	if err != nil { // NotifyAlive has refused it
		return
	}
	p.mesh.members.seen(m)
}

// NotifyUpdate implements memberlist.EventDelegate.
func (p *pool) NotifyUpdate(n *memberlist.Node) { p.NotifyJoin(n) }

// NotifyLeave implements memberlist.EventDelegate.
func (p *pool) NotifyLeave(n *memberlist.Node) { p.mesh.members.lost(p.name, n.Name) }

// NotifyConflict implements memberlist.ConflictDelegate.
func (p *pool) NotifyConflict(existing, other *memberlist.Node) {
	p.mesh.config.Logger.Warn("two gossip members have one name", "pool", p.name, "node", existing.Name,
		"here", net.JoinHostPort(existing.Addr.String(), itoa(existing.Port)), "there", net.JoinHostPort(other.Addr.String(), itoa(other.Port)))
}
