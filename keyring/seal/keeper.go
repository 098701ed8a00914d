package seal

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"gocloud.dev/secrets"
	"gocloud.dev/secrets/localsecrets"

	"github.com/iapmesh/iapmesh/internal/fault"
)

const maxURL = 2048

// KeyFileURL is the URL of a key file.
func KeyFileURL(path string) string {
	if !filepath.IsAbs(path) {
		first, rest, _ := strings.Cut(filepath.ToSlash(path), "/")
		return "file://" + url.PathEscape(first) + (&url.URL{Path: "/" + rest}).EscapedPath()
	}
	return (&url.URL{Scheme: "file", Path: path}).String()
}

// shown is a keeper's URL as seal.json stores it and errors show it: one that carries the key itself is cut down to its scheme.
func shown(raw string) string {
	scheme, _, ok := strings.Cut(raw, "://")
	switch {
	case !ok || len(scheme) > 32:
		return "(no URL)"
	case scheme == localsecrets.Scheme:
		return scheme + "://"
	}
	return raw
}

// openKeeper opens the keeper that a URL names: file://<path of a key file, relative to dir or absolute> or base64key://<key>.
// Its errors do not quote what might be a key. The KMS keepers of gocloud.dev join here, by their URLOpener and a line each.
func openKeeper(ctx context.Context, dir, raw string) (*secrets.Keeper, error) {
	if len(raw) > maxURL {
		return nil, fault.New(fault.Invalid, "seal URL: %d bytes, at most %d", len(raw), maxURL)
	}
	scheme, rest, _ := strings.Cut(raw, "://")
	if scheme == localsecrets.Scheme && rest == "" {
		return nil, fault.New(fault.Invalid, "seal %s: the key is missing (an empty one would be made up and lost)", shown(raw))
	}
	if scheme != localsecrets.Scheme && scheme != keyFileScheme {
		return nil, fault.New(fault.Invalid, "seal %s: unknown scheme; want file:// or base64key://", shown(raw))
	}
	mux := new(secrets.URLMux)
	mux.RegisterKeeper(keyFileScheme, keyFileOpener{dir})
	mux.RegisterKeeper(localsecrets.Scheme, &localsecrets.URLOpener{})
	keeper, err := mux.OpenKeeper(ctx, raw)
	if err != nil {
		if scheme == localsecrets.Scheme {
			return nil, fault.New(fault.Invalid, "seal %s: want base64 (URL alphabet) of 32 bytes", shown(raw))
		}
		return nil, err
	}
	return keeper, nil
}

const keyFileScheme = "file"

// keyFileOpener opens file:// URLs for gocloud.dev/secrets: a file of 32 random bytes that nobody else can read.
type keyFileOpener struct{ dir string }

// OpenKeeperURL implements secrets.KeeperURLOpener.
func (o keyFileOpener) OpenKeeperURL(_ context.Context, u *url.URL) (*secrets.Keeper, error) {
	path, err := keyFilePath(o.dir, u)
	if err != nil {
		return nil, err
	}
	key, err := readKeyFile(path)
	if err != nil {
		return nil, err
	}
	return localsecrets.NewKeeper(key), nil
}

func keyFilePath(dir string, u *url.URL) (string, error) {
	path := u.Host + u.Path
	if path == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil || u.Port() != "" {
		return "", fault.New(fault.Invalid, "seal file://: want file:// and a path, and nothing else")
	}
	path = filepath.FromSlash(path)
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	return path, nil
}

func readKeyFile(path string) (key [keySize]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return key, fault.New(fault.NotFound, "seal key file %s: not there", path)
		}
		return key, fault.New(fault.Internal, "seal key file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return key, fault.New(fault.Internal, "seal key file: %w", err)
	}
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return key, fault.New(fault.Invalid, "seal key file %s: not a regular file", path)
	case mode.Perm()&0o077 != 0:
		return key, fault.New(fault.Invalid, "seal key file %s: mode %#o lets others in; want 0600 or stricter", path, mode.Perm())
	case info.Size() != keySize:
		return key, fault.New(fault.Invalid, "seal key file %s: %d bytes, want %d", path, info.Size(), keySize)
	}
	if _, err := io.ReadFull(f, key[:]); err != nil {
		return key, fault.New(fault.Internal, "seal key file %s: %w", path, err)
	}
	return key, nil
}

// ensureKeyFile makes the key file that a file:// URL names, mode 0600, unless it is there.
func ensureKeyFile(dir, raw string) error {
	u, err := url.Parse(raw)
	if err != nil {
		return fault.New(fault.Invalid, "seal %s: not a URL", shown(raw))
	}
	path, err := keyFilePath(dir, u)
	if err != nil {
		return err
	}
	key := make([]byte, keySize)
	rand.Read(key)
	if err := writeNew(path, key); err != nil && !errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Internal, "seal key file: %w", err)
	}
	return nil
}

// writeNew writes a whole file, mode 0600, durably, or fails with fs.ErrExist; a crash leaves all of it or nothing.
func writeNew(path string, content []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
