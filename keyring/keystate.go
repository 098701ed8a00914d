package keyring

import (
	"crypto/ed25519"
	"slices"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

func keyConflict(k *Key, what string) error {
	return fault.New(fault.Conflict, "key %s: %s: it is %s", k.ID, what, k.State)
}

// ActivateKey turns pending into active. Another state is a Conflict, and so is a rotator's proposal: only CompleteRotation knows that
// its secret is kept. A key that awaits an approval is Denied.
func ActivateKey(k Key, now time.Time) (Key, error) {
	switch {
	case k.State != KeyPending || k.Proposed():
		return k, keyConflict(&k, "activate")
	case k.AwaitsApproval():
		return k, refuse(&k, "pending: %s", awaitedApproval(&k))
	}
	k.State = KeyActive
	k, _ = SweepKey(k, now)
	return k, nil
}

// SuspendKey turns active into suspended: no joins until it is resumed. Nodes that have enrolled go on.
func SuspendKey(k Key, reason string) (Key, error) {
	if k.State != KeyActive {
		return k, keyConflict(&k, "suspend")
	}
	if err := validText("reason", reason, MaxReason); err != nil {
		return k, err
	}
	k.State, k.Reason = KeySuspended, reason
	return k, nil
}

// ResumeKey turns suspended into active, or into what time has made of it meanwhile. What a restoration suspended before it had come so
// far, or after it had given its place up, is put back there: a key that waits for an approval, or whose secret nobody has stored, is
// pending, and one that has a successor retires. predecessor is the key's; nil if it has none.
func ResumeKey(k Key, predecessor *Key, now time.Time) (Key, error) {
	if k.State != KeySuspended {
		return k, keyConflict(&k, "resume")
	}
	completed := predecessor != nil && predecessor.ID == k.Predecessor && predecessor.Successor == k.ID
	k.State, k.Reason = KeyActive, ""
	switch {
	case k.NeedsApproval && k.ApprovedAt.IsZero(), k.ProposedBy != "" && !completed:
		k.State = KeyPending
	case k.Successor != "":
		k.State = KeyRetiring
	}
	k, _ = SweepKey(k, now)
	return k, nil
}

// SweepKey does what time does: active → expired or exhausted, retiring → retired. It reports whether anything changed.
func SweepKey(k Key, now time.Time) (Key, bool) {
	switch {
	case k.State == KeyActive && over(k.ExpiresAt, now):
		k.State = KeyExpired
	case k.State == KeyActive && k.usedUp():
		k.State = KeyExhausted
	case k.State == KeyRetiring && over(k.GraceUntil, now):
		k.State = KeyRetired
	default:
		return k, false
	}
	return k, true
}

// RotateRequest asks for a successor.
type RotateRequest struct {
	SuccessorPublicKey ed25519.PublicKey
	Grace              time.Duration // for how long the predecessor still admits; 0: no longer
	TTL                time.Duration // of the successor; 0: as long as the predecessor's
	NeedsApproval      bool          // the successor takes over with its approval, not before
	By                 string
	Now                time.Time
}

// RotateKey makes the key's successor, of the same name, scope and schedule with all uses before it, and sends the key into retirement.
// Only active, exhausted and expired keys rotate. Where the successor needs an approval, the key stays as it is until then.
func RotateKey(k Key, r RotateRequest) (predecessor, successor Key, err error) {
	if !k.succeedable() {
		return k, Key{}, keyConflict(&k, "rotate")
	}
	if r.Grace < 0 || r.Grace > MaxGrace {
		return k, Key{}, fault.New(fault.Invalid, "grace: %v, want at most %v", r.Grace, MaxGrace)
	}
	if successor, err = succeed(&k, r); err != nil {
		return k, Key{}, err
	}
	if r.NeedsApproval {
		successor.ApprovalGrace = r.Grace
		return k, successor, nil
	}
	return retire(k, &successor, r.Grace, r.Now), successor, nil
}

// RevokeRequest says how a key is revoked.
type RevokeRequest struct {
	Cascade  Cascade
	Reason   string
	ByHolder bool // by proof of holding the key: keep only
	By       string
	Now      time.Time

	Unconfirmed *Restoration // whose confirmation would give nodes back that the cascade keeps; nil if there is none
}

// strength orders the cascades; 0 is none of them.
func (c Cascade) strength() int {
	return slices.Index([]Cascade{CascadeKeep, CascadeQuarantine, CascadeKill}, c) + 1
}

// RevokeKey revokes the key, for good, and returns the nodes under it that change, as they are to be written: the blast radius.
// under is Snapshot.NodesUnder. A key that is revoked already may be revoked again with the same or a stronger cascade; its time
// and the reason first given stay. By whoever holds it, it stays as it is.
func RevokeKey(k Key, under []*Node, r RevokeRequest) (Key, []Node, error) {
	switch {
	case r.Cascade.strength() == 0:
		return k, nil, fault.New(fault.Invalid, "cascade %.40q: want keep, quarantine or kill", string(r.Cascade))
	case r.ByHolder && r.Cascade != CascadeKeep:
		return k, nil, fault.New(fault.Denied, "key %s: whoever holds it may revoke it with cascade keep only", k.ID)
	case k.State == KeyRevoked && r.ByHolder:
		return k, nil, nil
	case k.State == KeyRevoked && r.Cascade.strength() < k.Cascade.strength():
		return k, nil, fault.New(fault.Conflict, "key %s: already revoked with cascade %s", k.ID, k.Cascade)
	}
	if err := validText("reason", r.Reason, MaxReason); err != nil {
		return k, nil, err
	}
	if k.State != KeyRevoked {
		k.State, k.RevokedAt, k.RevokedBy, k.Reason = KeyRevoked, r.Now, r.By, r.Reason
	}
	k.Cascade = r.Cascade
	var changed []Node
	for _, n := range under {
		if after, ok := cascadeTo(*n, &r, "key "+k.ID+" revoked"); ok {
			changed = append(changed, after)
		}
	}
	slices.SortFunc(changed, func(a, b Node) int { return compareID(a.ID, b.ID) })
	return k, changed, nil
}

func cascadeTo(n Node, r *RevokeRequest, reason string) (Node, bool) {
	switch {
	case r.Cascade == CascadeQuarantine && (n.Trusted() || r.Unconfirmed.holds(&n)):
		return n.to(NodeQuarantined, reason, r.Now), true
	case r.Cascade == CascadeKill && n.State != NodeRevoked:
		return n.to(NodeRevoked, reason, r.Now), true
	}
	return n, false
}
