// Package seal keeps secrets closed at rest: a node's data directory under a data key that a key file or a KMS wraps (Sealer), and
// what several nodes must hold under an audience's key, which HPKE wraps to each member (AudienceKey).
//
// Invariants. There is no mesh-wide data key: a stolen disk opens itself at most. What is sealed opens only with the context, or
// name and version, that it was sealed with. Nothing here logs, and no error quotes a key, a plaintext or the URL of a keeper that
// holds one. Which nodes are members, and when keys rotate, is for keyring's lifecycles and the leader.
package seal

import (
	"crypto/rand"

	"github.com/iapmesh/iapmesh/internal/fault"
)

const (
	version   = 1
	keySize   = 32
	nonceSize = 24 // of XAES-256-GCM
	overhead  = 1 + nonceSize + tagSize
)

// Overhead is by how many bytes sealing makes a plaintext longer.
const Overhead = overhead

// Sealer seals what a node writes into its data directory. It is safe for concurrent use.
type Sealer struct {
	aead   *xaes
	keeper string
}

func newSealer(dataKey []byte, keeper string) (*Sealer, error) {
	aead, err := newXAES(dataKey)
	if err != nil {
		return nil, err
	}
	return &Sealer{aead, keeper}, nil
}

// Keeper is the URL of the keeper that opened it, without any key.
func (s *Sealer) Keeper() string { return s.keeper }

// Seal encrypts: version(1)=1 ‖ nonce(24) ‖ ciphertext and tag, XAES-256-GCM (C2SP) under a random nonce. context says what is
// sealed and where it lies; it is authenticated, not stored, and Open needs the same.
func (s *Sealer) Seal(plaintext, context []byte) ([]byte, error) {
	return s.aead.seal(plaintext, context), nil
}

// Open decrypts what Seal made. Internal: it was damaged, sealed under another data key, or for another context.
func (s *Sealer) Open(sealed, context []byte) ([]byte, error) { return s.aead.open(sealed, context) }

// String keeps the key out of logs.
func (s *Sealer) String() string { return "sealer" }

// seal puts version and nonce before the ciphertext. The version is authenticated with the context.
func (x *xaes) seal(plaintext, context []byte) []byte {
	out := make([]byte, 1+nonceSize, overhead+len(plaintext))
	out[0] = version
	rand.Read(out[1:]) // never fails: crypto/rand ends the process instead
	return x.sealTo(out, out[1:1+nonceSize], plaintext, aad(context))
}

func (x *xaes) open(sealed, context []byte) ([]byte, error) {
	switch {
	case len(sealed) < overhead:
		return nil, fault.New(fault.Internal, "open sealed data: %d bytes, cut off", len(sealed))
	case sealed[0] != version:
		return nil, fault.New(fault.Internal, "open sealed data: unknown version %d", sealed[0])
	}
	plaintext, err := x.openTo(nil, sealed[1:1+nonceSize], sealed[1+nonceSize:], aad(context))
	if err != nil {
		return nil, fault.New(fault.Internal, "open sealed data: damaged, or sealed by another key or for another place")
	}
	return plaintext, nil
}

func aad(context []byte) []byte {
	return append(append(make([]byte, 0, 1+len(context)), version), context...)
}
