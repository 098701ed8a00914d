package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// Pinned says how a joiner, which knows one hash, reaches a control node.
type Pinned struct {
	Pin     [32]byte                                                          // keyring.Pin of the mesh root
	NetDial func(ctx context.Context, network, addr string) (net.Conn, error) // nil: net.Dialer
	Clock   func() time.Time                                                  // nil: time.Now
	AnyNode bool                                                              // a node that is no control node will do, too: to ask where those are
}

// Dial connects under ProtoJoin, without a certificate. The server's chain must lead, unexpired, to the pinned root, which it
// sends, and its SPIFFE ID must be a control node's: that it merely chains to the root is not enough (keyring.ErrNoControlNode).
func (p Pinned) Dial(ctx context.Context, addr string) (*Conn, error) {
	if p.NetDial == nil {
		p.NetDial = new(net.Dialer).DialContext
	}
	if p.Clock == nil {
		p.Clock = time.Now
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	raw, err := p.NetDial(ctx, "tcp", addr)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "dial %s: %w", addr, err)
	}
	c, err := handshake(ctx, raw, ProtoJoin, nil, func(cred *credential) (Info, error) {
		verify := keyring.VerifyPinned
		if p.AnyNode {
			verify = keyring.VerifyPinnedNode
		}
		_, err := verify(cred.chain, p.Pin, p.Clock())
		return Info{}, err
	})
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	return c, nil
}

// asUnavailable gives a handshake's error a kind: our own refusals keep theirs, all else is the network's or the peer's.
func asUnavailable(err error) error {
	var own *fault.Error
	if errors.As(err, &own) {
		return err
	}
	return fault.New(fault.Unavailable, "handshake: %w", err)
}
