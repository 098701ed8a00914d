// Package gossip knows who is there and where, notices who is not, and carries small messages (denials) where no quorum
// reaches. It runs hashicorp/memberlist: one pool for each region, and one between regions, of control nodes.
//
// Invariants. Gossip is never trusted for access: it may name addresses and spread messages that prove themselves, no more. Every
// packet and stream is encrypted with AES-256-GCM under the mesh's gossip keys and bound to its pool's label, so that neither
// another mesh nor another pool mixes in. Both pools share one TCP and UDP port, told apart by the label. Nothing that a peer
// sends makes this node hold more than a bounded amount.
//
// It leaves to others: what a message means and whether it is genuine (Config.Receive), and keys and seeds (the view).
package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// The pools.
const (
	PoolRegion = "region" // all nodes of one region
	PoolWAN    = "wan"    // control nodes of all regions
)

// Config is what a Mesh needs.
type Config struct {
	MeshID string
	Self   Self
	WAN    bool // also be a member of the pool between regions

	Listener   net.Listener   // owned by the Mesh from Run on; see Listen
	PacketConn net.PacketConn // the same, on the same port
	Advertise  string         // host:port by which others reach it; empty: the listener's address
	NetDial    func(ctx context.Context, network, addr string) (net.Conn, error)

	Keys  [][]byte                   // 32 bytes each; the first encrypts, all decrypt
	Seeds func(pool string) []string // gossip addresses of others, asked for again and again; nil: none

	// Receive is given each message that another node spread, once, in one goroutine. It reports whether the message is genuine:
	// then it is passed on. nil: no message is.
	Receive func(msg []byte) bool
	// Messages are those still worth telling a node that was away when they were spread. nil: none.
	Messages func() [][]byte

	Logger     *slog.Logger          // nil: none
	Registerer prometheus.Registerer // nil: none

	ProbeInterval  time.Duration // each round asks one member whether it is there: region 1 s, wan 3 s
	RejoinInterval time.Duration // between attempts to reach seeds that are not members: 10 s
	ReclaimTime    time.Duration // after which a dead node's name may come back at another address: 30 s
	LeaveTimeout   time.Duration // to say good-bye: 5 s
}

func (c Config) withDefaults() Config {
	if c.Advertise == "" && c.Listener != nil {
		c.Advertise = c.Listener.Addr().String()
	}
	if c.NetDial == nil {
		c.NetDial = new(net.Dialer).DialContext
	}
	if c.Seeds == nil {
		c.Seeds = func(string) []string { return nil }
	}
	if c.Receive == nil {
		c.Receive = func([]byte) bool { return false }
	}
	if c.Messages == nil {
		c.Messages = func() [][]byte { return nil }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	orDefault(&c.RejoinInterval, 10*time.Second)
	orDefault(&c.ReclaimTime, 30*time.Second)
	orDefault(&c.LeaveTimeout, 5*time.Second)
	return c
}

func orDefault(v *time.Duration, def time.Duration) {
	if *v <= 0 {
		*v = def
	}
}

func (c Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fault.New(fault.Invalid, "gossip: "+format, args...))
	}
	if c.MeshID == "" || len(c.MeshID) > 64 {
		bad("mesh id: want 1 to 64 bytes")
	}
	if c.Listener == nil || c.PacketConn == nil {
		bad("a listener and a packet connection are required")
	}
	host, _, err := net.SplitHostPort(c.Advertise)
	if ip := net.ParseIP(host); err != nil || host == "" || ip != nil && ip.IsUnspecified() {
		bad("advertise address %q: want host:port that others can reach", c.Advertise)
	}
	if err := validKeys(c.Keys); err != nil {
		errs = append(errs, err)
	}
	if _, err := c.Self.encode(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func validKeys(keys [][]byte) error {
	if len(keys) == 0 {
		return fault.New(fault.Invalid, "gossip: no key")
	}
	for i, k := range keys {
		if len(k) != 32 {
			return fault.New(fault.Invalid, "gossip: key %d has %d bytes, want 32", i, len(k))
		}
	}
	return nil
}

// Mesh is this node's part in gossip.
type Mesh struct {
	config   Config
	keys     *memberlist.Keyring
	metrics  *metrics
	socket   *socket
	pools    []*pool
	members  *members
	messages *messages

	mu   sync.Mutex
	self Self
}

// New makes a mesh that Run will join. Invalid if the configuration is.
func New(c Config) (*Mesh, error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return nil, err
	}
	keys, err := memberlist.NewKeyring(c.Keys, c.Keys[0])
	if err != nil {
		return nil, fault.New(fault.Invalid, "gossip: keys: %w", err)
	}
	m := &Mesh{config: c, keys: keys, self: c.Self, metrics: newMetrics()}
	m.members = newMembers(m.metrics)
	m.messages = newMessages(m.metrics)
	m.socket = newSocket(c, m.metrics)
	m.addPool(PoolRegion, c.MeshID+"/region/"+c.Self.Region)
	if c.WAN {
		m.addPool(PoolWAN, c.MeshID+"/wan")
	}
	if err := m.metrics.register(c.Registerer, m.pools); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Mesh) addPool(name, label string) {
	p := &pool{mesh: m, name: name, label: label, transport: m.socket.transport(label), wake: make(chan struct{}, 1)}
	p.queue = &memberlist.TransmitLimitedQueue{NumNodes: p.size, RetransmitMult: 4}
	m.pools = append(m.pools, p)
}

