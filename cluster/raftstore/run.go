package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// ErrDiskStalled ends Run: this member leads, and a write to its log does not come back. Raft would go on sending heartbeats,
// and nobody could commit. The process must end, so that another member can lead.
var ErrDiskStalled = fault.Wrap(fault.Internal, errors.New("the leader's disk stalled: a log write did not return"))

// ErrDiskFailed ends Run: a write to the log failed, after which nobody knows what the disk holds.
var ErrDiskFailed = fault.Wrap(fault.Internal, errors.New("a log write failed"))

// Run takes part in the mesh until ctx ends, then hands leadership over, if it has it, and closes everything; it returns nil.
// An error means that this member cannot go on, and that the process must end: after ErrDiskStalled, goroutines that wait for
// the disk are left behind. Run is called once.
func (s *Store) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	notify := make(chan bool, 64)
	stop := make(chan struct{})
	wg.Go(func() { s.leadership.follow(notify, stop) })
	r, err := s.startRaft(notify)
	if err == nil {
		s.raft.Store(r)
		err = s.watchDisk(ctx)
	}
	s.leadership.end() // before the hand-over: a leader's work should not outlive its term
	if errors.Is(err, ErrDiskStalled) {
		close(stop)
		return err
	}
	if r != nil {
		s.handOver(r)
		err = errors.Join(err, ignoreClosed(r.Shutdown().Error()))
	}
	close(stop)
	wg.Wait()
	return errors.Join(err, s.Close())
}

func (s *Store) startRaft(notify chan<- bool) (*raft.Raft, error) {
	rc := s.cfg.raftConfig(s.cfg.Logger, notify)
	net := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Logger:          rc.Logger,
		Stream:          streamLayer{s.cfg.Transport},
		MaxPool:         poolSize,
		MaxRPCsInFlight: s.cfg.MaxRPCsInFlight,
		Timeout:         s.cfg.RPCTimeout,
	})
	trans := &nudgingTransport{retryTransport: &retryTransport{net}, pipelines: map[*nudgedPipeline]struct{}{}}
	s.fsm.onCommitted = func(n notice) {
		trans.nudge(n)
		s.log.sealed.staged.Store(n.commit)
		if err := s.marker.set(n.commit); err != nil {
			s.cfg.Logger.Error("raft marker not written", "error", err)
		}
	}
	r, err := s.newRaft(rc, trans)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start raft: %w", err), ignoreClosed(net.Close()))
	}
	return r, nil
}

func (s *Store) newRaft(rc *raft.Config, trans *nudgingTransport) (*raft.Raft, error) {
	if s.cfg.Bootstrap {
		self := raft.Configuration{Servers: []raft.Server{{ID: rc.LocalID, Address: trans.LocalAddr()}}}
		err := raft.BootstrapCluster(rc, s.log, s.wal, s.snaps, trans, self)
		if err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
			return nil, fmt.Errorf("bootstrap: %w", err)
		}
	}
	return raft.NewRaft(rc, s.fsm, s.log, s.wal, s.snaps, trans)
}

// watchDisk returns nil when ctx ends, or an error when the disk keeps this member from its duty.
func (s *Store) watchDisk(ctx context.Context) error {
	look := max(s.cfg.DiskStall/8, time.Millisecond)
	tick := time.NewTicker(look)
	defer tick.Stop()
	late := false // at the last look: a process that itself stood still meanwhile finds the write done at the next
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		busy, failed := s.log.health()
		if failed != nil {
			return fmt.Errorf("%w: %w", ErrDiskFailed, failed)
		}
		stalled := busy > s.cfg.DiskStall && s.raft.Load().State() == raft.Leader
		if stalled && late {
			return fmt.Errorf("%w for %v", ErrDiskStalled, busy.Round(time.Millisecond))
		}
		if late = stalled; late {
			tick.Reset(look) // a whole period to the next look
		}
	}
}

// handOver makes a planned stop cheap: another member leads within a round trip or two, not after an election timeout.
func (s *Store) handOver(r *raft.Raft) {
	if r.State() != raft.Leader {
		return
	}
	others := 0
	for _, server := range r.GetConfiguration().Configuration().Servers {
		if server.Suffrage == raft.Voter && string(server.ID) != s.cfg.NodeID {
			others++
		}
	}
	if others == 0 {
		return
	}
	if err := r.LeadershipTransfer().Error(); err != nil {
		s.cfg.Logger.Warn("raft leadership not handed over", "error", err)
	}
}

// running returns raft, or Unavailable.
func (s *Store) running() (*raft.Raft, error) {
	select {
	case <-s.closed:
		return nil, fault.New(fault.Unavailable, "this member has stopped")
	default:
	}
	if r := s.raft.Load(); r != nil {
		return r, nil
	}
	return nil, fault.New(fault.Unavailable, "this member has not started yet")
}
