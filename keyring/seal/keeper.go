package seal

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

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
	if u, err := url.Parse(raw); err != nil || u.User != nil {
		return scheme + "://…" // openKeeper refuses it; what is in there may be a password
	}
	return raw
}

// local reports whether the key of a keeper is at hand, and no service holds it.
func local(raw string) bool {
	scheme, _, _ := strings.Cut(raw, "://")
	return scheme == keyFileScheme || scheme == localsecrets.Scheme
}

// ValidURL checks the form of a keeper's URL, and that its scheme is known; it asks nobody. It does not quote what might be a key.
func (d Directory) ValidURL(raw string) error {
	if len(raw) > maxURL {
		return fault.New(fault.Invalid, "seal URL: %d bytes, at most %d", len(raw), maxURL)
	}
	scheme, rest, isURL := strings.Cut(raw, "://")
	switch _, known := d.Openers[scheme]; {
	case scheme == localsecrets.Scheme && rest == "":
		return fault.New(fault.Invalid, "seal %s: the key is missing (an empty one would be made up and lost)", shown(raw))
	case isURL && (local(raw) || known):
	default:
		return fault.New(fault.Invalid, "seal %s: unknown scheme; want %s", shown(raw), d.schemes())
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return fault.New(fault.Invalid, "seal %s: not a URL", shown(raw))
	case scheme == keyFileScheme:
		_, err = keyFilePath(d.Path, u)
		return err
	case scheme == localsecrets.Scheme:
		if _, err := localsecrets.Base64Key(u.Host); err != nil {
			return fault.New(fault.Invalid, "seal %s: want base64 (URL alphabet) of 32 bytes", shown(raw))
		}
	case u.User != nil:
		return fault.New(fault.Invalid, "seal %s: holds a user or a password: credentials come from the environment", shown(raw))
	case u.Host == "" && strings.Trim(u.Path, "/") == "":
		return fault.New(fault.Invalid, "seal %s: names no key", shown(raw))
	}
	return nil
}

func (d Directory) schemes() string {
	text := keyFileScheme + "://"
	for _, name := range slices.Sorted(maps.Keys(d.Openers)) {
		text += ", " + name + "://"
	}
	return text + " or " + localsecrets.Scheme + "://"
}

// openKeeper opens the keeper that a URL names: file://<path of a key file, relative to the directory or absolute>,
// base64key://<key>, or what d.Openers know.
func (d Directory) openKeeper(ctx context.Context, raw string) (*secrets.Keeper, error) {
	if err := d.ValidURL(raw); err != nil {
		return nil, err
	}
	mux := new(secrets.URLMux) // its own: whatever a package registered by being imported is not asked
	mux.RegisterKeeper(keyFileScheme, keyFileOpener{d.Path, d.read})
	mux.RegisterKeeper(localsecrets.Scheme, &localsecrets.URLOpener{})
	for scheme, opener := range d.Openers {
		mux.RegisterKeeper(scheme, opener)
	}
	keeper, err := mux.OpenKeeper(ctx, raw)
	if err != nil && !local(raw) {
		return nil, keeperError(raw, "open the keeper", err)
	}
	if err != nil && !strings.HasPrefix(raw, keyFileScheme+":") {
		return nil, fault.New(fault.Invalid, "seal %s: want base64 (URL alphabet) of 32 bytes", shown(raw))
	}
	return keeper, err
}

const keyFileScheme = "file"

// keyFileOpener opens file:// URLs for gocloud.dev/secrets: a file of 32 random bytes that nobody else can read.
type keyFileOpener struct {
	dir  string
	read map[string][keySize]byte
}

// OpenKeeperURL implements secrets.KeeperURLOpener.
func (o keyFileOpener) OpenKeeperURL(_ context.Context, u *url.URL) (*secrets.Keeper, error) {
	path, err := keyFilePath(o.dir, u)
	if err != nil {
		return nil, err
	}
	key, ok := o.read[path]
	if !ok {
		if key, err = readKeyFile(path); err != nil {
			return nil, err
		}
	}
	if o.read != nil {
		o.read[path] = key
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
	_, err = makeKeyFile(path)
	return err
}

// makeKeyFile makes a key file, unless there is one.
func makeKeyFile(path string) (made bool, err error) {
	key := make([]byte, keySize)
	rand.Read(key)
	switch err := writeNew(path, key); {
	case errors.Is(err, fs.ErrExist):
		return false, nil
	case err != nil:
		return false, fault.New(fault.Internal, "seal key file: %w", err)
	}
	return true, nil
}

// writeNew writes a whole file, mode 0600, durably, or fails with fs.ErrExist; a crash leaves all of it or nothing.
func writeNew(path string, content []byte) error {
	return write(path, content, os.Link)
}

// replaceFile is writeNew for a file that may be there: a crash leaves the old one or the new one.
func replaceFile(path string, content []byte) error {
	if err := write(path, content, os.Rename); err != nil {
		return fault.New(fault.Internal, "write %s: %w", path, err)
	}
	return nil
}

func write(path string, content []byte, place func(from, to string) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // after a rename there is nothing to remove
	_, err = f.Write(content)
	if err == nil {
		err = keepOwner(f, strings.TrimSuffix(path, nextSuffix)) // a successor is like what it succeeds
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := place(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// keepOwner gives a file that root writes to whom the file in its place belongs, or else the directory: the node's user reads it next.
func keepOwner(f *os.File, path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		if info, err = os.Stat(filepath.Dir(path)); err != nil {
			return err
		}
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return f.Chown(int(owner.Uid), int(owner.Gid))
}

// temporary reports whether a file is what write had not yet put in the place of base: "." base "-" and digits.
func temporary(name, base string) bool {
	digits, ok := strings.CutPrefix(name, "."+base+"-")
	return ok && digits != "" && strings.Trim(digits, "0123456789") == ""
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
