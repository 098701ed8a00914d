package raftstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// Server is one member of the raft group.
type Server struct {
	ID, Addr string
	Voter    bool
}

// Servers lists the members of the latest configuration that this member knows.
func (s *Store) Servers() ([]Server, error) {
	r, err := s.running()
	if err != nil {
		return nil, err
	}
	f := r.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, fault.New(fault.Unavailable, "list members: %w", err)
	}
	var servers []Server
	for _, m := range f.Configuration().Servers {
		servers = append(servers, Server{ID: string(m.ID), Addr: string(m.Address), Voter: m.Suffrage == raft.Voter})
	}
	return servers, nil
}

// Leader returns who leads, as far as this member knows; empty while nobody does.
func (s *Store) Leader() (id, addr string) {
	r, err := s.running()
	if err != nil {
		return "", ""
	}
	a, i := r.LeaderWithID()
	return string(i), string(a)
}

// AddVoter makes a member count for quorum; a non-voter is promoted, another address replaces the old. The leader alone can.
// It returns once the change is committed; an error other than NotLeaderError leaves that in doubt.
func (s *Store) AddVoter(ctx context.Context, id, addr string) error {
	return s.change(ctx, "add voter "+id, func(r *raft.Raft) raft.Future {
		return r.AddVoter(raft.ServerID(id), raft.ServerAddress(addr), 0, 0)
	})
}

// AddNonvoter makes a member receive the log without counting for quorum. See AddVoter.
func (s *Store) AddNonvoter(ctx context.Context, id, addr string) error {
	return s.change(ctx, "add non-voter "+id, func(r *raft.Raft) raft.Future {
		return r.AddNonvoter(raft.ServerID(id), raft.ServerAddress(addr), 0, 0)
	})
}

// RemoveServer removes a member; if it is absent, nothing happens. See AddVoter.
func (s *Store) RemoveServer(ctx context.Context, id string) error {
	return s.change(ctx, "remove member "+id, func(r *raft.Raft) raft.Future {
		return r.RemoveServer(raft.ServerID(id), 0, 0)
	})
}

// TransferLeadership hands leadership to the voter that is most up to date.
func (s *Store) TransferLeadership(ctx context.Context) error {
	return s.change(ctx, "transfer leadership", func(r *raft.Raft) raft.Future { return r.LeadershipTransfer() })
}

// TransferLeadershipTo hands leadership to one voter.
func (s *Store) TransferLeadershipTo(ctx context.Context, id, addr string) error {
	return s.change(ctx, "transfer leadership to "+id, func(r *raft.Raft) raft.Future {
		return r.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(addr))
	})
}

// Snapshot takes a snapshot now, beside those that raft takes by itself.
func (s *Store) Snapshot(ctx context.Context) error {
	r, err := s.running()
	if err != nil {
		return err
	}
	err = await(ctx, func() error { return r.Snapshot().Error() })
	if err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return fmt.Errorf("take snapshot: %w", err)
	}
	return nil
}

func (s *Store) change(ctx context.Context, what string, start func(*raft.Raft) raft.Future) error {
	r, err := s.running()
	if err != nil {
		return err
	}
	if r.State() != raft.Leader {
		return notLeader(r)
	}
	err = await(ctx, func() error { return start(r).Error() })
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader):
		return notLeader(r)
	}
	return fault.New(fault.Unavailable, "%s: %w", what, err)
}

// State is this member's part in the group, for status.
type State struct {
	ID, Addr             string
	Role                 string // follower, candidate, leader, shutdown
	Term                 uint64
	LeaderID, LeaderAddr string
	LastIndex            uint64 // of the log
	CommitIndex          uint64 // as far as this member knows
	AppliedIndex         uint64
	Revision             store.Revision
	LastContact          time.Duration // since the leader was heard; 0 on the leader, negative if never
}

// State returns this member's part in the group.
func (s *Store) State() State {
	st := State{
		ID: s.cfg.NodeID, Addr: s.cfg.Transport.Addr().String(), Role: "shutdown",
		AppliedIndex: s.fsm.applied.Load(), Revision: s.fsm.state.Revision(), LastContact: -1,
	}
	r, err := s.running()
	if err != nil {
		return st
	}
	st.LeaderID, st.LeaderAddr = s.Leader()
	st.Term, st.LastIndex, st.CommitIndex = r.CurrentTerm(), r.LastIndex(), r.CommitIndex()
	st.AppliedIndex = max(st.AppliedIndex, r.AppliedIndex())
	switch r.State() {
	case raft.Follower:
		st.Role = "follower"
	case raft.Candidate:
		st.Role = "candidate"
	case raft.Leader:
		st.Role, st.LastContact = "leader", 0
		return st
	case raft.Shutdown:
		return st
	}
	if last := r.LastContact(); !last.IsZero() {
		st.LastContact = time.Since(last)
	}
	return st
}
