// Package credential reads secrets from where a configuration file says that they lie: the file names them, and holds none. Nothing here
// logs, and no error quotes what was read.
package credential

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// Credential says where a secret is read from: exactly one of these.
type Credential struct {
	File       string `yaml:"file"`       // mode 0600 or stricter
	Env        string `yaml:"env"`        // name of a variable
	FD         int    `yaml:"fd"`         // an open file descriptor, 3 or above
	Credential string `yaml:"credential"` // a systemd credential's name
}

// Validate reports what is wrong, as of the field.
func (c Credential) Validate(field string) error {
	given := 0
	for _, set := range []bool{c.File != "", c.Env != "", c.FD != 0, c.Credential != ""} {
		if set {
			given++
		}
	}
	if given != 1 {
		return fault.New(fault.Invalid, "%s: want exactly one of file, env, fd or credential", field)
	}
	if c.FD != 0 && c.FD < 3 {
		return fault.New(fault.Invalid, "%s.fd %d: want 3 or above", field, c.FD)
	}
	return nil
}

// maxCredential bounds what a credential is read from.
const maxCredential = 64 << 10

// Read reads the secret, without surrounding white space. A file that others may read is refused.
func (c Credential) Read() (string, error) {
	if err := c.Validate("credential"); err != nil {
		return "", err
	}
	switch {
	case c.Env != "":
		value, ok := os.LookupEnv(c.Env)
		if !ok {
			return "", fault.New(fault.Invalid, "credential: the environment holds no %s", c.Env)
		}
		return strings.TrimSpace(value), nil
	case c.FD != 0:
		f := os.NewFile(uintptr(c.FD), "credential")
		if f == nil {
			return "", fault.New(fault.Invalid, "credential: file descriptor %d is not open", c.FD)
		}
		defer f.Close()
		return readSecret(f, fmt.Sprintf("file descriptor %d", c.FD))
	}
	path := c.File
	if c.Credential != "" {
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" || c.Credential != filepath.Base(c.Credential) {
			return "", fault.New(fault.Invalid, "credential %q: no CREDENTIALS_DIRECTORY here, or not a plain name", c.Credential)
		}
		path = filepath.Join(dir, c.Credential)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fault.New(fault.Invalid, "credential: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fault.New(fault.Invalid, "credential: %w", err)
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		return "", fault.New(fault.Invalid, "credential %s: mode %04o lets others read it: chmod 600 %s", path, info.Mode().Perm(), path)
	}
	return readSecret(f, path)
}

func readSecret(r io.Reader, name string) (string, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxCredential+1))
	if err != nil {
		return "", fault.New(fault.Invalid, "credential: read %s: %w", name, err)
	}
	if len(data) > maxCredential {
		return "", fault.New(fault.Invalid, "credential: %s holds more than %d bytes", name, maxCredential)
	}
	return strings.TrimSpace(string(data)), nil
}
