package keyring_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

func holderBody(t testing.TB, reason string) []byte {
	t.Helper()
	body, err := keyring.HolderRevocation{Key: keyring.KeyID(public("key")), Reason: reason}.Body()
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// The message is spelled out here once more, as that of joins is.
func TestRevocationsByAHolderFollowTheProtocol(t *testing.T) {
	t.Parallel()
	body := holderBody(t, "leaked")
	if want := "\x01" + keyring.KeyID(public("key")) + "leaked"; string(body) != want {
		t.Errorf("body %q, want %q", body, want)
	}
	sig, err := keyring.SignRevocation(private("key"), ekm, body)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(append(append(ekm[:len(ekm):len(ekm)], 0, 0, 0, byte(len(body))), body...))
	if !ed25519.Verify(public("key"), append([]byte("iapmesh/revoke/v1"), digest[:]...), sig) {
		t.Error("not the protocol's message")
	}
	if err := keyring.VerifyRevocation(public("key"), ekm, body, sig); err != nil {
		t.Error(err)
	}
	for name, tc := range map[string]struct {
		pub  ed25519.PublicKey
		ekm  [32]byte
		body []byte
		sig  []byte
		kind fault.Kind
	}{
		"another key":        {public("x"), ekm, body, sig, fault.Unauthenticated},
		"another connection": {public("key"), sha256.Sum256(nil), body, sig, fault.Unauthenticated},
		"another reason":     {public("key"), ekm, holderBody(t, "Leaked"), sig, fault.Unauthenticated},
		"no signature":       {public("key"), ekm, body, nil, fault.Unauthenticated},
		"a long signature":   {public("key"), ekm, body, append(sig[:64:64], 0), fault.Unauthenticated},
		"no key":             {nil, ekm, body, sig, fault.Invalid},
		"no connection":      {public("key"), [32]byte{}, body, sig, fault.Invalid},
		"no request":         {public("key"), ekm, nil, sig, fault.Invalid},
		"a huge request":     {public("key"), ekm, make([]byte, keyring.MaxHolderBody+1), sig, fault.Invalid},
	} {
		if err := keyring.VerifyRevocation(tc.pub, tc.ekm, tc.body, tc.sig); !fault.Is(err, tc.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := keyring.SignRevocation(nil, ekm, body); !fault.Is(err, fault.Invalid) {
		t.Errorf("signed with no key: %v", err)
	}
}

// What was signed to join never revokes, and the other way round: not on the same connection, not over the same bytes.
func TestJoinsAndRevocationsAreSignedApart(t *testing.T) {
	t.Parallel()
	body := holderBody(t, "")
	revocation, err := keyring.SignRevocation(private("key"), ekm, body)
	if err != nil {
		t.Fatal(err)
	}
	for _, signer := range []keyring.JoinSigner{keyring.SignerProvisioning, keyring.SignerNode, keyring.SignerSession} {
		if err := keyring.VerifyJoin(signer, public("key"), ekm, body, revocation); !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("a revocation joins as %s: %v", signer, err)
		}
		if err := keyring.VerifyRevocation(public("key"), ekm, body, signedJoin(t, signer, body)); !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("a join by %s revokes: %v", signer, err)
		}
	}
}

func TestARevocationsBodyIsBounded(t *testing.T) {
	t.Parallel()
	id := keyring.KeyID(public("key"))
	for name, r := range map[string]keyring.HolderRevocation{
		"a long reason":      {Key: id, Reason: strings.Repeat("x", keyring.MaxReason+1)},
		"control characters": {Key: id, Reason: "a\nb"},
		"no UTF-8":           {Key: id, Reason: "\xff"},
		"no id":              {Reason: "leaked"},
	} {
		if _, err := r.Body(); !fault.Is(err, fault.Invalid) {
			t.Errorf("written with %s: %v", name, err)
		}
	}
	for name, body := range map[string]string{
		"nothing":           "",
		"a version to come": "\x02" + id,
		"half an id":        "\x01" + id[:15],
		"no id":             "\x01" + strings.Repeat("A", 16),
		"a long reason":     "\x01" + id + strings.Repeat("x", keyring.MaxReason+1),
		"no UTF-8":          "\x01" + id + "\xff",
	} {
		if _, err := keyring.ParseHolderRevocation([]byte(body)); !fault.Is(err, fault.Invalid) {
			t.Errorf("read with %s: %v", name, err)
		}
	}
}

func FuzzParseHolderRevocation(f *testing.F) {
	f.Add(holderBody(f, "leaked"))
	f.Add(holderBody(f, ""))
	f.Add([]byte("\x01aaaaaaaaaaaaaaaa\xff"))
	f.Add([]byte{1})
	f.Add(bytes.Repeat([]byte{1}, keyring.MaxHolderBody+1))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := keyring.ParseHolderRevocation(body)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatal(err)
			}
			return
		}
		if again, err := r.Body(); err != nil || !bytes.Equal(again, body) {
			t.Fatalf("two spellings of one request: %q, %q, %v", body, again, err)
		}
	})
}
