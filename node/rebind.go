package node

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// rebinder binds this node to the successor of its provisioning key as soon as a view has one, or to the key that an operator named
// for it: step by step, where a successor has one itself.
type rebinder struct {
	key    ed25519.PrivateKey // the node's
	nodeID string
	link   *link
	source *state.Source
	logger *slog.Logger

	asked string        // the keys, from and to, that retry is about; Run's alone
	retry time.Duration // since the last refusal; Run's alone
	next  time.Time     // when to ask; Run's alone
}

const (
	rebindRetry    = 2 * time.Second // doubled at each refusal
	maxRebindRetry = 5 * time.Minute
	rebindTimeout  = 30 * time.Second
	// Nodes of a mesh see a rotation at once; each waits for its turn, so that the leader is asked by few at a time.
	rebindSpread    = 20 * time.Millisecond // for each node of the mesh
	maxRebindSpread = 30 * time.Second
)

// Run works until ctx ends.
func (r *rebinder) Run(ctx context.Context) error {
	for {
		changed := r.source.Changed()
		wait := maxRebindRetry
		if from, to := r.due(); to != "" {
			if wait = time.Until(r.next); wait <= 0 {
				r.ask(ctx, from, to)
				wait = max(0, time.Until(r.next))
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

// due says from which key to which this node should move; empty if it should stay. When to ask is set where that is new.
func (r *rebinder) due() (from, to string) {
	v := r.source.Load()
	if v == nil {
		return "", ""
	}
	n := v.Keyring.Nodes[r.nodeID]
	if n == nil {
		return "", ""
	}
	target := v.Keyring.RebindTarget(n)
	if target == nil {
		r.asked = ""
		return "", ""
	}
	if move := n.BoundKey + " " + target.ID; move != r.asked {
		spread := min(maxRebindSpread, rebindSpread*time.Duration(len(v.Keyring.Nodes)))
		r.asked, r.retry = move, rebindRetry
		r.next = time.Now().Add(rand.N(spread)) //nolint:gosec // spreads load, keeps no secret
	}
	return n.BoundKey, target.ID
}

// ask asks once. What is refused, as where the target has no place for one more node, is asked for again later.
func (r *rebinder) ask(ctx context.Context, from, to string) {
	v := r.source.Load()
	signature := ed25519.Sign(r.key, keyring.RebindMessage(v.Keyring.Mesh.ID, r.nodeID, from, to))
	ctx, cancel := context.WithTimeout(ctx, rebindTimeout)
	defer cancel()
	err := r.link.call(ctx, "re-bind to key "+to, func(ctx context.Context, c iapmeshv1.MeshServiceClient, o ...grpc.CallOption) error {
		_, err := c.Rebind(ctx, &iapmeshv1.RebindRequest{FromKey: from, ToKey: to, Signature: signature}, o...)
		return err
	})
	pause := r.retry/2 + rand.N(r.retry) //nolint:gosec // spreads load, keeps no secret
	r.next, r.retry = time.Now().Add(pause), min(2*r.retry, maxRebindRetry)
	switch {
	case err == nil:
		r.logger.Info("re-bound to another provisioning key", "from", from, "to", to)
	case ctx.Err() == nil || errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		r.logger.Warn("not re-bound to another provisioning key", "from", from, "to", to, "retry_in", pause.String(), "error", err)
	}
}
