package seal

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gocloud.dev/secrets"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// FileName is the file in a data directory that holds the wraps of its data key.
const FileName = "seal.json"

// MaxURLs is how many keepers one directory may have.
const MaxURLs = 8

const (
	maxFile        = 64 << 10
	maxFileWraps   = 32   // in seal.json: while keepers change, it holds those of before beside those to come
	maxFileWrapped = 4096 // bytes of one wrap: an RSA key of 16384 bits makes 2048
)

// file is seal.json. Wrapped is the data key, encrypted by the keeper of that URL.
type file struct {
	Version int        `json:"version"`
	Wraps   []fileWrap `json:"wraps"`
}

type fileWrap struct {
	URL     string `json:"url"`
	Wrapped []byte `json:"wrapped"`
}

// Directory is a data directory and what is known of its keepers.
type Directory struct {
	Path string
	// URLs are the keepers that the node's configuration names. A keeper whose URL carries its key needs them: seal.json does not store it.
	URLs []string
	// Openers open keepers by the scheme of their URL, beside file:// and base64key://, which need none.
	Openers map[string]secrets.KeeperURLOpener

	read map[string][keySize]byte // key files that were read; nil: each is read every time
	step func(name string)        // tests stop a rotation there; nil: nothing
}

// Create is Directory.Create with keepers that need no opener.
func Create(ctx context.Context, dir string, urls []string) (*Sealer, error) {
	return Directory{Path: dir, URLs: urls}.Create(ctx)
}

// Open is Directory.Open with keepers that need no opener.
func Open(ctx context.Context, dir string, urls []string) (*Sealer, error) {
	return Directory{Path: dir, URLs: urls}.Open(ctx)
}

// Create makes a data key for the directory, wraps it by each of the keepers and writes seal.json. A key file that a file:// URL
// names and that is missing is made. Any one of the keepers opens the directory later. Conflict: the directory is sealed already.
// Unavailable: a keeper does not answer now.
func (d Directory) Create(ctx context.Context) (*Sealer, error) {
	path := filepath.Join(d.Path, FileName)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return nil, alreadySealed(path, err)
	}
	f, key, err := d.newKey(ctx)
	if err != nil {
		return nil, err
	}
	content, err := f.encode()
	if err != nil {
		return nil, err
	}
	if err := writeNew(path, content); err != nil {
		return nil, alreadySealed(path, err)
	}
	return newSealer(key, f.Wraps[0].URL)
}

// newKey makes a data key, and wraps it by each of the keepers.
func (d Directory) newKey(ctx context.Context) (f file, key []byte, err error) {
	if len(d.URLs) == 0 || len(d.URLs) > MaxURLs {
		return f, nil, fault.New(fault.Invalid, "seal: %d URLs, want 1 to %d", len(d.URLs), MaxURLs)
	}
	key = make([]byte, keySize)
	rand.Read(key)
	f.Version = 1
	for _, raw := range d.URLs {
		if strings.HasPrefix(raw, keyFileScheme+"://") {
			if err := ensureKeyFile(d.Path, raw); err != nil {
				return f, nil, err
			}
		}
		wrapped, err := d.wrap(ctx, raw, key)
		if err != nil {
			return f, nil, err
		}
		f.Wraps = append(f.Wraps, fileWrap{URL: shown(raw), Wrapped: wrapped})
	}
	return f, key, nil
}

func alreadySealed(path string, err error) error {
	if err == nil || errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Conflict, "seal %s: is there already", path)
	}
	return fault.New(fault.Internal, "seal: %w", err)
}

// Open opens a directory that Create sealed, by the first keeper that can. NotFound: the directory is not sealed. Unavailable: no
// keeper opens it now, and at least one may later. Invalid: none ever will as things are. The error says why of each.
func (d Directory) Open(ctx context.Context) (*Sealer, error) {
	f, err := readFile(d.Path)
	for err == nil {
		key, url, problems := d.open(ctx, f)
		if key != nil {
			return newSealer(key, url)
		}
		// Between the file and the keys, a rotation may have changed both.
		before := f
		if f, err = readFile(d.Path); err == nil && before.equal(f) {
			return nil, d.closed(problems)
		}
	}
	return nil, err
}

// open returns the data key and the keeper that opened it, or why each keeper did not.
func (d Directory) open(ctx context.Context, f file) (key []byte, url string, problems []error) {
	// While a rotation swaps a key file, seal.json holds a wrap for either content of it. Seen once, it is one of the two.
	d.read = map[string][keySize]byte{}
	for _, w := range f.Wraps {
		key, err := d.unwrap(ctx, w)
		if err == nil {
			return key, w.URL, nil
		}
		problems = append(problems, err)
	}
	return nil, "", problems
}

func (d Directory) closed(problems []error) error {
	kind := fault.Invalid
	if slices.ContainsFunc(problems, func(err error) bool { return fault.Is(err, fault.Unavailable) }) {
		kind = fault.Unavailable
	}
	return fault.New(kind, "open data directory %s: no key opens it: %w", d.Path, errors.Join(problems...))
}

