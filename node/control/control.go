// Package control is what the leader does: it admits nodes, issues and revokes keys, turns a configuration into a manifest, takes
// signing keys through their lives as nodes acknowledge them, keeps audiences in step with their members, and says how the mesh
// is. Every rule lives in package keyring; here a rule's result becomes one guarded commit.
//
// Invariants. Only the leader writes, fenced by its term. A refused request writes nothing. What was decided on an old state is
// decided again: every record that a decision read guards the commit. Times that are written never go back.
package control

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/state"
)

// voters is what promotion, and handing the lead over, need of an engine that has voters; nil with an external engine.
type voters interface {
	Servers(ctx context.Context) ([]Voter, error)
	AddNonvoter(ctx context.Context, id, address string) error
	AddVoter(ctx context.Context, id, address string) error
	RemoveServer(ctx context.Context, id string) error
	TransferLeadershipTo(ctx context.Context, id, address string) error
}

// epochs is what a restoration needs of an engine.
type epochs interface {
	AdvanceEpoch(ctx context.Context, epoch uint64) (store.Revision, error)
}

// Voter is a member of the engine's consensus.
type Voter struct {
	ID, Address string
	Voter       bool
}

// trail is where what the leader does is recorded.
type trail interface {
	Record(ctx context.Context, r *audit.Record) error
}

// Config is what a Controller stands on.
type Config struct {
	NodeID     string
	Store      store.Store
	Source     *state.Source
	Secrets    seal.Member                 // opens, as this node, the audiences that it is a member of
	Voters     voters                      // nil: the engine has none
	Epochs     epochs                      // nil: the engine begins no later epoch, and no snapshot is restored into it
	Leader     func() (id, address string) // who leads, as far as the engine knows; nil: unknown
	Trail      trail
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
	Now        func() time.Time      // default time.Now
	Random     io.Reader             // default crypto/rand

	PromoteAfter time.Duration // how long a control candidate must have been steady; default 10 s
	Tick         time.Duration // how often the leader looks; default 1 s
	MaxRecalled  int           // records that one node may add by what it remembers, of one restoration and to one leader; default 100,000
}

// Controller answers requests while its node leads; on other nodes it refuses with Unavailable.
type Controller struct {
	Config
	Reports *Reports

	writing  chan struct{} // held by the one update that runs
	mu       sync.Mutex
	term     store.Term           // 0: not leading; guarded by mu
	since    time.Time            // when the term was won; guarded by mu
	caughtUp store.Term           // the term in which reads and view are known to hold all that was committed; guarded by mu
	clock    time.Time            // the latest time written; guarded by mu
	restores sync.Mutex           // held by the one restoration that is written
	signOuts signOuts             // how often each node may end sessions
	steady   map[string]time.Time // control candidate → since when it reports; leader's loop only
	stopped  map[string]time.Time // session key that verifies only → since when its holder knows; leader's loop only
	returned *recoveries          // who came back within the hour
	recalled recalled             // how many records each node has added by what it remembers

	commits        commits // what was committed lately, and under which receipt
	metrics        *metrics
	awaited        map[string]string // receipt → a node that it waits for; leader's loop only
	receiptsPruned time.Time         // leader's loop only
	prunedIn       store.Term        // leader's loop only
}

// New makes a Controller.
func New(cfg Config) *Controller {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	if cfg.PromoteAfter == 0 {
		cfg.PromoteAfter = 10 * time.Second
	}
	if cfg.Tick == 0 {
		cfg.Tick = time.Second
	}
	if cfg.MaxRecalled == 0 {
		cfg.MaxRecalled = 100_000
	}
	c := &Controller{
		Config: cfg, Reports: NewReports(cfg.Now), writing: make(chan struct{}, 1), steady: map[string]time.Time{}, stopped: map[string]time.Time{},
		awaited: map[string]string{}, returned: newRecoveries(cfg.Registerer),
	}
	c.metrics = newMetrics(c)
	return c
}

// Run seeks leadership and leads, until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	return c.Store.Lead(ctx, func(ctx context.Context, term store.Term) error {
		c.lead(term)
		defer c.lead(0)
		return c.loop(ctx)
	})
}

func (c *Controller) lead(term store.Term) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.term, c.since, c.caughtUp = term, c.Now(), 0
}

// Leading returns the term that this node leads in, and since when; 0 if it does not lead.
func (c *Controller) Leading() (store.Term, time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.term, c.since
}

// now is the time to write: the clock's, but never earlier than a time that was written before.
func (c *Controller) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.Now().UTC().Truncate(time.Millisecond)
	if now.Before(c.clock) {
		now = c.clock
	}
	c.clock = now
	return now
}

// view is the newest view; a node that has none cannot decide.
func (c *Controller) view() (*state.View, error) {
	v := c.Source.Load()
	if v == nil {
		return nil, fault.New(fault.Unavailable, "this node has no view of the mesh yet")
	}
	return v, nil
}

// record leaves a record of what the leader did. An act that cannot be recorded was done all the same: it is committed, and
// the log says so.
func (c *Controller) record(ctx context.Context, kind audit.Kind, by string, detail map[string]string) {
	ctx = context.WithoutCancel(ctx) // it was done, whether or not somebody still waits for the answer
	err := c.Trail.Record(ctx, &audit.Record{Kind: kind, Time: c.Now(), Actor: audit.Actor{Subject: by}, Detail: detail})
	if err != nil {
		c.Logger.Error("act not recorded", "kind", kind, "by", by, "error", err)
	}
}
