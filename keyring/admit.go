package keyring

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// JoinFacts are what a key's scope is held against when a node asks to join.
type JoinFacts struct {
	Now         time.Time
	Node, Name  string // who joins, for RecentUses
	Roles       []Role
	Region      string
	SourceIP    netip.Addr
	ActiveNodes int // that take a place under the key now: Snapshot.CountActive
}

// AdmitJoin consumes one use of the key for a node, or says which rule refuses it: Denied, or Exhausted for uses and active nodes.
// The caller has verified the signatures and answered a repeated join (ResumeJoin) before, and commits the returned key together
// with the node, guarded by the key's revision.
func AdmitJoin(k Key, f JoinFacts) (Key, error) {
	if err := validRoles("roles", f.Roles); err != nil {
		return k, err
	}
	if err := ValidRegion(f.Region); err != nil {
		return k, err
	}
	for _, rule := range []func(*Key, *JoinFacts) error{
		ruleState, ruleNotBefore, ruleExpiresAt, ruleMaxUses, ruleGrants, ruleRegions, ruleSourceCIDRs, ruleMaxActive,
	} {
		if err := rule(&k, &f); err != nil {
			return k, err
		}
	}
	if k.Uses < math.MaxUint32 {
		k.Uses++
	}
	k.RecentUses = append(slices.Clone(k.RecentUses), Use{Node: f.Node, Name: f.Name, At: f.Now})
	if extra := len(k.RecentUses) - MaxRecentUses; extra > 0 {
		k.RecentUses = k.RecentUses[extra:]
	}
	if k.State == KeyActive && k.usedUp() {
		k.State = KeyExhausted
	}
	return k, nil
}

// ErrNotYetActive refuses a join by a key whose rotation is not complete: soon it will do.
var ErrNotYetActive = errors.New("it is about to become active")

func (k *Key) usedUp() bool { return k.MaxUses != 0 && k.Uses >= k.MaxUses }

// over reports whether t has passed for sure, whatever the skew.
func over(t, now time.Time) bool { return !t.IsZero() && !now.Before(t.Add(Skew)) }

func refuse(k *Key, format string, args ...any) error {
	return fault.New(fault.Denied, "key %s: %w", k.ID, fmt.Errorf(format, args...))
}

func ruleState(k *Key, f *JoinFacts) error {
	switch k.State {
	case KeyActive:
		return nil
	case KeyExhausted:
		return exhausted(k)
	case KeyExpired:
		return refuse(k, "expired at %s", stamp(k.ExpiresAt))
	case KeyRetiring:
		if over(k.GraceUntil, f.Now) {
			return refuse(k, "rotated: its grace ended at %s; use its successor %s", stamp(k.GraceUntil), k.Successor)
		}
		return nil
	case KeyRetired:
		return refuse(k, "retired: use its successor %s", k.Successor)
	case KeyRevoked:
		return refuse(k, "revoked at %s", stamp(k.RevokedAt))
	case KeySuspended:
		return refuse(k, "suspended by an operator")
	case KeyPending:
		if k.AwaitsApproval() {
			return refuse(k, "pending: %s", awaitedApproval(k))
		}
		if k.Proposed() { // the joiner got it from where the rotator has just put it
			return fault.New(fault.Unavailable, "key %s: %w, in the place of %s: try again", k.ID, ErrNotYetActive, k.Predecessor)
		}
		return refuse(k, "pending: an operator has yet to activate it")
	}
	return refuse(k, "in unknown state %q", string(k.State))
}

func ruleNotBefore(k *Key, f *JoinFacts) error {
	if f.Now.Add(Skew).Before(k.NotBefore) {
		return refuse(k, "not_before: valid from %s", stamp(k.NotBefore))
	}
	return nil
}

func ruleExpiresAt(k *Key, f *JoinFacts) error {
	if k.ExpiresAt.IsZero() || over(k.ExpiresAt, f.Now) {
		return refuse(k, "expired at %s", stamp(k.ExpiresAt))
	}
	return nil
}

func ruleMaxUses(k *Key, _ *JoinFacts) error {
	if k.usedUp() {
		return exhausted(k)
	}
	return nil
}

// exhausted says by whom and when: the last three uses.
func exhausted(k *Key) error {
	last := k.RecentUses[max(0, len(k.RecentUses)-3):]
	if len(last) == 0 {
		return fault.New(fault.Exhausted, "key %s: exhausted: %d of %d uses", k.ID, k.Uses, k.MaxUses)
	}
	by := make([]string, len(last))
	for i, u := range last {
		by[i] = u.Node + " (" + u.Name + ") at " + stamp(u.At)
	}
	return fault.New(fault.Exhausted, "key %s: exhausted: %d of %d uses, last by %s", k.ID, k.Uses, k.MaxUses, strings.Join(by, ", "))
}

func ruleGrants(k *Key, f *JoinFacts) error {
	for _, r := range f.Roles {
		if !slices.Contains(k.Grants, r) {
			return refuse(k, "grants: role %s is not among %v", r, k.Grants)
		}
	}
	return nil
}

func ruleRegions(k *Key, f *JoinFacts) error {
	if len(k.Regions) > 0 && !slices.Contains(k.Regions, f.Region) {
		return refuse(k, "regions: %s is not among %v", f.Region, k.Regions)
	}
	return nil
}

func ruleSourceCIDRs(k *Key, f *JoinFacts) error {
	if len(k.SourceCIDRs) == 0 {
		return nil
	}
	ip := f.SourceIP.Unmap().WithZone("")
	for _, p := range k.SourceCIDRs {
		if p.Contains(ip) {
			return nil
		}
	}
	return refuse(k, "source_cidrs: %s is in none of %v", ip, k.SourceCIDRs)
}

func ruleMaxActive(k *Key, f *JoinFacts) error {
	if k.MaxActive != 0 && (f.ActiveNodes < 0 || uint64(f.ActiveNodes) >= uint64(k.MaxActive)) {
		return fault.New(fault.Exhausted, "key %s: max_active: %d nodes of %d are active", k.ID, f.ActiveNodes, k.MaxActive)
	}
	return nil
}

// ReturnUse gives back the use of a join that was never confirmed. Call it once, in the commit that makes the node departed.
func ReturnUse(k Key, node string, now time.Time) Key {
	k.RecentUses = slices.DeleteFunc(slices.Clone(k.RecentUses), func(u Use) bool { return u.Node == node })
	if k.Uses > 0 {
		k.Uses--
	}
	if k.State == KeyExhausted && !k.usedUp() {
		k.State = KeyActive
		k, _ = SweepKey(k, now)
	}
	return k
}
