// Package etcdstore is the external engine of the replicated state: cluster/store on an etcd v3 cluster that the user already
// runs. All lies under one prefix:
//
//	data/<key>   the values, as they are
//	head         written by every commit: its mod revision is the index of the mesh's revision
//	epoch        the present epoch, and where earlier ones began
//	leader       who leads, under a lease: its create revision is the term
//
// Invariants. An entry's index is the mod revision of its key; guards and terms are compared in the one etcd transaction that
// writes. One watch of the prefix feeds a map in memory, from which all reads are served: they are whole commits in order, and
// go on while etcd is away.
//
// What it leaves to others: encryption at rest is etcd's. Values are written as they come, since secrets come encrypted to
// their audience; whoever can read the prefix can read all else, and whoever can write it is trusted like a control node. Give
// the mesh a user and a role of its own, and TLS. Nothing is kept on this machine's disk: after a restart without etcd
// there is no state to serve. An etcd cluster that was restored from a backup goes back: begin a later epoch (AdvanceEpoch)
// before the mesh goes on.
package etcdstore

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/iapmesh/iapmesh/cluster/statemap"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// Config is all that a Store needs. Client's Endpoints and NodeID are required; zero elsewhere means the default.
type Config struct {
	Client     clientv3.Config // endpoints, TLS, user
	Prefix     string          // of all keys, one mesh's alone; "/iapmesh/"
	NodeID     string
	Address    string        // where other nodes reach this one when it leads
	LeaseTTL   time.Duration // a leader that died is replaced after it; whole seconds, etcd's least is about 2 s; 3 s
	History    int           // changes from which a watch resumes; 1024
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

func (c *Config) applyDefaults() error {
	switch {
	case len(c.Client.Endpoints) == 0:
		return fault.New(fault.Invalid, "etcdstore: Client.Endpoints is required")
	case c.NodeID == "" || strings.Contains(c.NodeID, " "):
		return fault.New(fault.Invalid, "etcdstore: NodeID %q: one word is required", c.NodeID)
	case c.LeaseTTL < 0 || c.LeaseTTL%time.Second != 0:
		return fault.New(fault.Invalid, "etcdstore: LeaseTTL %v: want whole seconds", c.LeaseTTL)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Client.Logger == nil {
		c.Client.Logger = zap.NewNop() // what matters of its complaints comes back as errors
	}
	c.Client.DialTimeout = cmp.Or(c.Client.DialTimeout, 5*time.Second)
	c.Client.DialKeepAliveTime = cmp.Or(c.Client.DialKeepAliveTime, 5*time.Second)
	c.Client.DialKeepAliveTimeout = cmp.Or(c.Client.DialKeepAliveTimeout, 3*time.Second)
	c.Prefix = cmp.Or(c.Prefix, "/iapmesh/")
	c.LeaseTTL = cmp.Or(c.LeaseTTL, 3*time.Second)
	c.History = cmp.Or(c.History, 1024)
	return nil
}

// Store is one control node's access. It knows the state once Run has read it.
type Store struct {
	cfg     Config
	keys    keys
	client  *clientv3.Client
	state   *statemap.Map
	epochs  atomic.Pointer[epochs] // nil until Run has read the state
	leader  atomic.Pointer[leader] // nil while nobody leads
	cluster atomic.Uint64          // etcd's id, of which the state was read
	metrics *metrics
	once    sync.Once
	closed  chan struct{}
	doubt   chan struct{} // see distrust

	next int64 // mod revision from which to watch; 0: read everything; Run's
}

type leader struct{ id, address string }

var _ store.Store = (*Store)(nil)

// Open makes a Store; it needs no network. If Run is never called, call Close.
func Open(cfg Config) (*Store, error) {
	if err := cfg.applyDefaults(); err != nil {
		return nil, err
	}
	client, err := clientv3.New(cfg.Client)
	if err != nil {
		return nil, fault.New(fault.Invalid, "etcd client: %w", err)
	}
	s := &Store{
		cfg: cfg, keys: keys{cfg.Prefix}, client: client, state: statemap.New(store.Revision{}, cfg.History), closed: make(chan struct{}),
		doubt: make(chan struct{}, 1),
	}
	if s.metrics, err = newMetrics(cfg.Registerer, s); err != nil {
		_ = s.Close() // the registration's error is the one to tell
		return nil, err
	}
	return s, nil
}

// Close releases a store that was opened and never run. After Run it does nothing.
func (s *Store) Close() error {
	var err error
	s.once.Do(func() {
		close(s.closed)
		s.state.Close()
		s.metrics.unregister()
		if err = s.client.Close(); err != nil {
			err = fmt.Errorf("close etcd client: %w", err)
		}
	})
	return err
}

// Get implements store.Reader.
func (s *Store) Get(ctx context.Context, key string) (store.Entry, error) {
	return s.state.Get(ctx, key)
}

// List implements store.Reader.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Entry, store.Revision, error) {
	return s.state.List(ctx, prefix)
}

// Watch implements store.Reader.
func (s *Store) Watch(ctx context.Context, after store.Revision) iter.Seq2[store.Change, error] {
	return s.state.Watch(ctx, after)
}

// Wait implements store.Reader.
func (s *Store) Wait(ctx context.Context, at store.Revision) error { return s.state.Wait(ctx, at) }

// Revision is that of the state which reads see; zero until it is known.
func (s *Store) Revision() store.Revision { return s.state.Revision() }

// Leader returns who leads, as far as this node knows; empty while nobody does.
func (s *Store) Leader() (id, address string) {
	if l := s.leader.Load(); l != nil {
		return l.id, l.address
	}
	return "", ""
}

// keys names what lies under the prefix.
type keys struct{ prefix string }

func (k keys) data(key string) string { return k.prefix + "data/" + key }
func (k keys) head() string           { return k.prefix + "head" }
func (k keys) epoch() string          { return k.prefix + "epoch" }
func (k keys) leader() string         { return k.prefix + "leader" }

// isData returns the key of an entry.
func (k keys) isData(name string) (string, bool) { return strings.CutPrefix(name, k.prefix+"data/") }
