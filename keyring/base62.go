package keyring

import (
	"math/big"
)

// base62Digits is the alphabet of PROTOCOLS.md. math/big has lower case first, which is another alphabet.
const base62Digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

func base62Digit(c byte) (int, bool) {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0'), true
	case 'A' <= c && c <= 'Z':
		return int(c-'A') + 10, true
	case 'a' <= c && c <= 'z':
		return int(c-'a') + 36, true
	}
	return 0, false
}

// base62 writes the big-endian number b with width digits, left-padded. b must fit.
func base62(b []byte, width int) string {
	out := make([]byte, width)
	n, sixtyTwo, digit := new(big.Int).SetBytes(b), big.NewInt(62), new(big.Int)
	for i := width - 1; i >= 0; i-- {
		n.DivMod(n, sixtyTwo, digit)
		out[i] = base62Digits[digit.Int64()]
	}
	return string(out)
}

// parseBase62 reads a big-endian number of size bytes; false if a digit is foreign or the number needs more bytes.
func parseBase62(s string, size int) ([]byte, bool) {
	n, sixtyTwo := new(big.Int), big.NewInt(62)
	for i := range len(s) {
		d, ok := base62Digit(s[i])
		if !ok {
			return nil, false
		}
		n.Mul(n, sixtyTwo)
		n.Add(n, big.NewInt(int64(d)))
	}
	if n.BitLen() > 8*size {
		return nil, false
	}
	return n.FillBytes(make([]byte, size)), true
}
