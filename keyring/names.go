package keyring

import (
	"crypto/ed25519"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// Skew is how far two clocks of the mesh may differ: every lifetime is stretched by it, at both ends.
const Skew = 60 * time.Second

// The sizes of what people write into records, in bytes.
const (
	MaxName     = 63
	MaxReason   = 512
	MaxBy       = 256
	MaxSelector = 253
)

// ValidName refuses what cannot stand in a SPIFFE path, a DNS label or a file name: 1 to 63 of a-z, 0-9 and, inside, dot, dash
// and underscore. what says which name it is, for the error.
func ValidName(what, name string) error {
	if name == "" {
		return fault.New(fault.Invalid, "%s: missing", what)
	}
	if len(name) > MaxName {
		return fault.New(fault.Invalid, "%s: %d bytes, at most %d", what, len(name), MaxName)
	}
	for i := range len(name) {
		c := name[i]
		alnum := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		inner := i > 0 && i < len(name)-1 && (c == '.' || c == '-' || c == '_')
		if !alnum && !inner {
			return fault.New(fault.Invalid, "%s %q: want lower-case letters and digits, and dot, dash or underscore between them", what, name)
		}
	}
	return nil
}

// ValidRegion refuses a region that is no lower-case DNS label.
func ValidRegion(region string) error {
	if err := ValidName("region", region); err != nil {
		return err
	}
	for i := range len(region) {
		if region[i] == '.' || region[i] == '_' {
			return fault.New(fault.Invalid, "region %q: want lower-case letters, digits and dashes", region)
		}
	}
	return nil
}

// validSelector lets a route selector stand in an audience's name: printable ASCII, no slash, no space; "_" is taken by the
// empty one.
func validSelector(s string) error {
	if len(s) > MaxSelector {
		return fault.New(fault.Invalid, "route selector: %d bytes, at most %d", len(s), MaxSelector)
	}
	if s == "_" {
		return fault.New(fault.Invalid, "route selector %q: leave it empty for every route", s)
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f || s[i] == '/' {
			return fault.New(fault.Invalid, "route selector %q: want printable ASCII without spaces and slashes", s)
		}
	}
	return nil
}

// validText refuses free text that is too long, no UTF-8, or could forge a line in a log.
func validText(what, s string, limit int) error {
	switch {
	case len(s) > limit:
		return fault.New(fault.Invalid, "%s: %d bytes, at most %d", what, len(s), limit)
	case !utf8.ValidString(s):
		return fault.New(fault.Invalid, "%s: not UTF-8", what)
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return fault.New(fault.Invalid, "%s: control characters", what)
		}
	}
	return nil
}

func validRoles(what string, roles []Role) error {
	if len(roles) == 0 {
		return fault.New(fault.Invalid, "%s: want at least one of control, proxy, aggregator", what)
	}
	if len(roles) > 3 {
		return fault.New(fault.Invalid, "%s: %d, at most 3", what, len(roles))
	}
	for i, r := range roles {
		switch r {
		case RoleControl, RoleProxy, RoleAggregator:
		default:
			return fault.New(fault.Invalid, "%s: unknown role %.40q; want control, proxy or aggregator", what, string(r))
		}
		for _, earlier := range roles[:i] {
			if earlier == r {
				return fault.New(fault.Invalid, "%s: %s twice", what, r)
			}
		}
	}
	return nil
}

func validPublicKey(what string, pub ed25519.PublicKey) error {
	if len(pub) != ed25519.PublicKeySize {
		return fault.New(fault.Invalid, "%s: %d bytes, want an Ed25519 public key of %d", what, len(pub), ed25519.PublicKeySize)
	}
	return nil
}
