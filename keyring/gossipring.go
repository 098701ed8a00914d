package keyring

import (
	"bytes"
	"slices"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
)

// RingPhase is how far a change of the gossip key is.
type RingPhase string

// The phases of the gossip ring. The first key of a ring encrypts, all decrypt.
const (
	RingSteady  RingPhase = "steady"  // one key
	RingInstall RingPhase = "install" // the new key is the last: it decrypts, and nobody encrypts by it
	RingUse     RingPhase = "use"     // the new key is the first: some encrypt by it, others by the one behind it still
)

// GossipRing says how far the ring of gossip keys is; the keys themselves are a secret of audience gossip.
type GossipRing struct {
	Phase    RingPhase
	Since    time.Time         // of the phase
	BegunAt  time.Time         // when its newest key was made
	Revision revision.Revision // at which the record, and the keys with it, were last written
}

const (
	ringKeySize = 32
	maxRingKeys = 3 // while a key is replaced that some have just begun to use
)

// ParseRing reads the keys of a ring from its secret. Errors are Internal: the leader wrote it.
func ParseRing(secret []byte) ([][]byte, error) {
	if len(secret) == 0 || len(secret)%ringKeySize != 0 || len(secret) > maxRingKeys*ringKeySize {
		return nil, fault.New(fault.Internal, "ring of gossip keys: %d bytes, want 1 to %d keys of %d", len(secret), maxRingKeys, ringKeySize)
	}
	return slices.Collect(slices.Chunk(secret, ringKeySize)), nil
}

// NewRing begins a ring with one key.
func NewRing(now time.Time) GossipRing {
	return GossipRing{Phase: RingSteady, Since: now, BegunAt: now}
}

// BeginRing begins to replace the key by which a ring encrypts, and returns the keys of the new ring. It may be called in any phase, as
// when a node is revoked while a change is under way, and next always becomes the key: a new one that nobody uses yet is dropped for
// it, and of two that are in use both stay until everybody uses next.
func BeginRing(r GossipRing, keys [][]byte, next []byte, now time.Time) (GossipRing, [][]byte, error) {
	switch {
	case len(next) != ringKeySize || len(keys) == 0 || len(keys) > maxRingKeys:
		return r, nil, fault.New(fault.Internal, "ring of gossip keys: %d keys, and a new one of %d bytes", len(keys), len(next))
	case slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, next) }):
		return r, nil, fault.New(fault.Internal, "ring of gossip keys: the new key is one of it")
	}
	inUse := keys[:1]
	switch {
	case r.Phase == RingInstall && len(keys) > 1:
		inUse = keys[:len(keys)-1]
	case r.Phase == RingUse && len(keys) > 1:
		inUse = keys[:2]
	}
	return GossipRing{Phase: RingInstall, Since: now, BegunAt: now}, append(slices.Clone(inUse), next), nil
}

// ReadyToAdvance holds a ring against what the nodes have reported: its next step waits until every live node has this one.
func ReadyToAdvance(r GossipRing, f PromoteFacts) Readiness {
	ready, acknowledged := acknowledgedBy(r.Revision, f)
	ready.Ready = (r.Phase == RingInstall || r.Phase == RingUse) && acknowledged && len(ready.Waiting) == 0
	return ready
}

// AdvanceRing takes the next step: everybody decrypts by the new key, so it is used; or everybody uses it, so the others go.
func AdvanceRing(r GossipRing, keys [][]byte, now time.Time) (GossipRing, [][]byte, error) {
	switch last := len(keys) - 1; {
	case r.Phase == RingInstall && last > 0:
		r.Phase, keys = RingUse, append([][]byte{keys[last]}, keys[:last]...)
	case r.Phase == RingUse && last >= 0:
		r.Phase, keys = RingSteady, [][]byte{keys[0]}
	default:
		return r, nil, fault.New(fault.Conflict, "ring of gossip keys: no next step from %q with %d keys", r.Phase, len(keys))
	}
	r.Since = now
	return r, keys, nil
}
