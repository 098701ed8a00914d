package sink

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// file keeps the secret as one line of a file of mode 0600 that is replaced as a whole: a reader sees the old key or the new one.
type file struct{ path string }

// Put implements Sink.
func (f file) Put(_ context.Context, secret keyring.ProvisioningSecret) error {
	line := secret.String() + "\n"
	if err := replace(f.path, line); err != nil {
		return fault.New(fault.Unavailable, "file: %w", err)
	}
	got, err := os.ReadFile(f.path)
	if err == nil && string(got) != line {
		err = errReadBack
	}
	if err != nil {
		return fault.New(fault.Unavailable, "file %s: %w", f.path, err)
	}
	return nil
}

// replace writes a file beside the path, syncs it and renames it there, then syncs the directory.
func replace(path, text string) error {
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return fault.New(fault.Invalid, "%s is no plain file", path)
	}
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".iapmesh-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // after the rename there is nothing to remove
	_, err = tmp.WriteString(text)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
