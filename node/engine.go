package node

import (
	"context"
	"path/filepath"

	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/cluster/raftstore"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/control"
)

// engine is where this node reads the replicated state: the store itself on control nodes, a replica on others.
type engine interface {
	store.Reader
	Leader() (id, address string)
}

// openEngine opens what this node's role asks for. A control node that has just joined opens an engine without members: it follows
// once the leader has added it to the log, and votes once it has kept up.
func (a *assembly) openEngine(ctx context.Context) error {
	if !a.config.HasRole(keyring.RoleControl) {
		return a.openReplica(ctx)
	}
	l, err := a.port.Listen(peer.ProtoRaft, peer.ControlNode)
	if err != nil {
		return err
	}
	s, err := raftstore.Open(raftstore.Config{
		Dir: filepath.Join(a.config.DataDir, raftDir), NodeID: a.id.public.NodeID, Seal: a.id.sealer,
		Transport: peer.NewStream(l, a.dialer, peer.ProtoRaft, a.addresses.Mesh),
		Logger:    a.logger, Registerer: a.registry,
	})
	if err != nil {
		return err
	}
	a.engine, a.store = s, s
	a.base = append(a.base, part{"raft", s.Run})
	return nil
}

// members is the engine's membership as the leader's promotion asks for it.
type members struct{ *raftstore.Store }

// Servers lists the members.
func (m members) Servers(context.Context) ([]control.Voter, error) {
	servers, err := m.Store.Servers()
	if err != nil {
		return nil, err
	}
	out := make([]control.Voter, 0, len(servers))
	for _, s := range servers {
		out = append(out, control.Voter{ID: s.ID, Address: s.Addr, Voter: s.Voter})
	}
	return out, nil
}
