package peer

import (
	"context"
	"net"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// Stream is a protocol's listener and dialer in one, by address: what a raft stream layer is made of. A raft address is a
// control node's mesh address.
type Stream struct {
	net.Listener
	dialer    *Dialer
	proto     string
	advertise Address
}

// Address is a host:port as a net.Addr, for where others reach a node: a name, as often as not.
type Address string

// Network is tcp.
func (Address) Network() string  { return "tcp" }
func (a Address) String() string { return string(a) }

// NewStream joins the two. Others reach this node at advertise, host:port; empty means the listener's own address.
func NewStream(l net.Listener, d *Dialer, proto, advertise string) *Stream {
	if advertise == "" {
		advertise = l.Addr().String()
	}
	return &Stream{Listener: l, dialer: d, proto: proto, advertise: Address(advertise)}
}

// Addr is what others reach this node by.
func (s *Stream) Addr() net.Addr { return s.advertise }

// Dial connects to the control node at a mesh address. Where exactly one trusted control node of the view has that
// address, that one must answer; otherwise any control node may, since its record is checked all the same.
func (s *Stream) Dial(addr string, timeout time.Duration) (net.Conn, error) {
	if timeout <= 0 {
		return nil, fault.New(fault.Invalid, "dial %s: timeout %s", addr, timeout)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := s.dialer.Dial(ctx, s.proto, s.dialer.nodeAt(addr), addr)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// nodeAt is the id of the one trusted control node at a mesh address; empty if there is none, or more than one.
func (d *Dialer) nodeAt(addr string) string {
	if d.config.Trust == nil {
		return ""
	}
	view := d.config.Trust.Snapshot()
	if view == nil {
		return ""
	}
	found := ""
	for _, n := range view.Nodes {
		if n.Addresses.Mesh != addr || !n.Trusted() || !n.HasRole(keyring.RoleControl) {
			continue
		}
		if found != "" {
			return ""
		}
		found = n.ID
	}
	return found
}
