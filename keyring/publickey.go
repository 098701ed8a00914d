package keyring

import (
	"crypto/ed25519"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// maxPublicKeyText bounds what ParsePublicKey looks at: an id, a key in hex, and white space.
const maxPublicKeyText = 256

// PublicKeyText writes the public half of a provisioning key as one machine hands it to another: "<id> <hex>".
func PublicKeyText(pub ed25519.PublicKey) string { return KeyID(pub) + " " + hex.EncodeToString(pub) }

// ParsePublicKey reads what PublicKeyText wrote, or the hex alone. With the id, it sees that no character was changed on the way.
func ParsePublicKey(s string) (ed25519.PublicKey, error) {
	if len(s) > maxPublicKeyText {
		return nil, fault.New(fault.Invalid, "public key: %d characters, want 64 hex digits", len(s))
	}
	words := strings.Fields(s)
	if len(words) == 0 || len(words) > 2 {
		return nil, fault.New(fault.Invalid, "public key: want 64 hex digits, or the key's id before them")
	}
	if strings.HasPrefix(words[0], secretPrefix) {
		return nil, fault.New(fault.Invalid, "public key: that is the key itself, not its public half; keep it where it was made")
	}
	pub, err := hex.DecodeString(words[len(words)-1])
	if err != nil || len(pub) != ed25519.PublicKeySize {
		return nil, fault.New(fault.Invalid, "public key: want 64 hex digits")
	}
	if len(words) == 2 && words[0] != KeyID(pub) {
		return nil, fault.New(fault.Invalid, "public key: it is key %s's, not %.40s's: mistyped or damaged", KeyID(pub), words[0])
	}
	return pub, nil
}

// lowOrder reports whether a public key is one of the few points for which a signature can be made without a private key. Key
// generation makes none; but a public half may come from elsewhere, and 64 zeros are easily typed.
func lowOrder(pub ed25519.PublicKey) bool {
	y := slices.Clone(pub)
	y[31] &= 0x7f // the sign
	return slices.Contains(lowOrderPoints(), hex.EncodeToString(y))
}

// lowOrderPoints are the y coordinates of the points of order 1, 2, 4 and 8, also as they can be written beyond the field.
func lowOrderPoints() []string {
	return []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	}
}
