package keyring_test

import (
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

func TestAnAdministratorsCredential(t *testing.T) {
	t.Parallel()
	a, err := keyring.NewAdmin("ana", public("ana"), now)
	if err != nil {
		t.Fatal(err)
	}
	end := now.Add(keyring.AdminLife)
	if err := a.Check(end.Add(59 * time.Second)); err != nil {
		t.Errorf("in its life: %v", err)
	}
	late := end.Add(time.Minute)
	wantRefusal(t, a.Check(late), fault.Denied, "expired")
	if _, err := keyring.RenewAdmin(a, late); !fault.Is(err, fault.Denied) {
		t.Errorf("renewed after its end: %v", err)
	}
	renewed, err := keyring.RenewAdmin(a, end)
	if err != nil || renewed.Check(late) != nil {
		t.Errorf("renewed: %v, %v", err, renewed.Check(late))
	}
	revoked, err := keyring.RevokeAdmin(renewed, "left", now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, revoked.Check(now), fault.Denied, "revoked")
	if _, err := keyring.RenewAdmin(revoked, now); !fault.Is(err, fault.Denied) {
		t.Errorf("a revoked one was renewed: %v", err)
	}
	if again, err := keyring.RevokeAdmin(revoked, "again", late); err != nil || again.Reason != "left" || again.RevokedAt != revoked.RevokedAt {
		t.Errorf("revoked again: %+v, %v", again, err)
	}
	if unset := (&keyring.Admin{}); !fault.Is(unset.Check(now), fault.Denied) {
		t.Error("a record without expiry counts")
	}
}

func TestNewAdminRefuses(t *testing.T) {
	t.Parallel()
	if _, err := keyring.NewAdmin("ana@example.com", public("ana"), now); !fault.Is(err, fault.Invalid) {
		t.Errorf("a name that no SPIFFE ID takes: %v", err)
	}
	if _, err := keyring.NewAdmin("ana", nil, now); !fault.Is(err, fault.Invalid) {
		t.Errorf("no key: %v", err)
	}
}
