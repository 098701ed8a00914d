package keyring

import (
	"crypto/ed25519"
	"slices"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// AdminLife is the life of an administrator's certificate and record.
const AdminLife = 90 * 24 * time.Hour

// AdminID names an administrator's credential: "u-" and 16 characters of a-z and 2-7.
func AdminID(pub ed25519.PublicKey) string { return derivedID("u-", "iapmesh/admin-id/v1", pub) }

// NewAdmin makes the record of a credential that is valid for 90 days.
func NewAdmin(name string, pub ed25519.PublicKey, now time.Time) (Admin, error) {
	if err := ValidName("administrator's name", name); err != nil {
		return Admin{}, err
	}
	if err := validPublicKey("administrator's key", pub); err != nil {
		return Admin{}, err
	}
	return Admin{ID: AdminID(pub), Name: name, PublicKey: slices.Clone(pub), CreatedAt: now, ExpiresAt: now.Add(AdminLife)}, nil
}

// Check says why the credential does not count now: Denied.
func (a *Admin) Check(now time.Time) error {
	switch {
	case !a.RevokedAt.IsZero():
		return fault.New(fault.Denied, "administrator %s: credential %s revoked at %s", a.Name, a.ID, stamp(a.RevokedAt))
	case a.ExpiresAt.IsZero() || over(a.ExpiresAt, now):
		return fault.New(fault.Denied, "administrator %s: credential %s expired at %s", a.Name, a.ID, stamp(a.ExpiresAt))
	}
	return nil
}

// RenewAdmin prolongs a credential that still counts to 90 days from now.
func RenewAdmin(a Admin, now time.Time) (Admin, error) {
	if err := a.Check(now); err != nil {
		return a, err
	}
	a.ExpiresAt = now.Add(AdminLife)
	return a, nil
}

// RevokeAdmin revokes a credential, for good.
func RevokeAdmin(a Admin, reason string, now time.Time) (Admin, error) {
	if !a.RevokedAt.IsZero() {
		return a, nil
	}
	if err := validText("reason", reason, MaxReason); err != nil {
		return a, err
	}
	a.RevokedAt, a.Reason = now, reason
	return a, nil
}
