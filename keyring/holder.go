package keyring

import (
	"crypto/ed25519"
	"slices"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// MaxHolderBody bounds the signed bytes of a revocation by whoever holds the key.
const MaxHolderBody = 1 + secretIDLen + MaxReason

// holderMessagePrefix keeps these signatures apart from those of joins: neither serves for the other.
const holderMessagePrefix = "iapmesh/revoke/v1"

// HolderRevocation asks to revoke the key that signs it.
type HolderRevocation struct {
	Key    string // id
	Reason string
}

// Body is what is signed and sent: version(1) = 1 ‖ id(16) ‖ reason.
func (r HolderRevocation) Body() ([]byte, error) {
	if len(r.Key) != secretIDLen {
		return nil, fault.New(fault.Invalid, "revoke: a key id of %d characters, want %d", len(r.Key), secretIDLen)
	}
	if err := validText("reason", r.Reason, MaxReason); err != nil {
		return nil, err
	}
	return slices.Concat([]byte{1}, []byte(r.Key), []byte(r.Reason)), nil
}

// ParseHolderRevocation reads what Body wrote.
func ParseHolderRevocation(body []byte) (HolderRevocation, error) {
	if len(body) < 1+secretIDLen || len(body) > MaxHolderBody || body[0] != 1 {
		return HolderRevocation{}, fault.New(fault.Invalid, "revoke: the body is no request to revoke a key")
	}
	r := HolderRevocation{Key: string(body[1 : 1+secretIDLen]), Reason: string(body[1+secretIDLen:])}
	if !validKeyID(r.Key) {
		return HolderRevocation{}, fault.New(fault.Invalid, "revoke: the body names no key")
	}
	return r, validText("reason", r.Reason, MaxReason)
}

// holderMessage is what is signed: "iapmesh/revoke/v1" ‖ JoinDigest.
func holderMessage(ekm [32]byte, body []byte) ([]byte, error) {
	if len(body) == 0 || len(body) > MaxHolderBody {
		return nil, fault.New(fault.Invalid, "revoke: a request of %d bytes, want 1 to %d", len(body), MaxHolderBody)
	}
	if ekm == [32]byte{} {
		return nil, fault.New(fault.Invalid, "revoke: no keying material of the connection")
	}
	digest := JoinDigest(ekm, body)
	return append([]byte(holderMessagePrefix), digest[:]...), nil
}

// SignRevocation signs a request's body with the key that it revokes, bound to the connection with that exported keying material.
func SignRevocation(priv ed25519.PrivateKey, ekm [32]byte, body []byte) ([]byte, error) {
	if len(priv) != ed25519.PrivateKeySize {
		return nil, fault.New(fault.Invalid, "revoke: a key of %d bytes, want an Ed25519 private key", len(priv))
	}
	message, err := holderMessage(ekm, body)
	if err != nil {
		return nil, err
	}
	return ed25519.Sign(priv, message), nil
}

// VerifyRevocation checks what SignRevocation made. A wrong signature is Unauthenticated.
func VerifyRevocation(pub ed25519.PublicKey, ekm [32]byte, body, signature []byte) error {
	if err := validPublicKey("provisioning key", pub); err != nil {
		return err
	}
	message, err := holderMessage(ekm, body)
	if err != nil {
		return err
	}
	if len(signature) != ed25519.SignatureSize || !ed25519.Verify(pub, message, signature) {
		return fault.New(fault.Unauthenticated, "revoke: the signature does not hold on this connection")
	}
	return nil
}
