package seal

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// MaxEnvelope bounds an envelope.
const MaxEnvelope = maxFile

// NewEnvelope makes a data key for one file that leaves its machine, such as a snapshot, and wraps it by each of the keepers: the
// envelope, which travels in the file. Relative file:// URLs are relative to dir; a key file that is missing is made.
func NewEnvelope(ctx context.Context, dir string, urls []string) ([]byte, *Sealer, error) {
	if len(urls) == 0 || len(urls) > maxWraps {
		return nil, nil, fault.New(fault.Invalid, "seal: %d URLs, want 1 to %d", len(urls), maxWraps)
	}
	key := make([]byte, keySize)
	rand.Read(key)
	f := file{Version: 1}
	for _, raw := range urls {
		if strings.HasPrefix(raw, keyFileScheme+"://") {
			if err := ensureKeyFile(dir, raw); err != nil {
				return nil, nil, err
			}
		}
		wrapped, err := wrap(ctx, dir, raw, key)
		if err != nil {
			return nil, nil, err
		}
		f.Wraps = append(f.Wraps, fileWrap{URL: shown(raw), Wrapped: wrapped})
	}
	envelope, err := json.Marshal(f)
	if err != nil {
		return nil, nil, fault.New(fault.Internal, "seal: %w", err)
	}
	sealer, err := newSealer(key)
	return envelope, sealer, err
}

// OpenEnvelope opens what NewEnvelope made, by the first keeper that can: urls, wherever the key lies now, then those that the
// envelope names. Unavailable: no keeper opens it; the error says why of each.
func OpenEnvelope(ctx context.Context, dir string, envelope []byte, urls []string) (*Sealer, error) {
	f, err := parseFile(envelope)
	if err != nil {
		return nil, fault.New(fault.Invalid, "envelope: %w", err)
	}
	var problems []error
	for _, w := range f.Wraps {
		for _, raw := range append(slices.Clone(urls), w.URL) {
			key, err := unwrap(ctx, dir, raw, w.Wrapped)
			if err == nil {
				return newSealer(key)
			}
			if !slices.ContainsFunc(problems, func(have error) bool { return have.Error() == err.Error() }) {
				problems = append(problems, err)
			}
		}
	}
	return nil, fault.New(fault.Unavailable, "no key opens it: %w", errors.Join(problems...))
}
