package seal

import (
	"fmt"
	"strconv"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// WrapForSnapshot encrypts an audience's key to a snapshot's opening key, so that the snapshot can be restored where no member of
// the audience is left.
func WrapForSnapshot(key AudienceKey, opening []byte) ([]byte, error) {
	if key.k == nil {
		return nil, fault.New(fault.Internal, "audience key: missing")
	}
	out, err := WrapTo(opening, snapshotInfo(key.audience, key.version), key.k())
	if err != nil {
		return nil, fmt.Errorf("audience %s: %w", key.audience, err)
	}
	return out, nil
}

// OpenFromSnapshot is the inverse of WrapForSnapshot. Denied: it was wrapped to another key, or for another audience or version.
func OpenFromSnapshot(opening SealingKey, audience string, version uint32, wrapped []byte) (AudienceKey, error) {
	key, err := UnwrapFrom(opening, snapshotInfo(audience, version), wrapped)
	if err != nil {
		return AudienceKey{}, fmt.Errorf("audience %s, version %d: %w", audience, version, err)
	}
	if len(key) != keySize {
		return AudienceKey{}, fault.New(fault.Invalid, "audience %s: a key of %d bytes, want %d", audience, len(key), keySize)
	}
	return holdAudienceKey(audience, version, key), nil
}

func snapshotInfo(audience string, version uint32) []byte {
	return bind("iapmesh/snapshot/audience/v1", audience, strconv.FormatUint(uint64(version), 10))
}
