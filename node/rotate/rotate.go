// Package rotate makes the successors of the provisioning keys whose schedule names this node, and has their secrets stored.
//
// A rotation has five steps, each of which can be taken again: the secret is made, and sealed on this node's disk; its public half is
// proposed to the leader, as a key that admits nobody yet; the sink takes the secret; the leader makes the successor active and retires
// the predecessor, in one commit; the copy on disk is deleted. Whatever fails is tried again with the same secret, also after a
// restart, and until the leader's commit the predecessor goes on as it was.
//
// Invariants. A secret is on disk, sealed, before anybody hears of it, and leaves this node by its sink alone. There is one for each
// predecessor. What the view says of the keys decides, never what this node remembers. Whether this node may, and whether it is time,
// is decided by the leader (keyring.ProposeSuccessor, keyring.CompleteRotation).
package rotate

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/sink"
)

// leader is what rotation needs of whoever leads.
type leader interface {
	ProposeSuccessor(ctx context.Context, key string, public ed25519.PublicKey) error
	CompleteRotation(ctx context.Context, key, successor string) error
}

// Job is a key that this node rotates, and where its secrets go.
type Job struct {
	Key  string // name, or id of the key or of one before it
	Kind sink.Kind
	Sink sink.Sink
}

// Config is what a Rotator stands on.
type Config struct {
	Node       string // this node's id
	Jobs       []Job
	Leader     leader
	Keyring    func() *keyring.Snapshot // of the newest view; nil while there is none
	Changed    func() <-chan struct{}   // closed with the next view
	Sealer     *seal.Sealer
	Dir        string                               // this node's own; made if it is not there
	WriteFile  func(path string, data []byte) error // atomic, durable, mode 0600
	Now        func() time.Time
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

// The times of a rotation.
const (
	callTimeout = 30 * time.Second // of one call to the leader
	lookEvery   = time.Minute      // the clock may have been set
	firstRetry  = time.Second
	lastRetry   = time.Minute // soon enough for whoever has just mended the sink
)

// Rotator rotates the keys of its jobs.
type Rotator struct {
	Config
	store   store
	metrics *metrics
	mu      sync.Mutex
	failing map[string]Failure // by a job's key as it is configured; guarded by mu
}

// Failure is a key whose rotation does not succeed.
type Failure struct {
	Key   string // id
	Error string
	Since time.Time // of the first attempt that failed
}

// Failing lists them, by key.
func (r *Rotator) Failing() []Failure {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Values(r.failing), func(a, b Failure) int { return cmp.Compare(a.Key, b.Key) })
}

// note remembers how an attempt ended.
func (r *Rotator) note(ref, key string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil || key == "" {
		delete(r.failing, ref)
		return
	}
	since := r.Now()
	if old, ok := r.failing[ref]; ok && old.Key == key {
		since = old.Since
	}
	r.failing[ref] = Failure{key, err.Error(), since}
}

// New makes a Rotator.
func New(c Config) (*Rotator, error) {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fault.New(fault.Invalid, "rotate: %w", err)
	}
	r := &Rotator{Config: c, failing: map[string]Failure{}, store: store{dir: c.Dir, node: c.Node, sealer: c.Sealer, write: c.WriteFile}}
	r.metrics = newMetrics(c.Registerer, r)
	return r, nil
}

// Run works until ctx ends. Each job has its own pace: a sink that hangs keeps no other key from its rotation.
func (r *Rotator) Run(ctx context.Context) error {
	r.store.dropOthers(r.Jobs, r.Logger)
	var g errgroup.Group
	for _, j := range r.Jobs {
		g.Go(func() error {
			(&job{Job: j, r: r, logger: r.Logger.With("key_ref", j.Key, "sink", string(j.Kind))}).run(ctx)
			return nil
		})
	}
	g.Go(func() error { <-ctx.Done(); return nil }) // a node without jobs runs on
	return g.Wait()
}

// job is a Job at work.
type job struct {
	Job
	r         *Rotator
	logger    *slog.Logger
	stored    string // successor whose secret the sink has taken; after a restart, which may be under another sink, it takes it again
	completed string // key whose rotation the leader has completed, whether or not the view shows it
	said      string // last said about why there is nothing to do
}

func (j *job) run(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		seen := j.mark()
		wait, err := j.step(ctx)
		if ctx.Err() != nil {
			return
		}
		j.r.note(j.Key, seen.id, err)
		if err == nil {
			failures = 0
		} else {
			wait = backoff(failures)
			failures++
			var at *stepError
			if errors.As(err, &at) {
				j.r.metrics.failures.WithLabelValues(string(j.Kind), at.step).Inc()
			}
			j.logger.Warn("key rotation put off", "error", err, "retry_in", wait.Round(time.Millisecond).String(), "attempts", failures)
		}
		j.await(ctx, seen, wait)
	}
}

// await waits until the time is over, or what the view says of the key is another thing than what was seen.
func (j *job) await(ctx context.Context, seen mark, wait time.Duration) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		changed := j.r.Changed()
		if j.mark() != seen {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case <-changed:
		}
	}
}

// backoff grows from firstRetry to lastRetry, give or take a fifth.
func backoff(failures int) time.Duration {
	d := lastRetry
	if failures < 16 {
		d = min(firstRetry<<failures, lastRetry)
	}
	return d + time.Duration((rand.Float64()-0.5)*0.4*float64(d)) //nolint:gosec // jitter, no secret
}

