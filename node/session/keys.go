package session

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/state"
)

// Sealer seals what lies on this node's disk. The context is authenticated with the plaintext, and must be the same to open it.
type Sealer interface {
	Seal(plaintext, context []byte) ([]byte, error)
	Open(sealed, context []byte) ([]byte, error)
}

// Announcer publishes the node's next session key: MeshService.AnnounceSigningKey, or the leader's own control. Announcing a key
// again changes nothing. It returns the revision at which the key is in the state.
type Announcer interface {
	AnnounceSigningKey(ctx context.Context, kid string, pub ed25519.PublicKey, proof []byte) (revision.Revision, error)
}

// KeyViews is what Keys follows; state.Source is one.
type KeyViews interface {
	Load() *state.View
	Changed() <-chan struct{}
}

// KeysConfig is that of Keys. Node, Dir and Sealer are required, and the rest to Run.
type KeysConfig struct {
	Node       string // id of this node
	Dir        string // <data>/session-keys; made if it is not there
	Sealer     Sealer
	Announcer  Announcer
	Views      KeyViews
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
	Now        func() time.Time      // default time.Now
}

// Keys are the node's own session keys. A private half is on disk, sealed, before its public half is announced, and is deleted
// once the key will sign no more.
type Keys struct {
	cfg     KeysConfig
	metrics *keyMetrics
	mu      sync.Mutex
	own     map[string]*ownKey // by kid; guarded by mu
	retry   time.Duration      // Run's alone: since the last announcement failed
	retryAt time.Time
}

// ownKey is a private half; it never changes but for announced.
type ownKey struct {
	kid       string
	private   ed25519.PrivateKey
	created   time.Time
	announced revision.Revision // zero: not yet
}

func (k *ownKey) public() ed25519.PublicKey { return k.private.Public().(ed25519.PublicKey) }

// signingKey is a key that signs now, and its record.
type signingKey struct {
	private ed25519.PrivateKey
	record  *keyring.SigningKey
}

// The announcement's pauses after a failure.
const (
	minRetry = time.Second
	maxRetry = 30 * time.Second
)

