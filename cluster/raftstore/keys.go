package raftstore

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// Seal encrypts what this member keeps on disk: an AEAD under the node's local key, with context as associated data.
// keyring/seal provides one.
type Seal interface {
	Seal(plaintext, context []byte) ([]byte, error)
	Open(sealed, context []byte) ([]byte, error)
}

const (
	keyFile    = "store.key"
	keyContext = "iapmesh/raft/store-key/v1/" // ‖ node id
)

// keys are derived from the store key: 32 random bytes in the data directory, sealed. So the seal, which may be slow, is asked
// once at each start; and one AES key never meets the 2^32 random nonces at which GCM ends.
type keys struct {
	log, marker cipher.AEAD // XChaCha20-Poly1305, so that nonces may be random for ever
	root        []byte      // each snapshot has its own key
}

// openKeys unseals the store key, or makes one if the directory is new.
func openKeys(dir, node string, seal Seal) (*keys, error) {
	path := filepath.Join(dir, keyFile)
	sealed, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return createKeys(dir, path, node, seal)
	case err != nil:
		return nil, fmt.Errorf("read store key: %w", err)
	}
	root, err := seal.Open(sealed, []byte(keyContext+node))
	if err != nil {
		return nil, fmt.Errorf("unseal %s: it was changed, or belongs to another node or seal: %w", path, err)
	}
	if len(root) != 32 {
		return nil, fault.New(fault.Invalid, "unseal %s: %d bytes, want 32", path, len(root))
	}
	return deriveKeys(root)
}

func createKeys(dir, path, node string, seal Seal) (*keys, error) {
	for _, name := range []string{walDir, "snapshots"} {
		if names, err := os.ReadDir(filepath.Join(dir, name)); err == nil && len(names) > 0 {
			return nil, fault.New(fault.Invalid, "%s is missing, but %s holds data that only it opens", path, filepath.Join(dir, name))
		}
	}
	root := make([]byte, 32)
	rand.Read(root)
	sealed, err := seal.Seal(root, []byte(keyContext+node))
	if err != nil {
		return nil, fmt.Errorf("seal store key: %w", err)
	}
	if err := writeFile(dir, path, sealed); err != nil {
		return nil, fmt.Errorf("write store key: %w", err)
	}
	return deriveKeys(root)
}

func deriveKeys(root []byte) (*keys, error) {
	k := &keys{root: root}
	for purpose, aead := range map[string]*cipher.AEAD{"log": &k.log, "marker": &k.marker} {
		key, err := hkdf.Key(sha256.New, root, nil, "iapmesh/raft/"+purpose+"/v1", 32)
		if err != nil {
			return nil, fmt.Errorf("derive %s key: %w", purpose, err)
		}
		if *aead, err = chacha20poly1305.NewX(key); err != nil {
			return nil, fmt.Errorf("derive %s key: %w", purpose, err)
		}
	}
	return k, nil
}

// snapshot returns the cipher of one snapshot, whose salt is random: its nonces may count from zero.
func (k *keys) snapshot(salt []byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, k.root, salt, "iapmesh/raft/snapshot/v1", 32)
	if err != nil {
		return nil, fmt.Errorf("derive snapshot key: %w", err)
	}
	return chacha20poly1305.New(key)
}

// sealRandom appends nonce ‖ ciphertext to dst.
func sealRandom(aead cipher.AEAD, dst, plaintext, context []byte) []byte {
	n := len(dst)
	dst = append(dst, make([]byte, aead.NonceSize())...)
	nonce := dst[n:]
	rand.Read(nonce)
	return aead.Seal(dst, nonce, plaintext, context)
}

// openRandom is the inverse of sealRandom. Its result shares no memory with sealed.
func openRandom(aead cipher.AEAD, sealed, context []byte) ([]byte, error) {
	if len(sealed) < aead.NonceSize() {
		return nil, fault.New(fault.Invalid, "%d bytes are too few for a nonce", len(sealed))
	}
	return aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], context)
}

// writeFile makes a file durable under its name, or leaves none.
func writeFile(dir, path string, content []byte) error {
	tmp, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(content)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
