package keyring

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/x509"
	"maps"
	"slices"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// MaxAuthorities bounds the roots that a mesh knows at a time: the one that issues, the one that will, and those on which something
// still hangs. Each signs every other, so that the chain that a node presents grows with them.
const MaxAuthorities = 4

// AuthorityKeys are private keys of authorities, by serial.
type AuthorityKeys map[string]ed25519.PrivateKey

// CanPrepare says why the mesh cannot take another authority now: Conflict while one is prepared, Exhausted while too many are known.
func CanPrepare(known map[string]*Authority) error {
	active := false
	for _, a := range sortedAuthorities(known) {
		switch a.State {
		case AuthorityPrepared:
			return fault.New(fault.Conflict, "authority %s is prepared since %s: it becomes active once every live node knows it", a.Serial, stamp(a.CreatedAt))
		case AuthorityActive:
			active = true
		}
	}
	switch {
	case !active:
		return fault.New(fault.Internal, "the mesh has no active authority")
	case len(known) >= MaxAuthorities:
		return fault.New(fault.Exhausted, "the mesh knows %d authorities, at most %d: something still hangs on each that is retired", len(known), MaxAuthorities)
	}
	return nil
}

// PrepareAuthority makes next, from NewAuthority, known beside the others, and returns every record that changes. Each known authority
// signs next's key, and next signs theirs, so that whichever root somebody trusts, a certificate that any of them issued verifies.
// keys holds the private keys of all, next's included.
func PrepareAuthority(known map[string]*Authority, keys AuthorityKeys, next Authority, now time.Time) ([]Authority, error) {
	if err := CanPrepare(known); err != nil {
		return nil, err
	}
	if known[next.Serial] != nil {
		return nil, fault.New(fault.Conflict, "authority %s: it is known already", next.Serial)
	}
	next.State, next.CreatedAt, next.ActiveAt, next.RetiredAt, next.CrossCertificates = AuthorityPrepared, now, time.Time{}, time.Time{}, nil
	var changed []Authority
	for _, old := range sortedAuthorities(known) {
		forward, err := CrossSign(*old, keys[old.Serial], next, now)
		if err != nil {
			return nil, err
		}
		back, err := CrossSign(next, keys[next.Serial], *old, now)
		if err != nil {
			return nil, err
		}
		next.CrossCertificates = append(next.CrossCertificates, forward)
		signed := *old
		signed.CrossCertificates = append(slices.Clone(old.CrossCertificates), back)
		changed = append(changed, signed)
	}
	return append(changed, next), nil
}

// ReadyToActivate holds a prepared authority against what the nodes have reported, as ReadyToPromote does with signing keys: once every
// live node has it in its bundle, it may issue.
func ReadyToActivate(a Authority, f PromoteFacts) Readiness {
	r, acknowledged := acknowledgedBy(a.Revision, f)
	r.Ready = a.State == AuthorityPrepared && acknowledged && len(r.Waiting) == 0
	return r
}

// ActivateAuthority lets a prepared authority issue, and returns every record that changes: the one that issued until now is retired,
// and still verifies.
func ActivateAuthority(known map[string]*Authority, serial string, now time.Time) ([]Authority, error) {
	next := known[serial]
	switch {
	case next == nil:
		return nil, fault.New(fault.NotFound, "no authority %.64q", serial)
	case next.State != AuthorityPrepared:
		return nil, fault.New(fault.Conflict, "authority %s: activate: it is %s", serial, next.State)
	}
	active := *next
	active.State, active.ActiveAt = AuthorityActive, now
	changed := []Authority{active}
	for _, a := range sortedAuthorities(known) {
		if a.State == AuthorityActive {
			changed = append(changed, retireAuthority(*a, now))
		}
	}
	return changed, nil
}

func retireAuthority(a Authority, now time.Time) Authority {
	a.State, a.RetiredAt = AuthorityRetired, now
	return a
}

// PruneAuthority forgets a retired authority, and returns the other records that change: they lose what it signed. That nothing hangs
// on it any more is Holds' to say.
func PruneAuthority(known map[string]*Authority, serial string) ([]Authority, error) {
	gone := known[serial]
	switch {
	case gone == nil:
		return nil, fault.New(fault.NotFound, "no authority %.64q", serial)
	case gone.State != AuthorityRetired:
		return nil, fault.New(fault.Conflict, "authority %s: prune: it is %s", serial, gone.State)
	}
	var changed []Authority
	for _, a := range sortedAuthorities(known) {
		if a.Serial == serial {
			continue
		}
		left := *a
		left.CrossCertificates = slices.DeleteFunc(slices.Clone(a.CrossCertificates), gone.Signed)
		if len(left.CrossCertificates) != len(a.CrossCertificates) {
			changed = append(changed, left)
		}
	}
	return changed, nil
}

