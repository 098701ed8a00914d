package nodetest

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// network carries what nodes say to each other over TCP, told apart by mesh address, and loses what crosses a cut. What is not a
// mesh address (gossip) passes: gossip is never trusted for anything that a test asserts.
type network struct {
	mu    sync.Mutex
	away  map[string]bool // mesh addresses that are cut off; guarded by mu
	far   map[string]bool // mesh addresses to which and from which a connection takes its time; guarded by mu
	conns map[*link]bool  // open connections; guarded by mu
}

type link struct {
	net.Conn
	network  *network
	from, to string
}

// farAway is how long it takes to connect to a node that is far away.
const farAway = 300 * time.Millisecond

func newNetwork() *network {
	return &network{away: map[string]bool{}, far: map[string]bool{}, conns: map[*link]bool{}}
}

func (n *network) severed(from, to string) bool { return from != to && (n.away[from] || n.away[to]) }

// dialFrom dials for the node with that mesh address, from a loopback address where one is given.
func (n *network) dialFrom(from, source string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, kind, to string) (net.Conn, error) {
		n.mu.Lock()
		severed, far := n.severed(from, to), n.far[from] || n.far[to]
		n.mu.Unlock()
		if far {
			select {
			case <-time.After(farAway):
			case <-ctx.Done():
			}
		}
		if severed {
			return nil, fault.New(fault.Unavailable, "dial %s: the test has cut the network", to)
		}
		var d net.Dialer
		if source != "" {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(source)}
		}
		c, err := d.DialContext(ctx, kind, to)
		if err != nil {
			return nil, err
		}
		l := &link{Conn: c, network: n, from: from, to: to}
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.severed(from, to) {
			c.Close()
			return nil, fault.New(fault.Unavailable, "dial %s: the test has cut the network", to)
		}
		n.conns[l] = true
		return l, nil
	}
}

func (l *link) Close() error {
	l.network.mu.Lock()
	delete(l.network.conns, l)
	l.network.mu.Unlock()
	return l.Conn.Close()
}

func (n *network) cut(addr string) {
	n.mu.Lock()
	n.away[addr] = true
	var dead []*link
	for l := range n.conns {
		if n.severed(l.from, l.to) {
			dead = append(dead, l)
		}
	}
	n.mu.Unlock()
	for _, l := range dead {
		l.Close()
	}
}

func (n *network) heal(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.away, addr)
}

func (n *network) moveAway(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.far[addr] = true
}
