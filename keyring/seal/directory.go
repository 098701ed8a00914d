package seal

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// FileName is the file in a data directory that holds the wraps of its data key.
const FileName = "seal.json"

const (
	maxFile  = 64 << 10
	maxWraps = 8
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

// Create makes a data key for the directory, wraps it by each of the keepers and writes seal.json. A key file that a file:// URL
// names and that is missing is made. Any one of the keepers opens the directory later. Conflict: the directory is sealed already.
func Create(ctx context.Context, dir string, urls []string) (*Sealer, error) {
	if len(urls) == 0 || len(urls) > maxWraps {
		return nil, fault.New(fault.Invalid, "seal: %d URLs, want 1 to %d", len(urls), maxWraps)
	}
	path := filepath.Join(dir, FileName)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return nil, alreadySealed(path, err)
	}
	key := make([]byte, keySize)
	rand.Read(key)
	f := file{Version: 1}
	for _, raw := range urls {
		if strings.HasPrefix(raw, keyFileScheme+"://") {
			if err := ensureKeyFile(dir, raw); err != nil {
				return nil, err
			}
		}
		wrapped, err := wrap(ctx, dir, raw, key)
		if err != nil {
			return nil, err
		}
		f.Wraps = append(f.Wraps, fileWrap{URL: shown(raw), Wrapped: wrapped})
	}
	content, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return nil, fault.New(fault.Internal, "seal %s: %w", path, err)
	}
	if err := writeNew(path, append(content, '\n')); err != nil {
		return nil, alreadySealed(path, err)
	}
	return newSealer(key)
}

func alreadySealed(path string, err error) error {
	if err == nil || errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Conflict, "seal %s: is there already", path)
	}
	return fault.New(fault.Internal, "seal: %w", err)
}

// Open opens a directory that Create sealed, by the first keeper that can. urls are those of the node's configuration: needed for
// a keeper whose URL carries its key, which seal.json does not store; otherwise nil will do. NotFound: the directory is not sealed.
// Unavailable: no keeper opens it now; the error says why of each.
func Open(ctx context.Context, dir string, urls []string) (*Sealer, error) {
	f, err := readFile(filepath.Join(dir, FileName))
	if err != nil {
		return nil, err
	}
	var problems []error
	for _, w := range f.Wraps {
		candidates := slices.DeleteFunc(slices.Clone(urls), func(u string) bool { return shown(u) != w.URL })
		if len(candidates) == 0 {
			candidates = []string{w.URL}
		}
		for _, raw := range candidates {
			key, err := unwrap(ctx, dir, raw, w.Wrapped)
			if err != nil {
				problems = append(problems, err)
				continue
			}
			return newSealer(key)
		}
	}
	return nil, fault.New(fault.Unavailable, "open data directory %s: no key opens it: %w", dir, errors.Join(problems...))
}

func readFile(path string) (file, error) {
	h, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return file{}, fault.New(fault.NotFound, "seal %s: not there", path)
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
	case len(f.Wraps) == 0 || len(f.Wraps) > maxWraps:
		return file{}, fault.New(fault.Invalid, "%d wraps, want 1 to %d", len(f.Wraps), maxWraps)
	}
	return f, nil
}

func wrap(ctx context.Context, dir, raw string, key []byte) ([]byte, error) {
	keeper, err := openKeeper(ctx, dir, raw)
	if err != nil {
		return nil, err
	}
	defer keeper.Close()
	wrapped, err := keeper.Encrypt(ctx, key)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "seal %s: wrap the data key: %w", shown(raw), err)
	}
	return wrapped, nil
}

func unwrap(ctx context.Context, dir, raw string, wrapped []byte) ([]byte, error) {
	keeper, err := openKeeper(ctx, dir, raw)
	if err != nil {
		return nil, err
	}
	defer keeper.Close()
	key, err := keeper.Decrypt(ctx, wrapped)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "seal %s: unwrap the data key: %w", shown(raw), err)
	}
	if len(key) != keySize {
		return nil, fault.New(fault.Internal, "seal %s: a data key of %d bytes, want %d", shown(raw), len(key), keySize)
	}
	return key, nil
}
