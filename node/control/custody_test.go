package control_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// authorities counts the authorities of each state.
func (w *world) authorities() (states string) {
	for _, a := range w.view().Keyring.AuthoritiesByAge() {
		states += string(a.State) + " "
	}
	return states
}

// certificate renews a node's certificate, and returns it with the chain that it presents.
func (w *world) certificate(j *joiner) []*x509.Certificate {
	w.t.Helper()
	csr, err := keyring.NewCSR(j.node)
	must(w.t, err)
	resp, err := w.Renew(w.t.Context(), j.id(), csr)
	must(w.t, err)
	var chain []*x509.Certificate
	for _, der := range append([][]byte{resp.Certificate}, resp.Bundle...) {
		c, err := x509.ParseCertificate(der)
		must(w.t, err)
		chain = append(chain, c)
	}
	return chain
}

func TestTheCARotatesOnceEveryLiveNodeKnowsTheNext(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.clock.advance(time.Minute)
	web := w.joined(w.boot, "web-1", "eu-west")
	w.everybodyReports()
	old := w.certificate(web)
	serial, at, err := w.RotateAuthority(t.Context(), "admin/ana")
	must(t, err)
	next := w.view().Keyring.Authorities[serial]
	if w.authorities() != "active prepared " || next.Revision != at {
		t.Fatalf("%sat %s, the record %s", w.authorities(), at, next.Revision)
	}
	_, _, err = w.RotateAuthority(t.Context(), "admin/ana")
	wantKind(t, "a second one meanwhile", err, fault.Conflict, "is prepared since")
	if chain := w.certificate(web); len(chain) != 4 || !w.view().Keyring.ActiveAuthority().Signed(chain[0]) {
		t.Errorf("while it is prepared: a chain of %d", len(chain))
	}
	w.everybodyReports(web) // web-1 is live, and has not seen it
	w.settled()
	if got := w.authorities(); got != "active prepared " {
		t.Fatalf("%s, though a live node has not acknowledged", got)
	}
	w.eventually("the next to issue", func() bool { w.everybodyReports(); return w.authorities() == "retired active " })

	chain := w.certificate(web)
	if !next.Signed(chain[0]) || len(chain) != 4 {
		t.Errorf("a chain of %d after the rotation", len(chain))
	}
	newPin := keyring.Pin(next.Certificate)
	for name, pin := range map[string][32]byte{"old": w.pin, "new": newPin} {
		if _, err := keyring.VerifyPinnedNode(chain, pin, w.clock.now()); err != nil {
			t.Errorf("a new certificate by the %s pin: %v", name, err)
		}
	}
	// What a node presents whose certificate is still the old one's.
	stale := []*x509.Certificate{old[0]}
	for _, der := range w.view().Keyring.Chain(old[0]) {
		c, err := x509.ParseCertificate(der)
		must(t, err)
		stale = append(stale, c)
	}
	if _, err := keyring.VerifyPinnedNode(stale, newPin, w.clock.now()); err != nil {
		t.Errorf("an old certificate by the new pin: %v", err)
	}
	for _, action := range []string{"ca.prepare", "ca.activate"} {
		w.eventually("the record of "+action, func() bool { return len(w.trail.with(audit.KindRotation, "action", action)) == 1 })
	}
	// Keys of before and after join.
	for name, pin := range map[string][32]byte{"before": w.pin, "after": newPin} {
		w.pin = pin
		w.joined(w.issue(nil), "px-"+name, "eu-west")
	}
}

func TestAnAuthorityIsForgottenOnceNothingHangsOnIt(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.clock.advance(time.Minute)
	first := w.view().Keyring.ActiveAuthority().Serial
	_, _, err := w.RotateAuthority(t.Context(), "admin/ana")
	must(t, err)
	w.eventually("the next to issue", func() bool { w.everybodyReports(); return w.authorities() == "retired active " })
	if holds := keyring.Holds(*w.view().Keyring.Authorities[first], w.view().Keyring.Contents, w.clock.now()); len(holds) != 3 {
		t.Errorf("kept by %v, want the founder, the administrator and the bootstrap key", holds)
	}
	w.clock.advance(48 * time.Hour) // node certificate and key are over, the administrator's is not
	w.certificate(w.founder)
	w.settled()
	if got := w.authorities(); got != "retired active " {
		t.Fatal(got)
	}
	w.clock.advance(89 * 24 * time.Hour)
	w.eventually("it to be forgotten", func() bool { w.everybodyReports(); return w.authorities() == "active " })
	if v := w.view().Keyring; v.Secrets[keyring.AudienceControl+"/ca-"+first] != nil || len(v.ActiveAuthority().CrossCertificates) != 0 {
		t.Error("its private key or its signature is still there")
	}
	w.eventually("the record", func() bool { return len(w.trail.with(audit.KindRotation, "action", "ca.prune")) == 1 })
}

func TestAFourthRotationIsRefusedWithWhatKeepsTheOthers(t *testing.T) {
	t.Parallel()
	w := start(t)
	for n := range keyring.MaxAuthorities - 1 {
		csr, err := keyring.NewCSR(newKey(t))
		must(t, err)
		_, _, err = w.IssueAdmin(t.Context(), "admin/ana", &iapmeshv1.IssueAdminRequest{Name: fmt.Sprintf("admin-%d", n), Csr: csr}) // hangs on the one of now
		must(t, err)
		w.clock.advance(24 * time.Hour)
		_, _, err = w.RotateAuthority(t.Context(), "admin/ana")
		must(t, err)
		w.eventually("the next to issue", func() bool {
			w.everybodyReports()
			return w.view().Keyring.ActiveAuthority() != nil && len(w.view().Keyring.Authorities) == n+2 && !bytes.Contains([]byte(w.authorities()), []byte("prepared"))
		})
	}
	_, _, err := w.RotateAuthority(t.Context(), "admin/ana")
	wantKind(t, "a fourth", err, fault.Exhausted, "admin admin-2 until")
}

