package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"

	"github.com/iapmesh/iapmesh/internal/fault"
)

const (
	tagSize = 16
	half    = nonceSize / 2
)

// xaes is XAES-256-GCM (c2sp.org/XAES-256-GCM): AES-256-GCM under a key derived from the first half of a 24-byte nonce. Plain
// AES-256-GCM with random nonces wears a key out after 2^32 messages, which a busy log writes within months; this one lasts 2^80.
type xaes struct {
	block cipher.Block
	k1    [aes.BlockSize]byte // CMAC's first subkey
}

func newXAES(key []byte) (*xaes, error) {
	if len(key) != keySize {
		return nil, fault.New(fault.Internal, "data key: %d bytes, want %d", len(key), keySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fault.New(fault.Internal, "data key: %w", err)
	}
	x := &xaes{block: block}
	block.Encrypt(x.k1[:], x.k1[:])
	var carry byte
	for i := len(x.k1) - 1; i >= 0; i-- {
		x.k1[i], carry = x.k1[i]<<1|carry, x.k1[i]>>7
	}
	x.k1[len(x.k1)-1] ^= byte(subtle.ConstantTimeSelect(int(carry), 0b10000111, 0))
	return x, nil
}

// derive makes the AES-256-GCM of a nonce.
func (x *xaes) derive(nonce []byte) cipher.AEAD {
	key := make([]byte, 0, keySize)
	for counter := byte(1); counter <= 2; counter++ {
		m := [aes.BlockSize]byte{0, counter, 'X', 0}
		copy(m[4:], nonce[:half])
		subtle.XORBytes(m[:], m[:], x.k1[:])
		x.block.Encrypt(m[:], m[:])
		key = append(key, m[:]...)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // 32 bytes: cannot be
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // AES has GCM's block size
	}
	return gcm
}

func (x *xaes) sealTo(dst, nonce, plaintext, aad []byte) []byte {
	return x.derive(nonce).Seal(dst, nonce[half:], plaintext, aad)
}

func (x *xaes) openTo(dst, nonce, ciphertext, aad []byte) ([]byte, error) {
	return x.derive(nonce).Open(dst, nonce[half:], ciphertext, aad)
}
