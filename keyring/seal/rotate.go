package seal

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// Wrap is one wrap of a directory's data key.
type Wrap struct {
	URL string // without any key
	Err error  // why it does not open now; nil: it opens
}

// Wraps tries every wrap of the directory. NotFound: it is not sealed.
func (d Directory) Wraps(ctx context.Context) ([]Wrap, error) {
	f, err := readFile(d.Path)
	if err != nil {
		return nil, err
	}
	var wraps []Wrap
	for _, w := range f.Wraps {
		_, err := d.unwrap(ctx, w)
		wraps = append(wraps, Wrap{w.URL, err})
	}
	return wraps, nil
}

// Rotated is what a rotation did.
type Rotated struct {
	Opened   string   // the keeper that opened the data key
	Wraps    []string // the keepers that wrap it now
	Dropped  []string // those that do so no longer
	Replaced []string // key files that hold a new key now
	Removed  []string // key files that are gone
	Left     []string // key files outside of the directory that no longer open it; others may need them, so they stay
}

// Rotate wraps the data key anew, by exactly these keepers; none: those of d.URLs, or else of seal.json. A key file that opens the
// directory until now gets a new key; one that is not there is made; any other is used as it is. The data key stays: a node that
// runs goes on.
//
// It survives being killed anywhere: seal.json first holds the new wraps beside the old ones; only then do new key files take the
// place of old ones, each by one rename; only then are the old wraps dropped, and after them the key files that nobody names any
// more. Whichever key files are there, one wrap opens. An error leaves the wraps of before in place.
// Conflict: another rotation runs. Unavailable: a keeper does not answer now.
func (d Directory) Rotate(ctx context.Context, to []string) (*Rotated, error) {
	var err error
	if d.Path, err = filepath.Abs(d.Path); err != nil {
		return nil, fault.New(fault.Invalid, "data directory: %w", err)
	}
	unlock, err := d.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	f, err := readFile(d.Path)
	if err != nil {
		return nil, err
	}
	r := &rotation{Directory: d, ours: map[string]bool{}}
	if err := r.open(ctx, f); err != nil {
		return nil, err
	}
	if r.to, err = d.targets(to, f); err != nil {
		return nil, err
	}
	if err := r.sweep(); err != nil {
		return nil, err
	}
	if err := r.prepare(ctx); err != nil {
		r.undo()
		return nil, err
	}
	r.at("prepared")
	if err := r.swap(ctx); err != nil {
		return nil, err
	}
	if err := r.write(r.fresh); err != nil {
		return nil, err
	}
	r.at("wraps dropped")
	return r.finish(f)
}

// rotation is one under way.
type rotation struct {
	Directory
	key    []byte
	opened string
	kept   []fileWrap      // the old wraps, without those that certainly open nothing
	ours   map[string]bool // paths of key files that opened the directory until now
	to     []string
	fresh  []fileWrap
	swaps  []string // key files whose successor lies beside them
	made   []string // key files that were not there
}

// nextSuffix names the successor of a key file until it takes its place.
const nextSuffix = ".next"

// lock keeps rotations apart. It is the directory's own, so it leaves no file, and ends with the process.
func (d Directory) lock() (unlock func(), err error) {
	h, err := os.Open(d.Path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fault.New(fault.NotFound, "data directory %s: not there", d.Path)
		}
		return nil, fault.New(fault.Invalid, "data directory: %w", err)
	}
	if err := unix.Flock(int(h.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fault.New(fault.Conflict, "data directory %s: another rotation of its seal runs", d.Path), h.Close())
	}
	return func() {
		_ = unix.Flock(int(h.Fd()), unix.LOCK_UN) // closing alone would leave it to a child that another goroutine is just starting
		_ = h.Close()                             // it was only read
	}, nil
}

// open finds the data key, and what each wrap is worth.
func (r *rotation) open(ctx context.Context, f file) error {
	var problems []error
	for _, w := range f.Wraps {
		path := r.pathOf(w.URL)
		key, err := r.unwrap(ctx, w)
		switch {
		case err == nil:
			if r.key == nil {
				r.key, r.opened = key, w.URL
			}
			if path != "" {
				r.ours[path] = true
			}
		case path != "" && fault.Is(err, fault.Invalid) && errors.Is(err, errWrongKey):
			continue // a rotation that ended early left it: that key file has another key
		default:
			problems = append(problems, err)
		}
		r.kept = append(r.kept, w)
	}
	if r.key == nil {
		return r.closed(append(problems, errWrongKey))
	}
	return nil
}

// targets are the keepers to wrap by.
func (d Directory) targets(to []string, f file) ([]string, error) {
	if len(to) == 0 {
		to = d.URLs
	}
	if len(to) == 0 {
		for _, w := range f.Wraps {
			if !slices.Contains(to, w.URL) {
				to = append(to, w.URL)
			}
		}
	}
	if len(to) > MaxURLs {
		return nil, fault.New(fault.Invalid, "seal: %d URLs, want 1 to %d", len(to), MaxURLs)
	}
	for i, raw := range to {
		if err := d.ValidURL(raw); err != nil {
			return nil, err
		}
		same := func(other string) bool {
			return other == raw || d.pathOf(raw) != "" && d.pathOf(raw) == d.pathOf(other)
		}
		if slices.ContainsFunc(to[:i], same) {
			return nil, fault.New(fault.Invalid, "seal %s: is there twice", shown(raw))
		}
	}
	return to, nil
}

