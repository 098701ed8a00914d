package main

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node"
)

// secretFile is a new file, mode 0600, that takes a provisioning key; nil where the key is printed instead.
type secretFile struct{ f *os.File }

// createSecretFile makes the file before the key is registered; it replaces nothing.
func createSecretFile(path string) (*secretFile, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, hint(fault.New(fault.Conflict, "%s is there already", path), "Name a new file: a key is never written over another.")
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "create the key file: %w", err)
	}
	return &secretFile{f}, nil
}

// write stores the key durably.
func (s *secretFile) write(key keyring.ProvisioningSecret) error {
	if s == nil {
		return nil
	}
	_, err := io.WriteString(s.f, key.String()+"\n")
	if err = errors.Join(err, s.f.Sync(), s.f.Close()); err != nil {
		return fault.New(fault.Invalid, "write the key file: %w", err)
	}
	return nil
}

// discard takes the file away again, of a key that the mesh did not take.
func (s *secretFile) discard() {
	if s != nil {
		_ = s.f.Close() // whether or not it was written
		_ = os.Remove(s.f.Name())
	}
}

// readKey reads a provisioning key from a file that only its owner may read, or from stdin.
func (c *cli) readKey(path string) (keyring.ProvisioningSecret, error) {
	text := ""
	if path == "-" {
		data, err := io.ReadAll(io.LimitReader(c.stdin, 4<<10))
		if err != nil {
			return keyring.ProvisioningSecret{}, fault.New(fault.Invalid, "read the key: %w", err)
		}
		text = string(data)
	} else {
		var err error
		if text, err = (node.Credential{File: path}).Read(); err != nil {
			return keyring.ProvisioningSecret{}, err
		}
	}
	key, err := keyring.ParseSecret(text)
	if err != nil {
		return keyring.ProvisioningSecret{}, hint(err, "A key is iapk_<16 characters>_<96 characters>, whole and on one line.")
	}
	return key, nil
}
