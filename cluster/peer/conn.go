package peer

import (
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// Conn is one connection whose handshake is done and whose peer was verified.
type Conn struct {
	*tls.Conn
	proto   string
	state   tls.ConnectionState
	cred    *credential // nil: anonymous
	check   check
	release func() // stops tracking; idempotent
	ending  atomic.Bool
}

func newConn(tc *tls.Conn, proto string, cred *credential, c check) *Conn {
	return &Conn{Conn: tc, proto: proto, state: tc.ConnectionState(), cred: cred, check: c, release: func() {}}
}

// Proto is the protocol that was negotiated, an ALPN name.
func (c *Conn) Proto() string { return c.proto }

// Peer says who the peer is by the view of now, not of the handshake: Denied or Unauthenticated once it may no longer speak.
func (c *Conn) Peer() (Info, error) {
	info, err := c.check(c.cred)
	if err != nil {
		return Info{}, err
	}
	info.TLS, info.RemoteAddr = c.state, c.RemoteAddr()
	return info, nil
}

// Close ends the connection.
func (c *Conn) Close() error {
	c.release()
	return c.Conn.Close()
}

// sever ends the connection at once: a TLS close could wait for a peer that no longer reads.
func (c *Conn) sever() {
	c.release()
	_ = c.NetConn().Close()
}

// Of returns the Conn beneath c, which came from a listener of a Port or from a Dialer. Internal if it did not.
func Of(c net.Conn) (*Conn, error) {
	own, ok := c.(*Conn)
	if !ok {
		return nil, fault.New(fault.Internal, "connection %T is not of the mesh port", c)
	}
	return own, nil
}

// tracker knows the live connections, so that a new view can end those whose peer may no longer speak.
type tracker struct {
	mu    sync.Mutex
	conns map[*Conn]struct{}
}

// add tracks c from now on; it is checked once more, since the view may have changed during the handshake.
func (t *tracker) add(c *Conn, release func()) error {
	c.release = sync.OnceFunc(func() {
		t.mu.Lock()
		delete(t.conns, c)
		t.mu.Unlock()
		release()
	})
	t.mu.Lock()
	if t.conns == nil {
		t.conns = make(map[*Conn]struct{})
	}
	t.conns[c] = struct{}{}
	t.mu.Unlock()
	if _, err := c.Peer(); err != nil {
		c.sever()
		return err
	}
	return nil
}

// recheck ends each connection whose peer may no longer speak, once it has lingered, and tells of each once.
func (t *tracker) recheck(linger func(*Conn) time.Duration, ended func(*Conn, error)) {
	t.mu.Lock()
	all := make([]*Conn, 0, len(t.conns))
	for c := range t.conns {
		all = append(all, c)
	}
	t.mu.Unlock()
	for _, c := range all {
		_, err := c.Peer()
		if err == nil || c.ending.Swap(true) {
			continue
		}
		if d := linger(c); d > 0 {
			time.AfterFunc(d, c.sever)
		} else {
			c.sever()
		}
		ended(c, err)
	}
}
