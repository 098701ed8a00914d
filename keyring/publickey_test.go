package keyring_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

func TestAPublicHalfIsHandedOver(t *testing.T) {
	t.Parallel()
	text := keyring.PublicKeyText(public("key"))
	if want := fmt.Sprintf("%s %x", keyring.KeyID(public("key")), []byte(public("key"))); text != want {
		t.Errorf("%q, want %q", text, want)
	}
	for _, in := range []string{text, text + "\n", strings.ToUpper(text[17:]), "  " + text[17:]} {
		if got, err := keyring.ParsePublicKey(in); err != nil || !got.Equal(public("key")) {
			t.Errorf("%q: %x, %v", in, got, err)
		}
	}
	secret, err := keyring.GenerateKey([32]byte{1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ in, says string }{
		"nothing":             {"", "want 64 hex digits"},
		"the key itself":      {secret.String(), "not its public half"},
		"another's id":        {keyring.KeyID(public("x")) + text[16:], "mistyped or damaged"},
		"a changed character": {text[:40] + string('0'+'1'-text[40]&1) + "x" + text[42:], "want 64 hex digits"},
		"too short":           {text[17:70], "want 64 hex digits"},
		"three words":         {text + " x", "before them"},
		"a book":              {strings.Repeat("a", 4096), "4096 characters"},
	} {
		_, err := keyring.ParsePublicKey(tc.in)
		wantRefusal(t, err, fault.Invalid, tc.says)
		if strings.Contains(fmt.Sprint(err), secret.String()) {
			t.Errorf("%s: the error shows the key", name)
		}
	}
}

// For a point of low order a signature needs no private key: 64 zero bytes, or nearly, will do for one message of a few.
func TestAKeyForWhichAnybodySignsIsNotIssued(t *testing.T) {
	t.Parallel()
	for _, y := range []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	} {
		for _, sign := range []byte{0, 0x80} {
			pub, err := hex.DecodeString(y)
			if err != nil {
				t.Fatal(err)
			}
			pub[31] |= sign
			_, err = keyring.IssueKey(keyring.KeyRequest{PublicKey: pub, Name: "edge", Grants: []keyring.Role{keyring.RoleProxy}, Now: now})
			wantRefusal(t, err, fault.Invalid, "low order")
		}
	}
	// Why: the signature (R = the identity, S = 0) holds under the identity for whatever message.
	identity, _ := hex.DecodeString("0100000000000000000000000000000000000000000000000000000000000000")
	if !ed25519.Verify(identity, []byte("let me in"), append(bytes.Clone(identity), make([]byte, 32)...)) {
		t.Error("the library refuses such keys by now: the check can go")
	}
}

func FuzzParsePublicKey(f *testing.F) {
	f.Add(keyring.PublicKeyText(public("key")))
	f.Add(hex.EncodeToString(public("key")))
	f.Add("iapk_")
	f.Add("a b")
	f.Fuzz(func(t *testing.T, in string) {
		pub, err := keyring.ParsePublicKey(in)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatal(err)
			}
			return
		}
		if again, err := keyring.ParsePublicKey(keyring.PublicKeyText(pub)); err != nil || !again.Equal(pub) {
			t.Fatalf("%x, then %x, %v", pub, again, err)
		}
	})
}