// unwrap tries the configured URLs that a wrap may stand for, or else its own.
func (d Directory) unwrap(ctx context.Context, w fileWrap) ([]byte, error) {
	candidates := slices.DeleteFunc(slices.Clone(d.URLs), func(u string) bool { return shown(u) != w.URL })
	if len(candidates) == 0 {
		candidates = []string{w.URL}
	}
	var problems []error
	for _, raw := range candidates {
		key, err := d.unwrapBy(ctx, raw, w.Wrapped)
		if err == nil {
			return key, nil
		}
		problems = append(problems, err)
	}
	if len(problems) == 1 {
		return nil, problems[0]
	}
	return nil, errors.Join(problems...)
}

func readFile(dir string) (file, error) {
	path := filepath.Join(dir, FileName)
	h, err := os.Open(path)
	if err != nil {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return file{}, fault.New(fault.NotFound, "seal %s: not there", path)
		case errors.Is(err, fs.ErrPermission):
			return file{}, fault.New(fault.Denied, "seal: %w", err)
		}
		return file{}, fault.New(fault.Internal, "seal: %w", err)
	}
	defer h.Close()
	content, err := io.ReadAll(io.LimitReader(h, maxFile+1))
	if err != nil {
		return file{}, fault.New(fault.Internal, "seal %s: %w", path, err)
	}
	f, err := parseFile(content)
	if err != nil {
		return file{}, fault.New(fault.Invalid, "seal %s: %w", path, err)
	}
	return f, nil
}

func parseFile(content []byte) (file, error) {
	if len(content) > maxFile {
		return file{}, fault.New(fault.Invalid, "more than %d bytes", maxFile)
	}
	var f file
	d := json.NewDecoder(bytes.NewReader(content))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return file{}, err
	}
	if _, err := d.Token(); err != io.EOF {
		return file{}, fault.New(fault.Invalid, "something follows after the JSON object")
	}
	switch {
	case f.Version != 1:
		return file{}, fault.New(fault.Invalid, "unknown version %d", f.Version)
	case len(f.Wraps) == 0 || len(f.Wraps) > maxFileWraps:
		return file{}, fault.New(fault.Invalid, "%d wraps, want 1 to %d", len(f.Wraps), maxFileWraps)
	}
	for i, w := range f.Wraps {
		switch {
		case len(w.URL) > maxURL || !strings.Contains(w.URL, "://"):
			return file{}, fault.New(fault.Invalid, "wraps[%d]: url: want a URL of at most %d bytes", i, maxURL)
		case len(w.Wrapped) == 0 || len(w.Wrapped) > maxFileWrapped:
			return file{}, fault.New(fault.Invalid, "wraps[%d]: wrapped: %d bytes, want 1 to %d", i, len(w.Wrapped), maxFileWrapped)
		}
	}
	return f, nil
}

// encode is what parseFile reads; it refuses what that would.
func (f file) encode() ([]byte, error) {
	content, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return nil, fault.New(fault.Internal, "seal: %w", err)
	}
	if _, err := parseFile(content); err != nil {
		return nil, fault.New(fault.Exhausted, "seal: the new %s would not be read again: %w", FileName, err)
	}
	return append(content, '\n'), nil
}

func (f file) equal(other file) bool {
	return slices.EqualFunc(f.Wraps, other.Wraps, func(a, b fileWrap) bool { return a.URL == b.URL && bytes.Equal(a.Wrapped, b.Wrapped) })
}

func (d Directory) wrap(ctx context.Context, raw string, key []byte) ([]byte, error) {
	keeper, err := d.openKeeper(ctx, raw)
	if err != nil {
		return nil, err
	}
	defer keeper.Close()
	wrapped, err := keeper.Encrypt(ctx, key)
	if err != nil {
		return nil, keeperError(raw, "wrap the data key", err)
	}
	if len(wrapped) == 0 || len(wrapped) > maxFileWrapped {
		return nil, fault.New(fault.Internal, "seal %s: a wrap of %d bytes, want 1 to %d", shown(raw), len(wrapped), maxFileWrapped)
	}
	return wrapped, nil
}

func (d Directory) unwrapBy(ctx context.Context, raw string, wrapped []byte) ([]byte, error) {
	keeper, err := d.openKeeper(ctx, raw)
	if err != nil {
		return nil, err
	}
	defer keeper.Close()
	key, err := keeper.Decrypt(ctx, wrapped)
	if err != nil {
		return nil, keeperError(raw, "unwrap the data key", err)
	}
	if len(key) != keySize {
		return nil, fault.New(fault.Internal, "seal %s: a data key of %d bytes, want %d", shown(raw), len(key), keySize)
	}
	return key, nil
}

var errWrongKey = errors.New("this key did not wrap it")

// keeperError gives a keeper's refusal its kind. A key that is at hand and does not open the wrap never will; a service says itself.
func keeperError(raw, what string, err error) error {
	if local(raw) {
		return fault.New(fault.Invalid, "seal %s: %s: %w", shown(raw), what, errWrongKey)
	}
	var f *fault.Error
	if errors.As(err, &f) { // without the words that the driver put around it
		err = f
	}
	return fault.New(fault.KindOf(err), "seal %s: %s: %w", shown(raw), what, err)
}

// verify holds that a new wrap opens to the data key.
func (d Directory) verify(ctx context.Context, raw string, wrapped, key []byte) error {
	got, err := d.unwrapBy(ctx, raw, wrapped)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(got, key) != 1 {
		return fault.New(fault.Internal, "seal %s: it gives back another data key than it was given", shown(raw))
	}
	return nil
}
