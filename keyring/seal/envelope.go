package seal

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// MaxEnvelope bounds an envelope.
const MaxEnvelope = maxFile

// NewEnvelope makes a data key for one file that leaves its machine, such as a snapshot, and wraps it by each of d.URLs: the envelope,
// which travels in the file. Relative file:// URLs are relative to d.Path; a key file that is missing is made.
func (d Directory) NewEnvelope(ctx context.Context) ([]byte, *Sealer, error) {
	f, key, err := d.newKey(ctx)
	if err != nil {
		return nil, nil, err
	}
	envelope, err := json.Marshal(f)
	if err != nil {
		return nil, nil, fault.New(fault.Internal, "seal: %w", err)
	}
	sealer, err := newSealer(key, f.Wraps[0].URL)
	return envelope, sealer, err
}

// OpenEnvelope opens what NewEnvelope made, by the first keeper that can: d.URLs, wherever the key lies now, then those that the
// envelope names. Unavailable: no keeper opens it; the error says why of each.
func (d Directory) OpenEnvelope(ctx context.Context, envelope []byte) (*Sealer, error) {
	f, err := parseFile(envelope)
	if err != nil {
		return nil, fault.New(fault.Invalid, "envelope: %w", err)
	}
	var problems []error
	for _, w := range f.Wraps {
		for _, raw := range append(slices.Clone(d.URLs), w.URL) {
			key, err := d.unwrapBy(ctx, raw, w.Wrapped)
			if err == nil {
				return newSealer(key, shown(raw))
			}
			if !slices.ContainsFunc(problems, func(have error) bool { return have.Error() == err.Error() }) {
				problems = append(problems, err)
			}
		}
	}
	return nil, fault.New(fault.Unavailable, "no key opens it: %w", errors.Join(problems...))
}
