package control_test

import (
	"bytes"
	"crypto/x509"
	"testing"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// adminRequest asks for an administrator of that name, with a key of its own.
func adminRequest(t testing.TB, name string) *iapmeshv1.IssueAdminRequest {
	t.Helper()
	csr, err := keyring.NewCSR(newKey(t))
	must(t, err)
	return &iapmeshv1.IssueAdminRequest{Name: name, Csr: csr}
}

func TestAdministratorsComeAndGo(t *testing.T) {
	t.Parallel()
	w := start(t)
	request := adminRequest(t, "bob")
	bob, at, err := w.IssueAdmin(t.Context(), "admin/ana", request)
	must(t, err)
	leaf, err := x509.ParseCertificate(bob.Certificate)
	must(t, err)
	record := w.view().Keyring.Admins[bob.Admin.Id]
	if record == nil || !record.PublicKey.Equal(leaf.PublicKey) || record.Check(w.clock.now()) != nil || after(at, w.view().Revision) {
		t.Fatalf("the record of %v: %+v", bob.Admin, record)
	}
	if got := leaf.URIs[0].String(); got != "spiffe://mesh.test/admin/bob" || len(bob.Bundle) != 1 {
		t.Errorf("certificate of %s with %d roots", got, len(bob.Bundle))
	}
	again, _, err := w.IssueAdmin(t.Context(), "admin/ana", request)
	must(t, err)
	if again.Admin.Id != bob.Admin.Id || !w.view().Keyring.Admins[bob.Admin.Id].ExpiresAt.Equal(record.ExpiresAt) || len(w.view().Keyring.Admins) != 2 {
		t.Error("the same request made another administrator")
	}
	same := &iapmeshv1.IssueAdminRequest{Name: "bert", Csr: request.Csr}
	for what, tc := range map[string]struct {
		request *iapmeshv1.IssueAdminRequest
		kind    fault.Kind
		says    string
	}{
		"a name that is taken": {adminRequest(t, "ana"), fault.Conflict, `"ana"`},
		"a key that is taken":  {same, fault.Conflict, "bob"},
		"no name":              {adminRequest(t, ""), fault.Invalid, "name"},
		"no key":               {&iapmeshv1.IssueAdminRequest{Name: "cy"}, fault.Invalid, ""},
	} {
		before := len(w.view().Keyring.Admins)
		_, _, err := w.IssueAdmin(t.Context(), "admin/ana", tc.request)
		wantKind(t, what, err, tc.kind, tc.says)
		if len(w.view().Keyring.Admins) != before {
			t.Errorf("%s: was written", what)
		}
	}

	_, _, err = w.RevokeAdmin(t.Context(), "admin/ana", "nobody", "")
	wantKind(t, "revoke nobody", err, fault.NotFound, "nobody")
	_, _, err = w.RevokeAdmin(t.Context(), "admin/ana", "ana", "")
	wantKind(t, "revoke oneself", err, fault.Denied, "himself")
	revoked, at, err := w.RevokeAdmin(t.Context(), "admin/ana", "bob", "left")
	must(t, err)
	if revoked.Reason != "left" || revoked.RevokedAt.IsZero() || after(at, w.view().Revision) {
		t.Errorf("revoked: %+v", revoked)
	}
	if err := w.view().Keyring.Admins[bob.Admin.Id].Check(w.clock.now()); !fault.Is(err, fault.Denied) {
		t.Errorf("a revoked administrator counts: %v", err)
	}
	_, _, err = w.RevokeAdmin(t.Context(), "admin/ana", bob.Admin.Id, "again")
	must(t, err)
	if w.view().Keyring.Admins[bob.Admin.Id].Reason != "left" {
		t.Error("the second revocation changed the first")
	}
	_, _, err = w.IssueAdmin(t.Context(), "admin/ana", request)
	wantKind(t, "a revoked key", err, fault.Denied, "revoked")

	// The name is free again, the key is not.
	second, _, err := w.IssueAdmin(t.Context(), "admin/ana", adminRequest(t, "bob"))
	must(t, err)
	if second.Admin.Id == bob.Admin.Id || bytes.Equal(second.Certificate, bob.Certificate) {
		t.Error("the new bob is the old one")
	}
	if len(w.trail.with(audit.KindAdmin, "action", "admin.issue")) != 2 || len(w.trail.with(audit.KindAdmin, "action", "admin.revoke")) != 1 {
		t.Error("not every act is recorded, once")
	}
}

func TestTheLastAdministratorStays(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.clock.advance(keyring.AdminLife / 2)
	bob, _, err := w.IssueAdmin(t.Context(), "admin/ana", adminRequest(t, "bob"))
	must(t, err)
	w.clock.advance(keyring.AdminLife/2 + 2*keyring.Skew) // ana's is over, and her record does not count as another
	_, _, err = w.RevokeAdmin(t.Context(), "admin/ana", "bob", "")
	wantKind(t, "revoke the last", err, fault.Denied, "last that counts")
	if !w.view().Keyring.Admins[bob.Admin.Id].RevokedAt.IsZero() {
		t.Error("the last administrator is revoked")
	}
	_, _, err = w.RevokeAdmin(t.Context(), "admin/bob", "ana", "gone")
	must(t, err)
}
