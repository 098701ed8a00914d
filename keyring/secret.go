package keyring

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"strings"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// The lengths of a written provisioning key, iapk_<id>_<body><sum>.
const (
	secretPrefix  = "iapk_"
	secretIDLen   = 16
	secretBodyLen = 90
	secretSumLen  = 6
	secretLen     = len(secretPrefix) + secretIDLen + 1 + secretBodyLen + secretSumLen

	secretVersion  = 1
	secretBodySize = 2 + ed25519.SeedSize + sha256.Size // version, flags, seed, pin

	maxSecretInput = 1024 // a key and the white space of the file around it
)

// KeyFormatError is the rule that a string broke and that kept it from being a provisioning key. ParseSecret's errors wrap one.
type KeyFormatError string

func (e KeyFormatError) Error() string { return string(e) }

// The rules of the format, in the order in which they are checked.
const (
	ErrKeyTooLong  KeyFormatError = "far too long"
	ErrKeyPrefix   KeyFormatError = "does not begin with iapk_"
	ErrKeyLength   KeyFormatError = "wrong length: cut off, or something was added"
	ErrKeyID       KeyFormatError = "the id is not 16 characters of a-z and 2-7 between underscores"
	ErrKeyAlphabet KeyFormatError = "characters outside 0-9, A-Z, a-z after the id"
	ErrKeyChecksum KeyFormatError = "wrong checksum: mistyped or damaged"
	ErrKeyOverflow KeyFormatError = "the body overflows"
	ErrKeyVersion  KeyFormatError = "unknown version: written by a newer iapmesh"
	ErrKeyFlags    KeyFormatError = "unknown flags: written by a newer iapmesh"
	ErrKeyMismatch KeyFormatError = "the id is not that of the key"
)

// ProvisioningSecret is the credential that a joining node holds: an Ed25519 seed and the pin of the mesh's root. Only String
// gives it away; printed or logged by any other path, it shows its id alone.
type ProvisioningSecret struct {
	// m is behind a function: fmt prints the unexported fields of a struct that holds us without asking us, and follows pointers
	// when the verb is wrong. Of a function it knows the address only.
	m func() *secretMaterial
}

type secretMaterial struct {
	key ed25519.PrivateKey
	pin [sha256.Size]byte
}

func holdSecret(m *secretMaterial) ProvisioningSecret {
	return ProvisioningSecret{func() *secretMaterial { return m }}
}

// KeyID names a provisioning key: base32 of the first 10 bytes of SHA-256(public key), 16 characters of a-z and 2-7.
func KeyID(pub ed25519.PublicKey) string {
	sum := sha256.Sum256(pub)
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10]))
}

// validKeyID reports whether s could be a KeyID.
func validKeyID(s string) bool {
	return len(s) == secretIDLen && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

// GenerateKey makes a key for the mesh whose root has the pin. A nil random is crypto/rand.
func GenerateKey(pin [sha256.Size]byte, random io.Reader) (ProvisioningSecret, error) {
	if random == nil {
		random = rand.Reader
	}
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(random, seed); err != nil {
		return ProvisioningSecret{}, fmt.Errorf("generate provisioning key: %w", err)
	}
	return holdSecret(&secretMaterial{key: ed25519.NewKeyFromSeed(seed), pin: pin}), nil
}

// ParseSecret reads what String wrote; white space around it is ignored. Its errors are Invalid, wrap a KeyFormatError and
// quote nothing.
func ParseSecret(s string) (ProvisioningSecret, error) {
	m, err := parseSecret(s)
	if err != nil {
		return ProvisioningSecret{}, fault.New(fault.Invalid, "provisioning key: %w", err)
	}
	return holdSecret(m), nil
}

func parseSecret(s string) (*secretMaterial, error) {
	if len(s) > maxSecretInput {
		return nil, ErrKeyTooLong
	}
	s = strings.TrimSpace(s)
	rest, ok := strings.CutPrefix(s, secretPrefix)
	switch {
	case !ok:
		return nil, ErrKeyPrefix
	case len(s) != secretLen:
		return nil, ErrKeyLength
	}
	id, text := rest[:secretIDLen], rest[secretIDLen+1:]
	if rest[secretIDLen] != '_' || !validKeyID(id) {
		return nil, ErrKeyID
	}
	if strings.Trim(text, base62Digits) != "" {
		return nil, ErrKeyAlphabet
	}
	signed, sum := s[:secretLen-secretSumLen], s[secretLen-secretSumLen:]
	if sum != secretSum(signed) {
		return nil, ErrKeyChecksum
	}
	body, ok := parseBase62(text[:secretBodyLen], secretBodySize)
	switch {
	case !ok:
		return nil, ErrKeyOverflow
	case body[0] != secretVersion:
		return nil, ErrKeyVersion
	case body[1] != 0:
		return nil, ErrKeyFlags
	}
	m := &secretMaterial{key: ed25519.NewKeyFromSeed(body[2 : 2+ed25519.SeedSize])}
	copy(m.pin[:], body[2+ed25519.SeedSize:])
	if id != KeyID(m.key.Public().(ed25519.PublicKey)) {
		return nil, ErrKeyMismatch
	}
	return m, nil
}

func secretSum(signed string) string {
	return base62(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE([]byte(signed))), secretSumLen)
}

// IsZero reports whether s holds no key.
func (s ProvisioningSecret) IsZero() bool { return s.m == nil }

// ID is the key's id; empty for the zero value.
func (s ProvisioningSecret) ID() string {
	if s.m == nil {
		return ""
	}
	return KeyID(s.PublicKey())
}

// PublicKey is the half that the mesh stores; nil for the zero value.
func (s ProvisioningSecret) PublicKey() ed25519.PublicKey {
	if s.m == nil {
		return nil
	}
	return s.m().key.Public().(ed25519.PublicKey)
}

// PrivateKey signs joins; nil for the zero value.
func (s ProvisioningSecret) PrivateKey() ed25519.PrivateKey {
	if s.m == nil {
		return nil
	}
	return s.m().key
}

// Pin is SHA-256 of the mesh root's SPKI: the only root that a joiner with this key trusts.
func (s ProvisioningSecret) Pin() [sha256.Size]byte {
	if s.m == nil {
		return [sha256.Size]byte{}
	}
	return s.m().pin
}

// String writes the secret out, as it is handed to whoever joins: 118 characters. Call it for nothing else.
func (s ProvisioningSecret) String() string {
	if s.m == nil {
		return ""
	}
	body := append([]byte{secretVersion, 0}, s.m().key.Seed()...)
	body = append(body, s.m().pin[:]...)
	signed := secretPrefix + s.ID() + "_" + base62(body, secretBodyLen)
	return signed + secretSum(signed)
}

func (s ProvisioningSecret) redacted() string { return secretPrefix + s.ID() + "_[redacted]" }

// Format answers every verb with the id alone.
func (s ProvisioningSecret) Format(f fmt.State, _ rune) { io.WriteString(f, s.redacted()) }

// GoString shows the id alone.
func (s ProvisioningSecret) GoString() string { return s.redacted() }

// LogValue shows the id alone.
func (s ProvisioningSecret) LogValue() slog.Value { return slog.StringValue(s.redacted()) }

// MarshalText refuses: a secret is written out by String, on purpose, never as a part of something else.
func (s ProvisioningSecret) MarshalText() ([]byte, error) {
	return nil, fault.New(fault.Internal, "provisioning key %s: not to be marshalled", s.ID())
}
