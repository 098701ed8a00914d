package keyring_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"testing"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

var ekm = sha256.Sum256([]byte("connection"))

func signedJoin(t *testing.T, signer keyring.JoinSigner, body []byte) []byte {
	t.Helper()
	sig, err := keyring.SignJoin(signer, private("key"), ekm, body)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// The message is spelled out here once more, so that the package cannot drift from PROTOCOLS.md.
func TestJoinSignaturesFollowTheProtocol(t *testing.T) {
	t.Parallel()
	body := []byte("request")
	digest := sha256.Sum256(append(append(ekm[:len(ekm):len(ekm)], 0, 0, 0, 7), "request"...))
	if got := keyring.JoinDigest(ekm, body); got != digest {
		t.Errorf("digest %x, want %x", got, digest)
	}
	for _, signer := range []keyring.JoinSigner{keyring.SignerProvisioning, keyring.SignerNode, keyring.SignerSession} {
		message := append([]byte("iapmesh/join/v1/"+string(signer)), digest[:]...)
		sig := signedJoin(t, signer, body)
		if !ed25519.Verify(public("key"), message, sig) {
			t.Errorf("%s: not the protocol's message", signer)
		}
		if err := keyring.VerifyJoin(signer, public("key"), ekm, body, sig); err != nil {
			t.Errorf("%s: %v", signer, err)
		}
	}
}

func TestVerifyJoinRefuses(t *testing.T) {
	t.Parallel()
	body := []byte("request")
	sig := signedJoin(t, keyring.SignerNode, body)
	for name, tc := range map[string]struct {
		signer keyring.JoinSigner
		pub    ed25519.PublicKey
		ekm    [32]byte
		body   []byte
		sig    []byte
		kind   fault.Kind
	}{
		"another signer":     {keyring.SignerSession, public("key"), ekm, body, sig, fault.Unauthenticated},
		"another key":        {keyring.SignerNode, public("x"), ekm, body, sig, fault.Unauthenticated},
		"another connection": {keyring.SignerNode, public("key"), sha256.Sum256(nil), body, sig, fault.Unauthenticated},
		"another request":    {keyring.SignerNode, public("key"), ekm, []byte("requesT"), sig, fault.Unauthenticated},
		"no signature":       {keyring.SignerNode, public("key"), ekm, body, nil, fault.Unauthenticated},
		"a long signature":   {keyring.SignerNode, public("key"), ekm, body, append(sig[:64:64], 0), fault.Unauthenticated},
		"no key":             {keyring.SignerNode, nil, ekm, body, sig, fault.Invalid},
		"no connection":      {keyring.SignerNode, public("key"), [32]byte{}, body, sig, fault.Invalid},
		"no request":         {keyring.SignerNode, public("key"), ekm, nil, sig, fault.Invalid},
		"a huge request":     {keyring.SignerNode, public("key"), ekm, make([]byte, keyring.MaxJoinBody+1), sig, fault.Invalid},
		"an unknown signer":  {"admin", public("key"), ekm, body, sig, fault.Invalid},
	} {
		if err := keyring.VerifyJoin(tc.signer, tc.pub, tc.ekm, tc.body, tc.sig); !fault.Is(err, tc.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := keyring.SignJoin(keyring.SignerNode, nil, ekm, body); !fault.Is(err, fault.Invalid) {
		t.Errorf("signed with no key: %v", err)
	}
	if !bytes.Equal(sig, signedJoin(t, keyring.SignerNode, body)) {
		t.Error("a repeated join signs differently")
	}
}
