// Package replica is the replicated state on nodes that do not host it: the Server on a control node streams its changes to
// followers, and a Replica follows one control node after another, keeps what it has on disk, and serves reads.
//
// Invariants. A follower holds exactly what its scope admits of a state that existed: never torn, never going back. What a
// Replica serves is on its disk first, sealed, so that after a crash it serves the same or later without any peer; only if the
// disk refuses does it go on in memory, since a revocation that is not durable is worth more than one that is not applied. A file that was
// damaged is set aside and the state fetched anew: until then the Replica has none, and says so by its zero revision. Somebody
// who can write to the disk can still put back an older file of this node: only a source's answer proves age.
//
// What it leaves to others: who may follow and hold what (ServerConfig.Scope), which control node to turn to (Config.Dial), and
// how old a view may be (node/state.Freshness, by OnPong).
package replica

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/cluster/statemap"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Seal encrypts what this node keeps on disk: an AEAD under the node's local key, with context as associated data.
// keyring/seal provides one.
type Seal interface {
	Seal(plaintext, context []byte) ([]byte, error)
	Open(sealed, context []byte) ([]byte, error)
}

// Config is all that a Replica needs. Dir, Seal, MeshID and Dial are required; zero elsewhere means the default.
type Config struct {
	Dir    string // made with mode 0700 if absent; one process at a time
	Seal   Seal
	MeshID string
	// Dial picks a control node, and should pick another one than the last time where there is one: it is called anew after each
	// break. source names it in logs.
	Dial func(ctx context.Context) (client iapmeshv1.MeshServiceClient, source string, err error)
	// OnPong takes the answer to a ping that was sent at asked: the source's view, at revision at, was at most age old when it
	// answered. It is not called for an answer without an age.
	OnPong     func(asked time.Time, at store.Revision, age time.Duration)
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time // of pings

	PingEvery    time.Duration // 1 s
	Silence      time.Duration // a source that says nothing for so long is left; 3 s
	History      int           // changes from which a watch resumes; 1024
	CompactBytes int64         // of changes on disk beyond which the file is written anew; 8 MiB
}

func (c *Config) applyDefaults() error {
	switch {
	case c.Dir == "":
		return fault.New(fault.Invalid, "replica: Dir is required")
	case c.Seal == nil:
		return fault.New(fault.Invalid, "replica: Seal is required")
	case c.MeshID == "":
		return fault.New(fault.Invalid, "replica: MeshID is required")
	case c.Dial == nil:
		return fault.New(fault.Invalid, "replica: Dial is required")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.OnPong == nil {
		c.OnPong = func(time.Time, store.Revision, time.Duration) {}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	c.PingEvery = cmp.Or(c.PingEvery, time.Second)
	c.Silence = cmp.Or(c.Silence, 3*time.Second)
	c.History = cmp.Or(c.History, 1024)
	c.CompactBytes = cmp.Or(c.CompactBytes, 8<<20)
	return nil
}

// Replica is a follower's copy of the state. It serves reads from Open on, and follows a source while Run runs.
type Replica struct {
	cfg     Config
	state   *statemap.Map
	disk    *disk
	metrics *metrics
	leader  atomic.Pointer[leader]
	once    sync.Once

	scope   string    // under which the state was sent; Run's
	retryAt time.Time // when to try the disk again after it refused; Run's
}

type leader struct{ id, address string }

var _ store.Reader = (*Replica)(nil)

// Open opens the data directory and rebuilds the state that it holds; at first there is none: the revision is zero, reads
// are Unavailable and watches wait. A directory of another mesh, node or seal is an error. If Run is never called, call Close.
func Open(cfg Config) (*Replica, error) {
	if err := cfg.applyDefaults(); err != nil {
		return nil, err
	}
	r := &Replica{cfg: cfg, state: statemap.New(store.Revision{}, cfg.History)}
	if err := r.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open replica %s: %w", cfg.Dir, err), r.Close())
	}
	return r, nil
}

func (r *Replica) open() error {
	var err error
	if r.disk, err = openDisk(r.cfg.Dir, r.cfg.MeshID, r.cfg.Seal); err != nil {
		return err
	}
	torn, err := r.disk.load(func(u update) error {
		steps, err := plan(r.state.Current(), []update{u})
		if err == nil {
			r.publish(steps)
		}
		return err
	})
	var damage *damagedError
	switch {
	case errors.As(err, &damage):
		r.cfg.Logger.Error("replica damaged on disk, state will be fetched anew", "path", damage.aside, "error", err)
		r.state, r.scope = statemap.New(store.Revision{}, r.cfg.History), ""
	case err != nil:
		return err
	case torn > 0:
		r.cfg.Logger.Warn("replica's last write was cut short and is left out", "bytes", torn)
	}
	r.metrics, err = newMetrics(r.cfg.Registerer, r)
	return err
}

// Close releases a replica that was opened and never run. After Run it does nothing.
func (r *Replica) Close() error {
	var err error
	r.once.Do(func() {
		r.state.Close()
		if r.disk != nil {
			err = r.disk.close()
		}
		if r.metrics != nil {
			r.metrics.unregister()
		}
	})
	return err
}

// Get implements store.Reader.
func (r *Replica) Get(ctx context.Context, key string) (store.Entry, error) {
	return r.state.Get(ctx, key)
}

// List implements store.Reader.
func (r *Replica) List(ctx context.Context, prefix string) ([]store.Entry, store.Revision, error) {
	return r.state.List(ctx, prefix)
}

// Watch implements store.Reader. When the node's scope changes, a Reset may come at the revision of the change before it.
func (r *Replica) Watch(ctx context.Context, after store.Revision) iter.Seq2[store.Change, error] {
	return r.state.Watch(ctx, after)
}

// Wait implements store.Reader.
func (r *Replica) Wait(ctx context.Context, at store.Revision) error { return r.state.Wait(ctx, at) }

// Revision is that of the state which reads see; zero while there is none.
func (r *Replica) Revision() store.Revision { return r.state.Revision() }

// Leader returns who led, and where it is reached, as the source last said; empty if unknown.
func (r *Replica) Leader() (id, address string) {
	if l := r.leader.Load(); l != nil {
		return l.id, l.address
	}
	return "", ""
}