// mark is what of a key's record makes another attempt worth it at once.
type mark struct {
	found              bool
	id, rotator        string
	state              keyring.KeyState
	every              time.Duration
	requested, refused bool
	approved           bool
}

func (j *job) mark() mark {
	keys := j.r.Keyring()
	if keys == nil {
		return mark{}
	}
	k, err := current(keys, j.Key)
	if err != nil {
		return mark{}
	}
	m := mark{found: true, id: k.ID, rotator: k.Rotator, state: k.State, every: k.RotateEvery, requested: k.RotateRequested}
	for _, p := range keys.Keys {
		m.approved = m.approved || p.Predecessor == k.ID && p.Proposed() && !p.ApprovedAt.IsZero()
		m.refused = m.refused || p.Predecessor == k.ID && p.ProposedBy == j.r.Node && p.State == keyring.KeyRevoked
	}
	return m
}

// current is the key that a job means now: the last of those that succeeded each other.
func current(keys *keyring.Snapshot, ref string) (*keyring.Key, error) {
	k, err := keys.FindKey(ref)
	for err == nil && k.Successor != "" && keys.Keys[k.Successor] != nil {
		k = keys.Keys[k.Successor] // a chain has no loops: a key's id is of its public half, which is there before its successor's
	}
	return k, err
}

// stepError says in which step a rotation failed.
type stepError struct {
	step string
	err  error
}

func (e *stepError) Error() string { return e.step + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// step takes the key's rotation as far as it goes, and says how long there is nothing to do.
func (j *job) step(ctx context.Context) (time.Duration, error) {
	r, keys := j.r, j.r.Keyring()
	if keys == nil {
		return lookEvery, nil
	}
	r.store.settle(j.Key, keys, j.logger)
	k, err := current(keys, j.Key)
	if err != nil {
		return 0, &stepError{"find", err}
	}
	switch {
	case k.ID == j.completed:
		return lookEvery, nil // the view is behind
	case !k.Scheduled() || k.Rotator != r.Node:
		j.say(k)
		return lookEvery, nil
	}
	p, err := r.store.load(k.ID)
	if err != nil {
		j.logger.Warn("a secret on the way cannot be read: the rotation begins anew", "key", k.ID, "error", err)
		p = nil
	}
	now := r.Now()
	if due := keyring.RotationDue(*k, now); !due && (p == nil || keys.Keys[p.secret.ID()] == nil) {
		j.say(k)
		if next := keyring.NextRotation(*k).Sub(now); next > 0 {
			return min(lookEvery, next), nil
		}
		return lookEvery, nil // suspended, or succeeded: there is nothing to wait for but a change
	}
	if p == nil {
		if p, err = r.prepare(j.Key, k.ID, keys); err != nil {
			return 0, &stepError{"prepare", err}
		}
	}
	if err := j.hand(ctx, k.ID, p); err != nil {
		return 0, err
	}
	j.completed = k.ID
	j.said = ""
	r.metrics.rotations.WithLabelValues(string(j.Kind)).Inc()
	j.logger.Info("key rotated", "key", k.ID, "successor", p.secret.ID())
	if err := r.store.remove(k.ID); err != nil {
		j.logger.Warn("secret of a finished rotation not deleted", "key", k.ID, "error", err) // settle tries again
	}
	return lookEvery, nil
}

// prepare makes a secret and puts it on disk.
func (r *Rotator) prepare(ref, predecessor string, keys *keyring.Snapshot) (*pending, error) {
	authority := keys.ActiveAuthority()
	if authority == nil {
		return nil, fault.New(fault.Unavailable, "the view holds no authority that a new key could pin")
	}
	secret, err := keyring.GenerateKey(keyring.Pin(authority.Certificate), nil)
	if err != nil {
		return nil, err
	}
	p := &pending{ref: ref, predecessor: predecessor, secret: secret}
	return p, r.store.save(p)
}

// hand proposes a successor, has its secret stored, and completes the rotation. The leader says yes again to what it has said yes to.
func (j *job) hand(ctx context.Context, key string, p *pending) error {
	if err := j.call(ctx, "propose", func(ctx context.Context) error {
		return j.r.Leader.ProposeSuccessor(ctx, key, p.secret.PublicKey())
	}); err != nil {
		return err
	}
	if j.stored != p.secret.ID() {
		if err := j.Sink.Put(ctx, p.secret); err != nil {
			return &stepError{"sink", err}
		}
		j.stored = p.secret.ID()
		j.logger.Info("successor's secret stored", "key", key, "successor", p.secret.ID())
	}
	return j.call(ctx, "complete", func(ctx context.Context) error {
		return j.r.Leader.CompleteRotation(ctx, key, p.secret.ID())
	})
}

func (j *job) call(ctx context.Context, step string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := f(ctx); err != nil {
		return &stepError{step, err}
	}
	return nil
}

// say logs why there is nothing to do, once.
func (j *job) say(k *keyring.Key) {
	line := fmt.Sprint(k.ID, k.Rotator, k.RotateEvery)
	if line == j.said {
		return
	}
	j.said = line
	if k.Rotator == j.r.Node {
		j.logger.Info("key is rotated by this node", "key", k.ID, "next", keyring.NextRotation(*k))
		return
	}
	j.logger.Warn("this node is not the key's rotator: iapmesh key schedule names it", "key", k.ID, "rotator", k.Rotator)
}
