package session

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
)

const (
	keySuffix   = ".key"
	tempPattern = ".new-*"
	maxKeyFile  = 16 << 10
)

// keyFile is what <kid>.key holds, sealed.
type keyFile struct {
	Version   int               `json:"version"`
	Seed      []byte            `json:"seed"`
	Created   time.Time         `json:"created"`
	Announced revision.Revision `json:"announced"` // zero: not yet
}

// sealContext ties a file to its node and its name, so that a file from elsewhere does not open here.
func sealContext(node, kid string) []byte {
	return []byte("iapmesh/session-key/v1/" + node + "/" + kid)
}

// readKeys reads every key in dir, which it makes if it is not there. A file that does not open is an error: a node that went on
// without it would sign with another key than its record says.
func readKeys(dir, node string, s Sealer) (map[string]*ownKey, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("session keys: %w", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("session keys: %w", err)
	}
	own := map[string]*ownKey{}
	for _, f := range files {
		kid, ok := strings.CutSuffix(f.Name(), keySuffix)
		if !ok {
			if strings.HasPrefix(f.Name(), strings.TrimSuffix(tempPattern, "*")) {
				_ = os.Remove(filepath.Join(dir, f.Name())) // left by a crash; it was never in use
			}
			continue
		}
		key, err := readKey(filepath.Join(dir, f.Name()), node, kid, s)
		if err != nil {
			return nil, fmt.Errorf("session key %s: %w", kid, err)
		}
		own[kid] = key
	}
	return own, nil
}

func readKey(path, node, kid string, s Sealer) (*ownKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxKeyFile {
		return nil, fault.New(fault.Invalid, "file of %d bytes, at most %d", info.Size(), maxKeyFile)
	}
	sealed, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	plain, err := s.Open(sealed, sealContext(node, kid))
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	var f keyFile
	if err := json.Unmarshal(plain, &f); err != nil || f.Version != 1 || len(f.Seed) != ed25519.SeedSize {
		return nil, fault.New(fault.Internal, "not a session key of version 1")
	}
	key := &ownKey{kid: kid, private: ed25519.NewKeyFromSeed(f.Seed), created: f.Created, announced: f.Announced}
	if KIDOf(key.public()) != kid {
		return nil, fault.New(fault.Internal, "holds another key")
	}
	return key, nil
}

// writeKey replaces the key's file: once it returns, the key survives a power cut.
func writeKey(dir, node string, s Sealer, k *ownKey) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("save session key %s: %w", k.kid, err)
		}
	}()
	plain, err := json.Marshal(keyFile{Version: 1, Seed: k.private.Seed(), Created: k.created, Announced: k.announced})
	if err != nil {
		return err
	}
	sealed, err := s.Seal(plain, sealContext(node, k.kid))
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, tempPattern) // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the error to report is the one before
		}
	}()
	_, err = f.Write(sealed)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, k.kid+keySuffix)); err != nil {
		return err
	}
	return syncDir(dir)
}

func removeKey(dir, kid string) error {
	if err := os.Remove(filepath.Join(dir, kid+keySuffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete session key %s: %w", kid, err)
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
