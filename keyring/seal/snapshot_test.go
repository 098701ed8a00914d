package seal_test

import (
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring/seal"
)

// A snapshot opens an audience by its own key alone, and in its own name and version alone.
func TestAnAudienceOpensFromASnapshot(t *testing.T) {
	t.Parallel()
	member, opening, stranger := newSealingKey(t), newSealingKey(t), newSealingKey(t)
	a, key, err := seal.NewAudience("control", map[string][]byte{"n-1": member.PublicKey()}, time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	secret, err := seal.NewSecret(key, "ca", []byte("seed"), time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := seal.WrapForSnapshot(key, opening.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	opened, err := seal.OpenFromSnapshot(opening, "control", a.Version, wrapped)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := seal.OpenSecret(opened, secret); err != nil || string(got) != "seed" {
		t.Errorf("%q, %v", got, err)
	}
	for name, err := range map[string]error{
		"another key":     second(seal.OpenFromSnapshot(stranger, "control", a.Version, wrapped)),
		"another name":    second(seal.OpenFromSnapshot(opening, "proxies", a.Version, wrapped)),
		"another version": second(seal.OpenFromSnapshot(opening, "control", a.Version+1, wrapped)),
		"a member's key":  second(seal.OpenFromSnapshot(member, "control", a.Version, wrapped)),
	} {
		if !fault.Is(err, fault.Denied) {
			t.Errorf("%s: %v, want Denied", name, err)
		}
	}
	if _, err := seal.WrapForSnapshot(key, []byte("short")); !fault.Is(err, fault.Invalid) {
		t.Errorf("an opening key that is none: %v", err)
	}
	if _, err := seal.WrapForSnapshot(seal.AudienceKey{}, opening.PublicKey()); !fault.Is(err, fault.Internal) {
		t.Errorf("no key: %v", err)
	}
}

func second[A any](_ A, err error) error { return err }

func newSealingKey(t *testing.T) seal.SealingKey {
	t.Helper()
	k, err := seal.GenerateSealingKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}
