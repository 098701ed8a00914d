package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// link is a node's way to whoever leads. A node that leads calls itself through its own mesh port like any other: one path.
type link struct {
	dialer *peer.Dialer
	source *state.Source
	known  []controlNode               // from the join: all there is before the first view
	hint   func() (id, address string) // who leads, as far as the engine or the stream that this node follows knows
	logger *slog.Logger

	mu    sync.Mutex
	conns map[string]*grpc.ClientConn // by node id and address; guarded by mu
	last  controlNode                 // who led when it last answered; guarded by mu
}

// retryEvery is how long a call waits before it asks all control nodes again.
const retryEvery = 150 * time.Millisecond

// call makes f's call at the leader: at the one that is known to lead, then at those that answers point to, then at every
// control node, until ctx ends. Only Unavailable is tried again, unless the answer says when.
func (l *link) call(ctx context.Context, what string, f func(context.Context, iapmeshv1.MeshServiceClient, ...grpc.CallOption) error) error {
	var last error
	for {
		for _, target := range l.candidates() {
			pointer, err := l.try(ctx, target, f)
			if pointer.Address != "" && pointer.Address != target.Address {
				_, err = l.try(ctx, pointer, f)
			}
			if err == nil {
				return nil
			}
			var put *putOff
			if !fault.Is(err, fault.Unavailable) || errors.As(err, &put) {
				return fmt.Errorf("%s: %w", what, err)
			}
			last = err
			if ctx.Err() != nil {
				break
			}
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "%s: no leader answered: %w", what, errors.Join(last, context.Cause(ctx)))
		case <-time.After(retryEvery):
		}
	}
}

func (l *link) try(ctx context.Context, target controlNode, f func(context.Context, iapmeshv1.MeshServiceClient, ...grpc.CallOption) error) (controlNode, error) {
	client, err := l.client(target)
	if err != nil {
		return controlNode{}, err
	}
	var trailer metadata.MD
	if err := f(ctx, client, grpc.Trailer(&trailer)); err != nil {
		if after := trailer.Get(control.RetryTrailer); len(after) > 0 {
			return controlNode{}, newPutOff(fault.FromStatus(err), after[0])
		}
		return leaderFrom(trailer), fault.FromStatus(err)
	}
	l.answered(target)
	return controlNode{}, nil
}

// putOff is an answer that stays the same for a while.
type putOff struct {
	error
	after time.Duration
}

func (p *putOff) Unwrap() error { return p.error }

// maxPutOff bounds how long a node lets itself be put off.
const maxPutOff = time.Hour

func newPutOff(err error, seconds string) error {
	n, parseErr := strconv.Atoi(seconds)
	if parseErr != nil || n < 0 {
		return err
	}
	return &putOff{err, min(time.Duration(n)*time.Second, maxPutOff)}
}

func leaderFrom(trailer metadata.MD) controlNode {
	for _, v := range trailer.Get(control.LeaderTrailer) {
		if id, address, ok := strings.Cut(v, " "); ok {
			return controlNode{NodeID: id, Address: address}
		}
	}
	return controlNode{}
}

func (l *link) answered(n controlNode) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = n
}

// candidates are the control nodes to ask, the likeliest leader first.
func (l *link) candidates() []controlNode {
	var out []controlNode
	add := func(n controlNode) {
		if n.Address != "" && !slices.ContainsFunc(out, func(have controlNode) bool { return have.NodeID == n.NodeID && have.Address == n.Address }) {
			out = append(out, n)
		}
	}
	if id, address := l.hint(); id != "" {
		add(controlNode{NodeID: id, Address: address})
	}
	l.mu.Lock()
	add(l.last)
	l.mu.Unlock()
	if v := l.source.Load(); v != nil {
		for _, n := range control.Nodes(v, "") {
			add(controlNode{NodeID: n.NodeId, Region: n.Region, Address: n.Address})
		}
	}
	if len(out) > 1 {
		return out
	}
	for _, n := range l.known {
		add(n)
	}
	return out
}

// client returns the connection to a control node, which is kept.
func (l *link) client(n controlNode) (iapmeshv1.MeshServiceClient, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	name := n.NodeID + " " + n.Address
	conn := l.conns[name]
	if conn == nil {
		options := append(l.dialer.DialOptions(peer.ProtoMesh, n.NodeID),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: quickBackoff, MinConnectTimeout: 3 * time.Second}),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)),
		)
		var err error
		if conn, err = grpc.NewClient("passthrough:///"+n.Address, options...); err != nil {
			return nil, fault.New(fault.Internal, "connect to %s: %w", n.Address, err)
		}
		if l.conns == nil {
			l.conns = map[string]*grpc.ClientConn{}
		}
		l.conns[name] = conn
	}
	return iapmeshv1.NewMeshServiceClient(conn), nil
}

// close ends all connections.
func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, conn := range l.conns {
		_ = conn.Close() // it reports only that it was closed before
	}
	l.conns = nil
}
