package keyring

import (
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/identity"
)

// MaxSession is how long the longest session lasts from its sign-in. A revocation without block is pruned after it.
const MaxSession = 12 * time.Hour

// MaxSessionID bounds a session id.
const MaxSessionID = 128

// RevocationRequest asks to refuse a session or a user.
type RevocationRequest struct {
	Kind   RevocationKind
	Value  string // session id, or <idp>/<subject>
	Block  bool   // users only: new sign-ins too, until lifted
	Reason string
	By     string
	Now    time.Time
}

// NewRevocation makes the record. Its Revision is that of the commit which stores it.
func NewRevocation(r RevocationRequest) (Revocation, error) {
	switch r.Kind {
	case RevokeSession:
		if err := ValidSessionID(r.Value); err != nil {
			return Revocation{}, err
		}
		if r.Block {
			return Revocation{}, fault.New(fault.Invalid, "block: a session has no sign-ins to block; revoke the user")
		}
	case RevokeSubject:
		if err := (identity.Identity{Subject: r.Value}).Validate(); err != nil {
			return Revocation{}, err
		}
	default:
		return Revocation{}, fault.New(fault.Invalid, "kind %.40q: want session or subject", string(r.Kind))
	}
	if err := validText("value", r.Value, 512); err != nil {
		return Revocation{}, err
	}
	if err := validText("reason", r.Reason, MaxReason); err != nil {
		return Revocation{}, err
	}
	if err := validText("by", r.By, MaxBy); err != nil {
		return Revocation{}, err
	}
	out := Revocation{Kind: r.Kind, Value: r.Value, Block: r.Block, Reason: r.Reason, By: r.By, At: r.Now}
	if !r.Block {
		out.ExpiresAt = r.Now.Add(MaxSession + Skew)
	}
	return out, nil
}

// ValidSessionID refuses what cannot be a session's id: 1 to 128 of A-Z, a-z, 0-9, dash and underscore.
func ValidSessionID(id string) error {
	if id == "" || len(id) > MaxSessionID {
		return fault.New(fault.Invalid, "session id: %d bytes, want 1 to %d", len(id), MaxSessionID)
	}
	for i := range len(id) {
		if _, ok := base62Digit(id[i]); !ok && id[i] != '-' && id[i] != '_' {
			return fault.New(fault.Invalid, "session id %q: want letters, digits, dash and underscore", id)
		}
	}
	return nil
}

// Over reports whether the revocation may be pruned: every session that it refused has ended.
func (r *Revocation) Over(now time.Time) bool {
	return !r.ExpiresAt.IsZero() && !now.Before(r.ExpiresAt)
}

// MergeRevocation is what to write where old stands already: the later word, but a block stays until it is lifted.
func MergeRevocation(old, next Revocation) Revocation {
	if old.Block && !next.Block {
		next.Block, next.ExpiresAt = true, time.Time{}
	}
	return next
}