// Addr is the address by which others reach this node.
func (m *Mesh) Addr() string { return m.config.Advertise }

// Run takes part until ctx ends, then says good-bye.
func (m *Mesh) Run(ctx context.Context) error {
	var sockets, pools sync.WaitGroup
	for _, loop := range []func(){m.socket.accept, m.socket.receive} {
		sockets.Go(loop)
	}
	for _, p := range m.pools {
		pools.Go(func() { p.run(ctx) })
	}
	pools.Go(func() { m.deliver(ctx) })
	pools.Wait()
	m.socket.close()
	sockets.Wait()
	return nil
}

// Members are those that the pools know of, this node and the dead and departed of the last hour included, by pool, then by id.
// A node that is in both pools is there twice.
func (m *Mesh) Members() []Member { return m.members.list() }

// Changed returns a channel that closes with the next change of Members. Take it before reading them.
func (m *Mesh) Changed() <-chan struct{} { return m.members.changed() }

// Update changes what this node says of itself; the pools say it soon after. Its id and region stay. Invalid if it does not fit.
func (m *Mesh) Update(self Self) error {
	self.NodeID, self.Region = m.config.Self.NodeID, m.config.Self.Region
	if _, err := self.encode(); err != nil {
		return err
	}
	m.mu.Lock()
	m.self = self
	m.mu.Unlock()
	for _, p := range m.pools {
		select {
		case p.wake <- struct{}{}:
		default: // it is about to look anyway
		}
	}
	return nil
}

func (m *Mesh) meta() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, err := m.self.encode()
	if err != nil { // New and Update have checked it
		return nil
	}
	return b
}

// SetKeys replaces the gossip keys: the first encrypts from now on, all decrypt. Add a new one behind the old everywhere, then
// put it first everywhere, then drop the old.
func (m *Mesh) SetKeys(keys [][]byte) error {
	if err := validKeys(keys); err != nil {
		return err
	}
	for _, k := range keys {
		if err := m.keys.AddKey(slices.Clone(k)); err != nil {
			return fmt.Errorf("add gossip key: %w", err)
		}
	}
	if err := m.keys.UseKey(keys[0]); err != nil {
		return fmt.Errorf("use gossip key: %w", err)
	}
	for _, have := range m.keys.GetKeys() {
		if !slices.ContainsFunc(keys, func(k []byte) bool { return slices.Equal(k, have) }) {
			if err := m.keys.RemoveKey(have); err != nil {
				return fmt.Errorf("remove gossip key: %w", err)
			}
		}
	}
	return nil
}

// Listen opens TCP and UDP on one port of addr; with port 0, on a free one.
func Listen(addr string) (net.Listener, net.PacketConn, error) {
	var err error
	for range 10 { // the port that is free for TCP may be taken for UDP
		var l net.Listener
		if l, err = net.Listen("tcp", addr); err != nil {
			break
		}
		var pc net.PacketConn
		if pc, err = net.ListenPacket("udp", l.Addr().String()); err == nil {
			return l, pc, nil
		}
		_ = l.Close()
		if _, port, _ := net.SplitHostPort(addr); port != "0" {
			break
		}
	}
	return nil, nil, fault.New(fault.Unavailable, "gossip: listen on %s: %w", addr, err)
}