// pathOf is the key file of a file:// URL; of any other it is empty.
func (d Directory) pathOf(raw string) string {
	if !strings.HasPrefix(raw, keyFileScheme+"://") {
		return ""
	}
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	path, err := keyFilePath(d.Path, u)
	if err != nil {
		return ""
	}
	return filepath.Clean(path)
}

// sweep removes what writers that were killed left behind: nothing but a writer ever reads it.
func (r *rotation) sweep() error {
	paths := []string{filepath.Join(r.Path, FileName)}
	for _, raw := range r.to {
		if path := r.pathOf(raw); path != "" {
			paths = append(paths, path, path+nextSuffix)
		}
	}
	for _, path := range paths {
		dir := filepath.Dir(path)
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fault.New(fault.Invalid, "seal: %w", err)
		}
		for _, e := range entries {
			if !temporary(e.Name(), filepath.Base(path)) {
				continue
			}
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return fault.New(fault.Invalid, "seal: %w", err)
			}
		}
	}
	return nil
}

// prepare makes what key files are missing, and the new wraps, and proves that each opens.
func (r *rotation) prepare(ctx context.Context) error {
	for _, raw := range r.to {
		by := raw
		if path := r.pathOf(raw); path != "" {
			var err error
			if by, err = r.prepareFile(path); err != nil {
				return err
			}
		}
		wrapped, err := r.wrap(ctx, by, r.key)
		if err == nil {
			err = r.verify(ctx, by, wrapped, r.key)
		}
		if err != nil {
			return err
		}
		r.fresh = append(r.fresh, fileWrap{URL: shown(raw), Wrapped: wrapped})
	}
	return nil
}

// prepareFile returns the URL of the key file that wraps: the one named, or its successor.
func (r *rotation) prepareFile(path string) (string, error) {
	if !r.ours[path] {
		made, err := makeKeyFile(path)
		if made {
			r.made = append(r.made, path)
			r.at("made " + filepath.Base(path))
		}
		return KeyFileURL(path), err
	}
	next := path + nextSuffix
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a rotation that ended early; it opens nothing
		return "", fault.New(fault.Invalid, "seal key file: %w", err)
	}
	r.swaps = append(r.swaps, path)
	key := make([]byte, keySize)
	rand.Read(key)
	if err := writeNew(next, key); err != nil {
		return "", fault.New(fault.Invalid, "seal key file: %w", err)
	}
	r.at("made " + filepath.Base(next))
	return KeyFileURL(next), nil
}

// undo removes what prepare made: nothing needs it.
func (r *rotation) undo() {
	for _, path := range r.swaps {
		_ = os.Remove(path + nextSuffix) // the next rotation would do it as well
	}
	for _, path := range r.made {
		_ = os.Remove(path)
	}
}

// swap puts new key files in the place of old ones, while seal.json holds the wraps of both.
func (r *rotation) swap(ctx context.Context) error {
	if len(r.swaps) == 0 {
		return nil
	}
	if err := r.write(append(slices.Clone(r.fresh), r.kept...)); err != nil {
		r.undo()
		return err
	}
	r.at("wraps of both")
	for _, path := range r.swaps {
		if err := os.Rename(path+nextSuffix, path); err != nil {
			return fault.New(fault.Invalid, "seal key file: %w: repeat the rotation; until then every key that is there opens the directory", err)
		}
		if err := syncDir(filepath.Dir(path)); err != nil {
			return fault.New(fault.Internal, "seal key file %s: %w", path, err)
		}
		r.at("replaced " + filepath.Base(path))
	}
	for _, w := range r.fresh {
		if slices.Contains(r.swaps, r.pathOf(w.URL)) { // as it lies on the disk now
			if err := r.verify(ctx, w.URL, w.Wrapped, r.key); err != nil {
				return err
			}
		}
	}
	return nil
}

// write replaces seal.json, durably and at once.
func (r *rotation) write(wraps []fileWrap) error {
	content, err := file{Version: 1, Wraps: wraps}.encode()
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(r.Path, FileName), content)
}

// finish removes key files that no wrap names any more, now that the wraps are on the disk.
func (r *rotation) finish(before file) (*Rotated, error) {
	out := &Rotated{Opened: r.opened, Replaced: r.swaps}
	var paths []string
	for _, w := range r.fresh {
		out.Wraps = append(out.Wraps, w.URL)
		paths = append(paths, r.pathOf(w.URL))
	}
	var errs []error
	for _, w := range before.Wraps {
		path := r.pathOf(w.URL)
		if slices.Contains(out.Wraps, w.URL) || slices.Contains(out.Dropped, w.URL) || path != "" && slices.Contains(paths, path) {
			continue
		}
		out.Dropped = append(out.Dropped, w.URL)
		switch {
		case !r.ours[path]:
		case filepath.Dir(path) != filepath.Clean(r.Path):
			out.Left = append(out.Left, path)
		default:
			if err := os.Remove(path); err != nil {
				errs = append(errs, fault.New(fault.Internal, "seal key file: the new wraps hold, the old key is still there: %w", err))
				continue
			}
			r.at("removed " + filepath.Base(path))
			out.Removed = append(out.Removed, path)
		}
	}
	if err := syncDir(r.Path); err != nil {
		errs = append(errs, fault.New(fault.Internal, "seal: %w", err))
	}
	return out, errors.Join(errs...)
}

// at is where a test may end the process.
func (d Directory) at(step string) {
	if d.step != nil {
		d.step(step)
	}
}