// OpenKeys reads the keys on disk.
func OpenKeys(cfg KeysConfig) (*Keys, error) {
	if cfg.Node == "" || cfg.Dir == "" || cfg.Sealer == nil {
		return nil, fault.New(fault.Internal, "session keys: want a node, a directory and a sealer")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	own, err := readKeys(cfg.Dir, cfg.Node, cfg.Sealer)
	if err != nil {
		return nil, err
	}
	return &Keys{cfg: cfg, own: own, metrics: newKeyMetrics(cfg.Registerer)}, nil
}

// KIDOf names a session key by its public half.
func KIDOf(pub ed25519.PublicKey) string { return keyring.SigningKID(keyring.SigningSession, pub) }

// Add takes the key that the node joined with, which the state holds from at on. Adding it again changes nothing.
func (k *Keys) Add(private ed25519.PrivateKey, at revision.Revision) error {
	if len(private) != ed25519.PrivateKeySize {
		return fault.New(fault.Invalid, "session key: %d bytes, want %d", len(private), ed25519.PrivateKeySize)
	}
	key := &ownKey{private: slices.Clone(private), created: k.cfg.Now(), announced: at}
	key.kid = KIDOf(key.public())
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.own[key.kid] != nil {
		return nil
	}
	return k.save(key)
}

// save writes the key and holds it; mu is held.
func (k *Keys) save(key *ownKey) error {
	if err := writeKey(k.cfg.Dir, k.cfg.Node, k.cfg.Sealer, key); err != nil {
		return err
	}
	k.own[key.kid] = key
	return nil
}

// signer returns the newest own key that is active in the view. Unavailable if there is none, or if this node may not mint.
func (k *Keys) signer(view *state.View) (signingKey, *keyring.Node, error) {
	node := view.Keyring.Nodes[k.cfg.Node]
	if node == nil || !node.Trusted() || !node.HasRole(keyring.RoleProxy) {
		return signingKey{}, nil, fault.New(fault.Unavailable, "this node may not mint sessions")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	key, record := k.active(view)
	if key == nil {
		return signingKey{}, nil, fault.New(fault.Unavailable, "this node has no active session key yet")
	}
	return signingKey{key.private, record}, node, nil
}

// active returns the newest own key that is active in the view, or nil; mu is held.
func (k *Keys) active(view *state.View) (*ownKey, *keyring.SigningKey) {
	var best *ownKey
	var record *keyring.SigningKey
	for kid, key := range k.own {
		r := view.Keyring.SigningKeys[kid]
		if r == nil || r.State != keyring.SigningActive || r.Node != k.cfg.Node || !key.public().Equal(ed25519.PublicKey(r.PublicKey)) {
			continue
		}
		if best == nil || cmp.Or(record.ActiveAt.Compare(r.ActiveAt), record.Revision.Compare(r.Revision)) < 0 {
			best, record = key, r
		}
	}
	return best, record
}

// Run drives the node's own rotation until ctx ends: it generates and announces a successor when one is due, and deletes private
// halves that will not sign again. The leader decides when a successor signs.
func (k *Keys) Run(ctx context.Context) error {
	if k.cfg.Views == nil || k.cfg.Announcer == nil {
		return fault.New(fault.Internal, "session keys: want views and an announcer to run")
	}
	for {
		changed := k.cfg.Views.Changed()
		wait := maxRetry
		if view := k.cfg.Views.Load(); view != nil {
			var err error
			if wait, err = k.step(ctx, view); err != nil && ctx.Err() == nil {
				k.cfg.Logger.Error("session key not rotated", "error", err, "retry_in", wait.String())
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// step does what a view asks for, and says when to look again although nothing has changed.
func (k *Keys) step(ctx context.Context, view *state.View) (time.Duration, error) {
	if err := k.forget(view); err != nil {
		return maxRetry, err
	}
	now := k.cfg.Now()
	if now.Before(k.retryAt) {
		return k.retryAt.Sub(now), nil
	}
	node := view.Keyring.Nodes[k.cfg.Node]
	if node == nil || !node.Trusted() || !node.HasRole(keyring.RoleProxy) {
		return maxRetry, nil
	}
	next, due, err := k.successor(view, now)
	if err == nil && next != nil {
		err = k.announce(ctx, next)
	}
	if err != nil {
		k.retry = min(max(2*k.retry, minRetry), maxRetry)
		k.retryAt = now.Add(k.retry)
		return k.retry, err
	}
	k.retry = 0
	return due, nil
}

// successor returns the key to announce, generated and saved if need be; nil if none is due, and then when one will be.
func (k *Keys) successor(view *state.View, now time.Time) (*ownKey, time.Duration, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for kid, key := range k.own {
		record := view.Keyring.SigningKeys[kid]
		switch {
		case record == nil && key.announced.IsZero():
			return key, 0, nil // generated before a crash, or an announcement failed
		case record == nil, record.State == keyring.SigningAnnounced:
			return nil, maxRetry, nil // on its way
		}
	}
	rotation := resource.DefaultKeyRotation
	if s := view.Config.Settings; s != nil && s.SessionKeyRotation > 0 {
		rotation = time.Duration(s.SessionKeyRotation)
	}
	if _, record := k.active(view); record != nil && !record.RotateRequested {
		if wait := record.ActiveAt.Add(rotation).Sub(now); wait > 0 {
			return nil, wait, nil
		}
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, 0, fmt.Errorf("generate a session key: %w", err)
	}
	key := &ownKey{private: private, created: now}
	key.kid = KIDOf(key.public())
	return key, 0, k.save(key)
}

func (k *Keys) announce(ctx context.Context, key *ownKey) error {
	proof := ed25519.Sign(key.private, keyring.AnnouncementMessage(k.cfg.Node))
	at, err := k.cfg.Announcer.AnnounceSigningKey(ctx, key.kid, key.public(), proof)
	if err != nil {
		k.metrics.announce.WithLabelValues("failed").Inc()
		return fmt.Errorf("announce session key %s: %w", key.kid, err)
	}
	k.metrics.announce.WithLabelValues("ok").Inc()
	k.cfg.Logger.Info("session key announced", "kid", key.kid, "revision", at.String())
	known := *key
	known.announced = at
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.save(&known)
}

// forget deletes the private halves that will sign no more: retired, destroyed or revoked ones, and those whose record is gone
// from a view that would hold it.
func (k *Keys) forget(view *state.View) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for kid, key := range k.own {
		record := view.Keyring.SigningKeys[kid]
		gone := record == nil && !key.announced.IsZero() && !view.Revision.Before(key.announced)
		if !gone && (record == nil || record.Verifies()) {
			continue
		}
		if err := removeKey(k.cfg.Dir, kid); err != nil {
			return err
		}
		delete(k.own, kid)
		k.cfg.Logger.Info("session key deleted", "kid", kid)
	}
	return nil
}
