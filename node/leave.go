package node

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Left is who has left, and from which revision on nobody trusts it.
type Left struct {
	NodeID   string
	Name     string
	MeshID   string
	Revision revision.Revision
}

// Leave makes a node that is stopped depart from its mesh, for good, at its own word: the identity in the data directory asks the
// leader. Of c, DataDir and Seal count. The directory stays as it is. Invalid: it holds no identity that has enrolled. Conflict: the
// node still runs. Denied: the mesh would lose its quorum. Unavailable: no leader answered until ctx ended.
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
	var answer *iapmeshv1.LeaveResponse
	err = way.call(ctx, "leave the mesh", func(ctx context.Context, m iapmeshv1.MeshServiceClient, o ...grpc.CallOption) (err error) {
		answer, err = m.Leave(ctx, &iapmeshv1.LeaveRequest{}, o...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &Left{NodeID: id.public.NodeID, Name: id.public.Name, MeshID: id.public.MeshID, Revision: state.RevisionOf(answer.Revision)}, nil
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
