package control

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// Nodes that come back after a long silence, lapsed or with a certificate that is over, prove their key and are taken again: so many
// an hour for each provisioning key that they are bound to, so that a stack of old disks that somebody stole cannot come back at
// once, before anybody has seen the first. Control nodes are counted apart: after a blackout the others must not keep them waiting,
// since what has no view yet, a joiner or the command line, asks for their certificates.

// RecoveriesPerHour is how many nodes of one provisioning key recover within an hour.
const RecoveriesPerHour = 20

// recoveryWindow is the hour.
const recoveryWindow = time.Hour

// recoveries remembers, in the leader's memory, who recovered within the last hour. It holds names of keys that nodes are bound to, and
// at most RecoveriesPerHour times for each.
type recoveries struct {
	mu      sync.Mutex
	times   map[string]map[string]time.Time // by quota, by node; guarded by mu
	counted *prometheus.CounterVec          // by result
}

func newRecoveries(r prometheus.Registerer) *recoveries {
	out := &recoveries{times: map[string]map[string]time.Time{}, counted: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "iapmesh_control_recoveries_total",
		Help: "Nodes that came back lapsed or with an expired certificate: admitted, or deferred because their key's quota of the hour was used up.",
	}, []string{"result"})}
	if r != nil {
		r.MustRegister(out.counted)
	}
	return out
}

// recovers reports whether renewing the node is a recovery.
func recovers(n *keyring.Node, now time.Time) bool {
	return n.State == keyring.NodeLapsed || !now.Before(n.CertExpiresAt.Add(keyring.Skew))
}

// admit takes one of its quota's places for a node, or says when the next is free. The same node takes no second one within the hour:
// its answer may have been lost.
func (r *recoveries) admit(n *keyring.Node, now time.Time) error {
	quota := n.BoundKey
	if n.HasRole(keyring.RoleControl) {
		quota += "/" + string(keyring.RoleControl)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	have := r.times[quota]
	if have == nil {
		have = map[string]time.Time{}
		r.times[quota] = have
	}
	var oldest time.Time
	for node, at := range have {
		switch {
		case now.Sub(at) >= recoveryWindow:
			delete(have, node)
		case oldest.IsZero() || at.Before(oldest):
			oldest = at
		}
	}
	if _, again := have[n.ID]; !again && len(have) >= RecoveriesPerHour {
		r.counted.WithLabelValues("deferred").Inc()
		return &PutOffError{
			After: oldest.Add(recoveryWindow).Sub(now),
			What:  fmt.Sprintf("node %s: recover: %d nodes of key %s have come back within the hour, and no more do", n.ID, len(have), n.BoundKey),
		}
	}
	have[n.ID] = now
	return nil
}

// release gives a place back that was not used.
func (r *recoveries) release(n *keyring.Node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, have := range r.times {
		delete(have, n.ID)
	}
}

// PutOffError says when to ask again: until then the answer is the same, here and everywhere. It is Unavailable.
type PutOffError struct {
	What  string
	After time.Duration
}

func (e *PutOffError) Error() string {
	return e.What + ": again in " + e.After.Round(time.Second).String()
}

// Unwrap gives the kind.
func (e *PutOffError) Unwrap() error { return fault.New(fault.Unavailable, "put off") }

// RetryTrailer names the metadata by which an answer says after how many seconds to ask again.
const RetryTrailer = "iapmesh-retry-after"

// SayWhen is the interceptor that puts it there.
func SayWhen(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	resp, err := handler(ctx, req)
	var e *PutOffError
	if errors.As(err, &e) {
		_ = grpc.SetTrailer(ctx, metadata.Pairs(RetryTrailer, strconv.Itoa(int(e.After/time.Second)+1))) // the error says it, too
	}
	return resp, err
}
