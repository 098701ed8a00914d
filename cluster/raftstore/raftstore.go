// Package raftstore is the embedded engine of the replicated state: cluster/store on hashicorp/raft, with raft-wal as its log.
//
// Invariants. The index of a revision is that of a raft log entry. The state machine is deterministic: guards and terms are
// checked in it, time never is. Readers hold immutable states and take no lock that a commit holds. What is committed here
// survives the death of the process, quorum or not: a restarted member serves its whole committed state before it has met
// anybody. Log, snapshots and the applied mark are encrypted under the node's seal; votes, terms, and the members' names and
// addresses are not. A file that was changed is an error at Open, never silence.
//
// What it leaves to others: who may connect (its Transport is cluster/peer's mutual TLS), who becomes a voter and when
// (node/control), and to whom a caller turns that met NotLeaderError.
package raftstore

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

const walDir = "wal"

// Transport carries raft between members, authenticated and encrypted. Addr is the address at which the other members reach
// this one. The store closes it.
type Transport interface {
	net.Listener
	Dial(addr string, timeout time.Duration) (net.Conn, error)
}

// Config is all that a Store needs. Dir, NodeID, Transport and Seal are required; zero elsewhere means the default.
type Config struct {
	Dir        string // made with mode 0700 if absent; one process at a time
	NodeID     string // stable for ever
	Transport  Transport
	Seal       Seal
	Bootstrap  bool // found a mesh of this one member, if the directory is new
	Logger     *slog.Logger
	Registerer prometheus.Registerer

	// Timings of elections: 450, 450, 360 ms suit round trips to 120 ms. Lease ≥ quorum round trip + Heartbeat/5 + margin.
	Heartbeat, Election, Lease time.Duration
	CommitTimeout              time.Duration // bounds how late an idle follower learns of a commit whose nudge was lost; 50 ms
	RPCTimeout                 time.Duration // of one message; 10 s
	SnapshotInterval           time.Duration // how often to look whether one is due; 30 s
	SnapshotThreshold          uint64        // log entries between snapshots; 8192
	TrailingLogs               uint64        // log entries kept behind a snapshot, for followers that lag; 10240
	MaxRPCsInFlight            int           // per follower; 130
	History                    int           // changes from which a watch resumes; 1024
	DiskStall                  time.Duration // a leader's write that takes longer ends Run; 5 s

	wrapLog func(raft.LogStore) raft.LogStore // for tests: a disk that stalls or fails
}

func (c *Config) applyDefaults() error {
	switch {
	case c.Dir == "":
		return fault.New(fault.Invalid, "raftstore: Dir is required")
	case c.NodeID == "":
		return fault.New(fault.Invalid, "raftstore: NodeID is required")
	case c.Transport == nil:
		return fault.New(fault.Invalid, "raftstore: Transport is required")
	case c.Seal == nil:
		return fault.New(fault.Invalid, "raftstore: Seal is required")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Heartbeat = cmp.Or(c.Heartbeat, 450*time.Millisecond)
	c.Election = cmp.Or(c.Election, c.Heartbeat)
	c.Lease = cmp.Or(c.Lease, c.Heartbeat*4/5)
	c.CommitTimeout = cmp.Or(c.CommitTimeout, 50*time.Millisecond)
	c.RPCTimeout = cmp.Or(c.RPCTimeout, 10*time.Second)
	c.SnapshotInterval = cmp.Or(c.SnapshotInterval, 30*time.Second)
	c.SnapshotThreshold = cmp.Or(c.SnapshotThreshold, 8192)
	c.TrailingLogs = cmp.Or(c.TrailingLogs, 10240)
	c.MaxRPCsInFlight = cmp.Or(c.MaxRPCsInFlight, 130)
	c.History = cmp.Or(c.History, 1024)
	c.DiskStall = cmp.Or(c.DiskStall, 5*time.Second)
	return nil
}

func (c *Config) raftConfig(log *slog.Logger, notify chan<- bool) *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(c.NodeID)
	rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout = c.Heartbeat, c.Election, c.Lease
	rc.CommitTimeout = c.CommitTimeout
	rc.SnapshotInterval, rc.SnapshotThreshold, rc.TrailingLogs = c.SnapshotInterval, c.SnapshotThreshold, c.TrailingLogs
	rc.NotifyCh = notify
	rc.Logger = newHCLogger(log)
	rc.NoLegacyTelemetry = true
	rc.NoSnapshotRestoreOnStart = true // Open restored it, and the committed log after it
	return rc
}

