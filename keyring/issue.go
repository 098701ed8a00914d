package keyring

import (
	"crypto/ed25519"
	"net/netip"
	"slices"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// The bounds of a provisioning key's scope and lifetime.
const (
	DefaultKeyTTL  = 24 * time.Hour
	MaxKeyTTL      = 366 * 24 * time.Hour
	MaxGrace       = 30 * 24 * time.Hour
	MaxKeyRegions  = 64
	MaxSourceCIDRs = 64
)

// The scope of the bootstrap key that a new mesh begins with.
const BootstrapUses = 16

// KeyRequest asks for a provisioning key. The zero values of TTL and MaxUses ask for 24 hours and one use.
type KeyRequest struct {
	PublicKey     ed25519.PublicKey
	Name          string
	Grants        []Role
	Regions       []string // empty: any
	RouteSelector string   // empty: every route
	SourceCIDRs   []netip.Prefix
	NotBefore     time.Time // zero: now
	TTL           time.Duration
	MaxUses       *uint32 // nil: 1; 0: unlimited
	MaxActive     uint32  // 0: unlimited
	Pending       bool    // to be activated by an operator
	NeedsApproval bool    // pending until another administrator approves it
	By            string
	Now           time.Time
}

// BootstrapRequest asks for the key that a new mesh prints once: control and proxy, 16 uses, 24 hours.
func BootstrapRequest(pub ed25519.PublicKey, by string, now time.Time) KeyRequest {
	uses := uint32(BootstrapUses)
	return KeyRequest{
		PublicKey: pub, Name: "bootstrap", Grants: []Role{RoleControl, RoleProxy}, MaxUses: &uses, By: by, Now: now,
	}
}

// IssueKey makes the record of a new key, active unless Pending is asked for. What is wrong with the request is Invalid and
// names the field.
func IssueKey(r KeyRequest) (Key, error) {
	if err := validKeyRequest(r); err != nil {
		return Key{}, err
	}
	k := Key{
		ID:            KeyID(r.PublicKey),
		Name:          r.Name,
		PublicKey:     slices.Clone(r.PublicKey),
		Grants:        slices.Sorted(slices.Values(r.Grants)),
		Regions:       slices.Compact(slices.Sorted(slices.Values(r.Regions))),
		RouteSelector: r.RouteSelector,
		NotBefore:     r.Now,
		MaxUses:       1,
		MaxActive:     r.MaxActive,
		State:         KeyActive,
		CreatedBy:     r.By,
		CreatedAt:     r.Now,
	}
	for _, p := range r.SourceCIDRs {
		plain, err := plainPrefix(p)
		if err != nil {
			return Key{}, err
		}
		k.SourceCIDRs = append(k.SourceCIDRs, plain)
	}
	if !r.NotBefore.IsZero() {
		k.NotBefore = r.NotBefore
	}
	ttl := r.TTL
	if ttl == 0 {
		ttl = DefaultKeyTTL
	}
	k.ExpiresAt = k.NotBefore.Add(ttl)
	if !k.ExpiresAt.After(r.Now) {
		return Key{}, fault.New(fault.Invalid, "key %s: not_before and ttl: over at %s, before it is issued", k.ID, stamp(k.ExpiresAt))
	}
	if r.MaxUses != nil {
		k.MaxUses = *r.MaxUses
	}
	if r.Pending || r.NeedsApproval {
		k.State, k.NeedsApproval = KeyPending, r.NeedsApproval
	}
	return k, nil
}

func validKeyRequest(r KeyRequest) error {
	if err := validPublicKey("public_key", r.PublicKey); err != nil {
		return err
	}
	if lowOrder(r.PublicKey) {
		return fault.New(fault.Invalid, "public_key: a point of low order, for which anybody could sign: no key generation makes such a one")
	}
	if err := ValidName("name", r.Name); err != nil {
		return err
	}
	if err := validRoles("grants", r.Grants); err != nil {
		return err
	}
	if len(r.Regions) > MaxKeyRegions {
		return fault.New(fault.Invalid, "regions: %d, at most %d", len(r.Regions), MaxKeyRegions)
	}
	for _, region := range r.Regions {
		if err := ValidRegion(region); err != nil {
			return err
		}
	}
	if err := validSelector(r.RouteSelector); err != nil {
		return err
	}
	if len(r.SourceCIDRs) > MaxSourceCIDRs {
		return fault.New(fault.Invalid, "source_cidrs: %d, at most %d", len(r.SourceCIDRs), MaxSourceCIDRs)
	}
	switch {
	case r.Now.IsZero():
		return fault.New(fault.Invalid, "now: missing")
	case r.TTL < 0 || r.TTL > MaxKeyTTL:
		return fault.New(fault.Invalid, "ttl: %v, want more than nothing and at most %v", r.TTL, MaxKeyTTL)
	case r.NotBefore.After(r.Now.Add(MaxKeyTTL)):
		return fault.New(fault.Invalid, "not_before: %s, more than %v ahead", stamp(r.NotBefore), MaxKeyTTL)
	}
	return validText("created_by", r.By, MaxBy)
}

// plainPrefix masks a prefix and turns an IPv4-mapped IPv6 one into IPv4, as addresses are before they are compared.
func plainPrefix(p netip.Prefix) (netip.Prefix, error) {
	if !p.IsValid() {
		return p, fault.New(fault.Invalid, "source_cidrs: not a CIDR")
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return p, fault.New(fault.Invalid, "source_cidrs: %s: write IPv4 and IPv6 ranges apart", p)
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// stamp is a time as errors show it.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