// Signed reports whether the authority's key signed a certificate. It goes by the key ids that the mesh's certificates bear: it sorts
// certificates, and verifies none.
func (a *Authority) Signed(c *x509.Certificate) bool {
	return len(c.AuthorityKeyId) > 0 && bytes.Equal(c.AuthorityKeyId, a.Certificate.SubjectKeyId)
}

// Hold is one thing that still needs a retired authority.
type Hold struct {
	Kind  string // node, admin, key
	ID    string
	Name  string
	Until time.Time // it needs it no longer than that
}

// Holds are what still hangs on an authority that has retired, sorted: certificates of nodes and administrators that it issued, since
// whoever got one may know no other root, and provisioning keys that pin it. The mesh does not see what a key pins: the root that
// issued the certificate of the administrator who made it. Where that certificate has been renewed since, any that could have been in
// use then counts.
func Holds(a Authority, c Contents, now time.Time) []Hold {
	if a.State != AuthorityRetired || over(a.Certificate.NotAfter, now) {
		return nil
	}
	var holds []Hold
	for _, n := range c.Nodes {
		if n.Trusted() && a.issuedAt(n.CertExpiresAt.Add(-NodeCertLife)) && !over(n.CertExpiresAt, now) {
			holds = append(holds, Hold{"node", n.ID, n.Name, n.CertExpiresAt})
		}
	}
	renewed := map[string]time.Time{} // administrator, as keys name him → when his certificate was issued
	for _, d := range c.Admins {
		issued := d.ExpiresAt.Add(-AdminLife)
		if by := "admin/" + d.Name; issued.After(renewed[by]) {
			renewed[by] = issued
		}
		if d.Check(now) == nil && a.issuedAt(issued) {
			holds = append(holds, Hold{"admin", d.ID, d.Name, d.ExpiresAt})
		}
	}
	for _, k := range c.Keys {
		if k.mayJoin(now) && a.mayBePinned(k, renewed[k.CreatedBy]) {
			holds = append(holds, Hold{"key", k.ID, k.Name, k.ExpiresAt})
		}
	}
	slices.SortFunc(holds, func(x, y Hold) int {
		return cmp.Or(cmp.Compare(x.Kind, y.Kind), cmp.Compare(x.Name, y.Name), cmp.Compare(x.ID, y.ID))
	})
	return holds
}

// issuedAt reports whether the authority was the one that issued at that time: give or take the skew, since the time is written just
// before the certificate is made.
func (a *Authority) issuedAt(t time.Time) bool {
	return !t.Before(a.ActiveSince().Add(-Skew)) && !t.After(a.RetiredAt.Add(Skew))
}

// ActiveSince is when it began to issue; of one that is prepared, when it was made.
func (a *Authority) ActiveSince() time.Time {
	if a.ActiveAt.IsZero() {
		return a.CreatedAt // the first of a mesh that an older version founded
	}
	return a.ActiveAt
}

// mayBePinned reports whether a key can pin the authority. renewed is when its maker's certificate was issued last; zero if unknown.
func (a *Authority) mayBePinned(k *Key, renewed time.Time) bool {
	if !renewed.IsZero() && !k.CreatedAt.Before(renewed) {
		return a.issuedAt(renewed)
	}
	return !k.CreatedAt.Before(a.ActiveSince().Add(-Skew)) && !k.CreatedAt.After(a.RetiredAt.Add(AdminLife+Skew))
}

// mayJoin reports whether somebody may still come with the key, now or once it is resumed.
func (k *Key) mayJoin(now time.Time) bool {
	switch k.State {
	case KeyExpired, KeyRetired, KeyRevoked:
		return false
	}
	return !over(k.ExpiresAt, now)
}

// sortedAuthorities are the authorities in the order in which they were made.
func sortedAuthorities(known map[string]*Authority) []*Authority {
	return slices.SortedFunc(maps.Values(known), func(a, b *Authority) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.Serial, b.Serial))
	})
}