// Store is one member. It serves reads from Open on, and takes part in the mesh while Run runs.
type Store struct {
	cfg     Config
	fsm     *fsm
	wal     *wal.WAL
	log     *logStore
	snaps   *snapshotStore
	marker  *marker
	lock    *os.File
	metrics *metrics

	raft   atomic.Pointer[raft.Raft] // nil unless Run runs
	closed chan struct{}             // readers end
	once   sync.Once

	leadership leadership
	rounds     rounds
}

var _ store.Store = (*Store)(nil)

// Open opens the data directory, proves that every log entry and snapshot in it is authentic, and rebuilds the state that was
// committed. Reads work at once; commits once Run runs. If Run is never called, call Close.
func Open(cfg Config) (*Store, error) {
	if err := cfg.applyDefaults(); err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, fsm: newFSM(cfg.History), closed: make(chan struct{})}
	s.leadership.init()
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open raft store %s: %w", cfg.Dir, err), s.Close())
	}
	return s, nil
}

func (s *Store) open() error {
	if err := os.MkdirAll(filepath.Join(s.cfg.Dir, walDir), 0o700); err != nil {
		return err
	}
	if err := s.lockDir(); err != nil {
		return err
	}
	k, err := openKeys(s.cfg.Dir, s.cfg.NodeID, s.cfg.Seal)
	if err != nil {
		return err
	}
	log := newHCLogger(s.cfg.Logger)
	if s.snaps, err = openSnapshots(s.cfg.Dir, k, log); err != nil {
		return err
	}
	var marked uint64
	if s.marker, marked, err = openMarker(s.cfg.Dir, k); err != nil {
		return err
	}
	if s.wal, err = wal.Open(filepath.Join(s.cfg.Dir, walDir), wal.WithLogger(log)); err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	sealed := &sealedLog{WAL: s.wal, keys: k}
	var disk raft.LogStore = sealed
	if s.cfg.wrapLog != nil {
		disk = s.cfg.wrapLog(disk)
	}
	cache, err := raft.NewLogCache(256, disk)
	if err != nil {
		return err
	}
	s.log = &logStore{LogStore: cache, sealed: sealed, start: time.Now()}
	snapshot, err := s.snaps.restore(s.fsm)
	if err != nil {
		return err
	}
	if err := s.log.replay(s.fsm, snapshot, marked); err != nil {
		return err
	}
	s.metrics, err = newMetrics(s.cfg.Registerer, s)
	return err
}

// lockDir makes a second process fail at once; bbolt below raft-wal would wait for ever.
func (s *Store) lockDir() error {
	f, err := os.OpenFile(filepath.Join(s.cfg.Dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return errors.Join(fault.New(fault.Unavailable, "another process uses it: %w", err), f.Close())
	}
	s.lock = f
	return nil
}

// Close releases a store that was opened and never run. After Run it does nothing.
func (s *Store) Close() error {
	var err error
	s.once.Do(func() {
		close(s.closed)
		s.fsm.state.Close()
		if s.wal != nil {
			err = errors.Join(err, s.wal.Close())
		}
		if s.marker != nil {
			err = errors.Join(err, s.marker.close())
		}
		if s.metrics != nil {
			s.metrics.unregister()
		}
		if s.lock != nil {
			// In so many words: a process that is being forked at this moment holds the file open, too.
			err = errors.Join(err, syscall.Flock(int(s.lock.Fd()), syscall.LOCK_UN), s.lock.Close())
		}
		if s.cfg.Transport != nil {
			err = errors.Join(err, ignoreClosed(s.cfg.Transport.Close()))
		}
	})
	return err
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
