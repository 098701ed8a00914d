package node

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/cluster/enroll"
	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Left is who has left, and from which revision on nobody trusts it: zero if it had left before, or the answer that said so was lost.
type Left struct {
	NodeID   string
	Name     string
	MeshID   string
	Revision revision.Revision
}

// askedAgain is after how long without an answer a node that leaves asks whether it has left already: whoever has is spoken to no more.
const askedAgain = 3 * time.Second

// Leave makes a node that is stopped depart from its mesh, for good, at its own word: the identity in the data directory asks the
// leader. Of c, DataDir and Seal count. The directory stays as it is. Invalid: it holds no identity that has enrolled. Conflict: the
// node still runs. Denied: the mesh would lose its quorum, or has revoked the node. Unavailable: no leader answered until ctx ended.
func Leave(ctx context.Context, c Config, env Env) (*Left, error) {
	if env.Logger == nil {
		env.Logger = slog.New(slog.DiscardHandler)
	}
	if _, err := os.Stat(filepath.Join(c.DataDir, identityFile)); errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Invalid, "%s holds no node: nothing to leave", c.DataDir)
	}
	id, err := readIdentity(ctx, &c)
	if err != nil {
		return nil, err
	}
	if !id.enrolled() {
		return nil, fault.New(fault.Invalid, "%s has not joined a mesh: nothing to leave", c.DataDir)
	}
	unlock, err := stopped(c.DataDir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	dialer, err := id.dialer(env)
	if err != nil {
		return nil, err
	}
	nobody := func() (id, address string) { return "", "" }
	way := &link{dialer: dialer, source: new(state.Source), known: id.public.ControlNodes, hint: nobody, logger: env.Logger}
	defer way.close()
	left := &Left{NodeID: id.public.NodeID, Name: id.public.Name, MeshID: id.public.MeshID}
	for {
		attempt, cancel := context.WithTimeout(ctx, askedAgain)
		err := way.call(attempt, "leave the mesh", func(ctx context.Context, m iapmeshv1.MeshServiceClient, o ...grpc.CallOption) error {
			answer, err := m.Leave(ctx, &iapmeshv1.LeaveRequest{}, o...)
			left.Revision = state.RevisionOf(answer.GetRevision())
			return err
		})
		cancel()
		switch {
		case err == nil:
			return left, nil
		case !fault.Is(err, fault.Unavailable):
			return nil, err
		}
		switch st := id.standing(ctx, dialer); st.GetState() {
		case iapmeshv1.NodeState_NODE_STATE_DEPARTED:
			return left, nil
		case iapmeshv1.NodeState_NODE_STATE_REVOKED:
			return nil, fault.New(fault.Denied, "leave the mesh: node %s was revoked at %s", left.NodeID, state.Time(st.GetSince()).UTC().Format(time.RFC3339))
		}
		if ctx.Err() != nil {
			return nil, err
		}
	}
}

// standing is what the first control node that answers says of this node; nil if none does.
func (id *identity) standing(ctx context.Context, dialer *peer.Dialer) *iapmeshv1.StandingResponse {
	for _, c := range id.public.ControlNodes {
		conn, err := dialer.Dial(ctx, peer.ProtoJoin, c.NodeID, c.Address)
		if err != nil {
			continue
		}
		st, err := enroll.Standing(ctx, conn, id.public.NodeID, id.nodeKey())
		_ = conn.Close()
		if err == nil {
			return st
		}
	}
	return nil
}

// dialer connects as this identity, by the roots that it knows: there is no view.
func (id *identity) dialer(env Env) (*peer.Dialer, error) {
	cert, err := id.certificate()
	if err != nil {
		return nil, err
	}
	own, err := peer.NewIdentity(cert)
	if err != nil {
		return nil, err
	}
	roots, err := id.roots()
	if err != nil {
		return nil, err
	}
	bundle := &peer.Bundle{Roots: roots, TrustDomain: id.public.TrustDomain}
	return peer.NewDialer(peer.DialConfig{
		Identity: own, Bundle: func() *peer.Bundle { return bundle }, NetDial: env.NetDial, Clock: env.Now, Logger: env.Logger,
	})
}

// stopped takes the lock that every running node holds, its spool's, and refuses where it is held. A node that never ran has none.
func stopped(dataDir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dataDir, spoolDir, "lock"), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "data_dir: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fault.New(fault.Conflict, "the node in %s still runs: stop it first", dataDir), f.Close())
	}
	return func() { _ = f.Close() }, nil // which unlocks it; nothing was written
}
