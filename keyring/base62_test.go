package keyring_test

import (
	"hash/crc32"
	"math/big"
	"strings"
)

// An independent base62, so that a test can forge what the package would not write.
func encode62(n *big.Int, width int) string {
	// math/big writes 0-9a-zA-Z; swap the cases.
	text := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z':
			return r - 'A' + 'a'
		}
		return r
	}, n.Text(62))
	return strings.Repeat("0", width-len(text)) + text
}

// body is that of the vector's key with another version and flags.
func body(version, flags byte) string {
	raw := append([]byte{version, flags}, make([]byte, 64)...)
	for i := range 32 {
		raw[2+i] = byte(i)
	}
	return encode62(new(big.Int).SetBytes(raw), 90)
}

// resum adds the right checksum.
func resum(signed string) string {
	return signed + encode62(new(big.Int).SetUint64(uint64(crc32.ChecksumIEEE([]byte(signed)))), 6)
}
