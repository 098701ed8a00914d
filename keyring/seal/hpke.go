package seal

import (
	"crypto/ecdh"
	"crypto/hpke"
	"fmt"
	"io"
	"log/slog"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// maxWrapped bounds what is encrypted to one node by HPKE: keys, not data.
const maxWrapped = 64 << 10

// SealingKey is a node's HPKE private key: DHKEM(X25519, HKDF-SHA256). Printed or logged, it does not show itself.
type SealingKey struct {
	k func() hpke.PrivateKey // behind a function: see keyring.ProvisioningSecret
}

func kem() hpke.KEM { return hpke.DHKEM(ecdh.X25519()) }

func holdKey(k hpke.PrivateKey) SealingKey { return SealingKey{func() hpke.PrivateKey { return k }} }

// GenerateSealingKey makes a node's sealing key.
func GenerateSealingKey() (SealingKey, error) {
	k, err := kem().GenerateKey()
	if err != nil {
		return SealingKey{}, fmt.Errorf("generate sealing key: %w", err)
	}
	return holdKey(k), nil
}

// ParseSealingKey reads what Bytes wrote: 32 bytes.
func ParseSealingKey(b []byte) (SealingKey, error) {
	k, err := kem().NewPrivateKey(b)
	if err != nil {
		return SealingKey{}, fault.New(fault.Invalid, "sealing key: %d bytes, want an X25519 private key of 32", len(b))
	}
	return holdKey(k), nil
}

// Bytes is the private key, 32 bytes, to be sealed before it is written.
func (k SealingKey) Bytes() ([]byte, error) {
	if k.k == nil {
		return nil, fault.New(fault.Internal, "sealing key: missing")
	}
	return k.k().Bytes()
}

// PublicKey is the half that the node's record holds, 32 bytes; nil for the zero value.
func (k SealingKey) PublicKey() []byte {
	if k.k == nil {
		return nil
	}
	return k.k().PublicKey().Bytes()
}

// Format shows no key, whatever the verb.
func (k SealingKey) Format(f fmt.State, _ rune) { io.WriteString(f, "[sealing key]") }

// LogValue shows no key.
func (k SealingKey) LogValue() slog.Value { return slog.StringValue("[sealing key]") }

// WrapTo encrypts to the holder of a sealing key: HPKE base mode, HKDF-SHA256, AES-256-GCM; encapsulated key (32 bytes), then
// ciphertext. info says what for; UnwrapFrom needs the same.
func WrapTo(pub, info, plaintext []byte) ([]byte, error) {
	if len(plaintext) > maxWrapped {
		return nil, fault.New(fault.Invalid, "wrap: %d bytes, at most %d", len(plaintext), maxWrapped)
	}
	k, err := kem().NewPublicKey(pub)
	if err != nil {
		return nil, fault.New(fault.Invalid, "sealing key: %d bytes, want an X25519 public key of 32", len(pub))
	}
	out, err := hpke.Seal(k, hpke.HKDFSHA256(), hpke.AES256GCM(), info, plaintext)
	if err != nil {
		return nil, fault.New(fault.Invalid, "wrap to a sealing key: %w", err)
	}
	return out, nil
}

// UnwrapFrom decrypts what WrapTo made. Denied: it was made for another key or another purpose, or was damaged.
func UnwrapFrom(priv SealingKey, info, wrapped []byte) ([]byte, error) {
	if priv.k == nil {
		return nil, fault.New(fault.Internal, "sealing key: missing")
	}
	if len(wrapped) > maxWrapped+encapsulatedSize+tagSize {
		return nil, fault.New(fault.Invalid, "unwrap: %d bytes, too many", len(wrapped))
	}
	out, err := hpke.Open(priv.k(), hpke.HKDFSHA256(), hpke.AES256GCM(), info, wrapped)
	if err != nil {
		return nil, fault.New(fault.Denied, "unwrap: for another sealing key or purpose, or damaged")
	}
	return out, nil
}

const encapsulatedSize = 32 // of X25519

// bind joins fields, each after its length, so that no two lists of fields read the same.
func bind(domain string, fields ...string) []byte {
	out := []byte(domain)
	for _, f := range fields {
		out = append(out, byte(len(f)>>24), byte(len(f)>>16), byte(len(f)>>8), byte(len(f)))
		out = append(out, f...)
	}
	return out
}
