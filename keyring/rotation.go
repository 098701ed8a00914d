package keyring

import (
	"crypto/ed25519"
	"fmt"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// The bounds of a rotation schedule.
const (
	MinRotateEvery = time.Minute // each rotation leaves a record for good
	MaxRotateEvery = MaxKeyTTL
)

// maxExpiryLead bounds how long before a scheduled key expires its successor is made.
const maxExpiryLead = 24 * time.Hour

// Schedule says how often a key is rotated without an operator, and which node makes the successors. The zero value is none.
type Schedule struct {
	Every   time.Duration
	Grace   time.Duration // for how long each predecessor still admits
	Rotator string        // node id
	By      string        // who names it; with a schedule alone
}

// ScheduleKey sets the key's schedule, which its successors inherit, or with the zero value takes it away. rotator is the node that
// the schedule names; nil for none. A key that has a successor is scheduled no more: its successor is.
func ScheduleKey(k Key, s Schedule, rotator *Node) (Key, error) {
	if k.Successor != "" || k.State == KeyRevoked || k.Proposed() {
		return k, keyConflict(&k, "schedule")
	}
	if s.Every == 0 && s.Grace == 0 && s.Rotator == "" {
		k.RotateEvery, k.RotateGrace, k.Rotator, k.ScheduledBy, k.RotateRequested = 0, 0, "", "", false
		return k, nil
	}
	switch {
	case s.Every < MinRotateEvery || s.Every > MaxRotateEvery:
		return k, fault.New(fault.Invalid, "rotate_every: %v, want %v to %v", s.Every, MinRotateEvery, MaxRotateEvery)
	case s.Grace < 0 || s.Grace > MaxGrace:
		return k, fault.New(fault.Invalid, "grace: %v, want at most %v", s.Grace, MaxGrace)
	case s.Rotator == "" || rotator == nil || rotator.ID != s.Rotator:
		return k, fault.New(fault.Invalid, "rotator: a schedule names the node that makes the successors")
	case !rotator.Trusted():
		return k, fault.New(fault.Conflict, "rotator: node %s is %s", rotator.ID, rotator.State)
	}
	if s.Rotator != k.Rotator {
		k.RotateRequested = false // it was asked of another node
	}
	if s.Rotator != k.Rotator {
		k.ScheduledBy = s.By // whoever only changes how often says nothing of who makes the successors
	}
	k.RotateEvery, k.RotateGrace, k.Rotator = s.Every, s.Grace, s.Rotator
	return k, nil
}

// Scheduled reports whether a node makes the key's successors.
func (k *Key) Scheduled() bool { return k.RotateEvery > 0 }

// Proposed reports whether the key is a rotator's successor that does not admit yet: its secret is on the way to where it is kept.
// Only CompleteRotation makes it active.
func (k *Key) Proposed() bool { return k.State == KeyPending && k.ProposedBy != "" }

// succeedable reports whether the key's state lets it be rotated.
func (k *Key) succeedable() bool {
	return k.State == KeyActive || k.State == KeyExhausted || k.State == KeyExpired
}

// NextRotation is when the key's schedule wants a successor: when its period is over, and in any case some time before it expires.
// Zero: it has no schedule.
func NextRotation(k Key) time.Time {
	if !k.Scheduled() {
		return time.Time{}
	}
	next := k.NotBefore.Add(k.RotateEvery)
	if k.ExpiresAt.IsZero() {
		return next
	}
	lead := min(k.ExpiresAt.Sub(k.NotBefore)/4, maxExpiryLead)
	if last := k.ExpiresAt.Add(-lead); last.Before(next) {
		next = last
	}
	return next
}

// RotationDue reports whether the key's rotator is to make a successor now: its schedule says so, or an operator asked for it. A key
// that has expired or is used up is rotated like an active one, so that a mesh that was off comes back with a fresh key.
func RotationDue(k Key, now time.Time) bool {
	if !k.Scheduled() || !k.succeedable() {
		return false
	}
	return k.RotateRequested || !now.Before(NextRotation(k))
}

// OverdueAfter is for how long a scheduled rotation may be due before somebody should look at the key's rotator.
const OverdueAfter = 10 * time.Minute

// RotationOverdue reports whether the schedule's rotation has been due for longer than OverdueAfter.
func RotationOverdue(k Key, now time.Time) bool {
	return k.Scheduled() && k.succeedable() && now.Sub(NextRotation(k)) > OverdueAfter
}

// RequestKeyRotation asks the key's rotator for a successor now. Asking twice changes nothing.
func RequestKeyRotation(k Key) (Key, error) {
	switch {
	case !k.succeedable():
		return k, keyConflict(&k, "rotate")
	case !k.Scheduled():
		return k, fault.New(fault.Conflict, "key %s: rotate: it has no schedule, so no node makes its successors", k.ID)
	}
	k.RotateRequested = true
	return k, nil
}

// ruleRotator refuses every node but the key's rotator: any other that could name a successor could let itself in with it.
func ruleRotator(k *Key, by Node) error {
	if !k.Scheduled() || k.Rotator != by.ID {
		return fault.New(fault.Denied, "key %s: node %s is not its rotator", k.ID, by.ID)
	}
	if !by.Trusted() {
		return fault.New(fault.Denied, "key %s: its rotator, node %s, is %s", k.ID, by.ID, by.State)
	}
	return nil
}

// ProposalRequest asks for a successor on a rotator's word.
type ProposalRequest struct {
	SuccessorPublicKey ed25519.PublicKey
	By                 Node // who asks, by its certificate
	Open               *Key // the key's proposal that is open, if there is one
	NeedsApproval      bool // by an administrator, before it can be completed
	Now                time.Time
}

// ProposeSuccessor makes the record of a scheduled key's successor: pending, with the key as its predecessor, which stays as it is
// until CompleteRotation. The same proposal again is answered with the record as it is. Another one replaces it: replaced is the
// earlier one, revoked, so that at most one is open. Denied: the node is not the key's rotator. Conflict: it is not time, or the key
// is in no state to be succeeded.
func ProposeSuccessor(k Key, r ProposalRequest) (successor Key, replaced *Key, err error) {
	if err := ruleRotator(&k, r.By); err != nil {
		return Key{}, nil, err
	}
	if !k.succeedable() {
		return Key{}, nil, keyConflict(&k, "propose a successor")
	}
	if r.Open != nil && (r.Open.Predecessor != k.ID || !r.Open.Proposed()) {
		return Key{}, nil, fault.New(fault.Internal, "key %s: %s is no open proposal for it", k.ID, r.Open.ID)
	}
	if r.Open != nil && r.Open.ProposedBy == r.By.ID && r.Open.PublicKey.Equal(r.SuccessorPublicKey) {
		return *r.Open, nil, nil
	}
	if !RotationDue(k, r.Now.Add(min(Skew, k.RotateEvery/10))) { // the rotator's clock may be ahead of the leader's
		return Key{}, nil, fault.New(fault.Conflict, "key %s: propose a successor: not before %s", k.ID, stamp(NextRotation(k)))
	}
	successor, err = succeed(&k, RotateRequest{SuccessorPublicKey: r.SuccessorPublicKey, By: "node/" + r.By.ID, NeedsApproval: r.NeedsApproval, Now: r.Now})
	if err != nil {
		return Key{}, nil, err
	}
	successor.State, successor.ProposedBy = KeyPending, r.By.ID
	if r.Open != nil {
		revoked := abandon(*r.Open, "replaced by proposal "+successor.ID, r.Now)
		replaced = &revoked
	}
	return successor, replaced, nil
}

// CompletionRequest ends a rotation that ProposeSuccessor began.
type CompletionRequest struct {
	By  Node // who says that the secret is where it is kept
	Now time.Time
}

// CompleteRotation makes a proposed successor active, from now on for as long as its predecessor was to live, and sends the
// predecessor into retirement with the schedule's grace. A rotation that is complete already is answered with the records as they
// are. It is refused if the predecessor can no longer be succeeded: revoked, suspended, or succeeded by another key.
func CompleteRotation(k, successor Key, r CompletionRequest) (predecessor, active Key, err error) {
	if k.Successor == successor.ID && successor.Predecessor == k.ID && successor.ProposedBy == r.By.ID {
		return k, successor, nil
	}
	if err := ruleRotator(&k, r.By); err != nil {
		return k, successor, err
	}
	switch {
	case successor.Predecessor != k.ID || !successor.Proposed():
		return k, successor, keyConflict(&successor, "complete the rotation of "+k.ID)
	case successor.ProposedBy != r.By.ID:
		return k, successor, fault.New(fault.Denied, "key %s: proposed by node %s, not by %s", successor.ID, successor.ProposedBy, r.By.ID)
	case !k.succeedable():
		return k, successor, keyConflict(&k, "complete its rotation")
	case successor.AwaitsApproval():
		return k, successor, refuse(&successor, "pending: %s", awaitedApproval(&successor))
	}
	// Here, and nowhere else, a proposal becomes a key that admits: whatever must be agreed to before that is asked for here.
	ttl := successor.ExpiresAt.Sub(successor.NotBefore)
	successor.State, successor.NotBefore, successor.ExpiresAt = KeyActive, r.Now, r.Now.Add(ttl)
	successor.inheritSchedule(&k) // as it is now
	k = retire(k, &successor, k.RotateGrace, r.Now)
	return k, successor, nil
}

// SweepProposal revokes a proposal that nobody can complete any more: its predecessor is gone for good, succeeded by another key, or
// another node makes its successors. It reports whether anything changed.
func SweepProposal(k Key, predecessor *Key, now time.Time) (Key, bool) {
	if !k.Proposed() {
		return k, false
	}
	switch {
	case predecessor == nil:
		return abandon(k, "its predecessor "+k.Predecessor+" is gone", now), true
	case predecessor.State == KeyRevoked:
		return abandon(k, "its predecessor "+k.Predecessor+" was revoked", now), true
	case predecessor.Successor != "":
		return abandon(k, "its predecessor "+k.Predecessor+" was rotated to "+predecessor.Successor, now), true
	case predecessor.Rotator != k.ProposedBy:
		return abandon(k, fmt.Sprintf("node %s rotates %s no more", k.ProposedBy, k.Predecessor), now), true
	}
	return k, false
}

// abandon revokes a proposal: it has admitted nobody, so there is nothing to cascade to.
func abandon(k Key, reason string, now time.Time) Key {
	k.State, k.RevokedAt, k.Reason, k.Cascade = KeyRevoked, now, reason, CascadeKeep
	return k
}

// succeed makes the record of a key's successor: of the same name, scope and schedule, with all uses before it.
func succeed(k *Key, r RotateRequest) (Key, error) {
	ttl := r.TTL
	if ttl == 0 {
		ttl = k.ExpiresAt.Sub(k.NotBefore)
	}
	successor, err := IssueKey(KeyRequest{
		PublicKey: r.SuccessorPublicKey, Name: k.Name, Grants: k.Grants, Regions: k.Regions, RouteSelector: k.RouteSelector,
		SourceCIDRs: k.SourceCIDRs, TTL: ttl, MaxUses: &k.MaxUses, MaxActive: k.MaxActive, NeedsApproval: r.NeedsApproval, By: r.By, Now: r.Now,
	})
	if err != nil {
		return Key{}, err
	}
	if successor.ID == k.ID {
		return Key{}, fault.New(fault.Invalid, "successor_public_key: key %s cannot succeed itself", k.ID)
	}
	successor.Predecessor = k.ID
	successor.inheritSchedule(k)
	return successor, nil
}

func (k *Key) inheritSchedule(of *Key) {
	k.RotateEvery, k.RotateGrace, k.Rotator, k.ScheduledBy = of.RotateEvery, of.RotateGrace, of.Rotator, of.ScheduledBy
}

// retire sends a key into retirement behind its successor.
func retire(k Key, successor *Key, grace time.Duration, now time.Time) Key {
	k.Successor, k.GraceUntil, k.RotateRequested = successor.ID, now.Add(grace), false
	k.State = KeyRetiring
	if grace == 0 {
		k.State = KeyRetired
	}
	return k
}