func TestTheCARotatesBySchedule(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.settings("ca_rotation: 24h")
	w.clock.advance(23 * time.Hour)
	w.settled()
	if got := w.authorities(); got != "active " {
		t.Fatalf("%s before its time", got)
	}
	w.clock.advance(time.Hour)
	w.eventually("the next to issue", func() bool { w.everybodyReports(); return w.authorities() == "retired active " })
	w.settings("ca_rotation: 0s")
	w.clock.advance(48 * time.Hour)
	w.settled()
	if got := w.authorities(); got != "retired active " {
		t.Fatalf("%s without a schedule", got)
	}
}

// settings applies Settings with one more field.
func (w *world) settings(field string) {
	w.t.Helper()
	yaml := "kind: Settings\nname: mesh\nissuer: https://auth.test\nsign_in_host: auth.test\n" + field + "\n"
	must(w.t, second(w.Apply(w.t.Context(), "admin/ana", apply(w.t, yaml))))
}

func TestAnAudiencesKeyIsReplacedAndItsSecretsStay(t *testing.T) {
	t.Parallel()
	w := start(t)
	web := w.joined(w.boot, "web-1", "eu-west")
	must(t, second(w.SetSecret(t.Context(), "admin/ana", "idp", []byte("s3cret"))))
	for name, rotate := range map[string]func(context.Context) error{
		"by an operator": func(ctx context.Context) error {
			return second(w.RotateAudience(ctx, "admin/ana", keyring.AudienceProxies))
		},
		"by schedule": func(context.Context) error { w.clock.advance(12 * time.Hour); return nil },
	} {
		w.settings("audience_key_rotation: 12h")
		before, handoff := w.view().Keyring.Audiences[keyring.AudienceProxies], w.secret(web, keyring.SecretHandoff)
		member := seal.Member{Node: web.id(), Key: web.sealing}
		oldKey, err := member.Audience(before)
		must(t, err)
		must(t, rotate(t.Context()))
		w.eventually("another version "+name, func() bool { return w.view().Keyring.Audiences[keyring.AudienceProxies].Version == before.Version+1 })
		for _, s := range w.view().Keyring.Secrets {
			if s.Audience != keyring.AudienceProxies {
				continue
			}
			if _, err := seal.OpenSecret(oldKey, *s); err == nil || s.Version != before.Version+1 {
				t.Errorf("%s: secret %s opens by the old key, or is of version %d", name, s.Name, s.Version)
			}
		}
		if got := w.secret(web, keyring.UserSecret("idp")); string(got) != "s3cret" {
			t.Errorf("%s: the client secret is %q", name, got)
		}
		if !bytes.Equal(handoff, w.secret(web, keyring.SecretHandoff)) {
			t.Errorf("%s: the hand-off key is another, though nobody left", name)
		}
	}
	_, err := w.RotateAudience(t.Context(), "admin/ana", "nobody")
	wantKind(t, "an audience that is not there", err, fault.NotFound, "nobody")
	w.eventually("a record of both", func() bool { // the leader writes its own after the commit
		records := 0
		for _, r := range w.trail.with(audit.KindRotation, "action", "audience.rotate") {
			if r.Detail["audience"] == keyring.AudienceProxies {
				records++
			}
		}
		return records == 2
	})
}

// secret opens a secret of the proxies as a node.
func (w *world) secret(j *joiner, name string) []byte {
	w.t.Helper()
	plain, err := seal.Member{Node: j.id(), Key: j.sealing}.Open(w.view().Keyring, keyring.AudienceProxies, name)
	must(w.t, err)
	return plain
}

func TestWhoeverIsQuarantinedOpensNothingThatIsWrittenFromThenOn(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.clock.advance(time.Minute)
	key := w.issue(nil)
	gone, stays := w.joined(key, "web-1", "eu-west"), w.joined(w.boot, "web-2", "eu-west")
	assert := keyring.AssertAudience("eu-west", "")
	for _, name := range []string{keyring.AudienceProxies, keyring.AudienceGossip, assert} {
		if !w.opens(gone, name) {
			t.Fatalf("it is no member of %s", name)
		}
	}
	handoff, ring := w.secret(gone, keyring.SecretHandoff), w.ring(gone)
	_, _, _, err := w.RevokeKey(t.Context(), "admin/ana", &iapmeshv1.RevokeKeyRequest{Key: key.ID(), Cascade: iapmeshv1.Cascade_CASCADE_QUARANTINE, Reason: "leaked"})
	must(t, err)
	if state := w.node(gone).State; state != keyring.NodeQuarantined {
		t.Fatalf("it is %s", state)
	}
	for _, name := range []string{keyring.AudienceProxies, keyring.AudienceGossip, assert} {
		w.eventually(name+" without it", func() bool { return !w.opens(gone, name) && w.opens(stays, name) })
	}
	if bytes.Equal(handoff, w.secret(stays, keyring.SecretHandoff)) {
		t.Error("the hand-off key that it knows is still in use")
	}
	w.eventually("a gossip key that it does not know", func() bool {
		w.everybodyReports()
		now := w.ring(stays)
		return len(now) == 1 && !bytes.Equal(now[0], ring[0])
	})
}
