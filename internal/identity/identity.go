// Package identity says who a caller is: subject, e-mail, groups, and how and when they proved it. It holds what an identity
// provider asserted, after it was verified; it verifies nothing itself.
package identity

import (
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// Identity is a verified user. Subject and Groups carry the provider's name before a slash ("okta/00u1", "okta/finance"), so
// that two providers can never speak for the same user or group.
type Identity struct {
	Subject  string    // <idp>/<subject>; never an e-mail
	Email    string    // may be empty; never used as a key
	Name     string    // for people to read
	Groups   []string  // <idp>/<group>
	AuthTime time.Time // when the user last proved who they are
	AMR      []string  // how (RFC 8176)
}

// Provider is the identity provider's name in the subject.
func (i Identity) Provider() string {
	provider, _, _ := strings.Cut(i.Subject, "/")
	return provider
}

// Domain is the e-mail's domain, lower case (ASCII); empty if the e-mail does not hold exactly one @.
func (i Identity) Domain() string {
	local, domain, ok := strings.Cut(i.Email, "@")
	if !ok || local == "" || strings.Contains(domain, "@") {
		return ""
	}
	return strings.Map(lowerASCII, domain)
}

// Validate refuses an identity that later code could misread.
func (i Identity) Validate() error {
	provider, subject, ok := strings.Cut(i.Subject, "/")
	switch {
	case !ok || provider == "" || subject == "":
		return fault.New(fault.Invalid, "subject %.80q: want <idp>/<subject>", i.Subject)
	case len(i.Subject) > 512:
		return fault.New(fault.Invalid, "subject: %d bytes, at most 512", len(i.Subject))
	case strings.ContainsFunc(i.Subject+i.Email+i.Name, isControl):
		return fault.New(fault.Invalid, "subject %.80q: control characters", i.Subject)
	}
	for _, g := range i.Groups {
		if !strings.HasPrefix(g, provider+"/") {
			return fault.New(fault.Invalid, "group %.80q: does not belong to provider %s", g, provider)
		}
		if strings.ContainsFunc(g, isControl) {
			return fault.New(fault.Invalid, "group %.80q: control characters", g)
		}
	}
	return nil
}

// lowerASCII folds ASCII alone: Unicode folds letters of other scripts into ASCII, and so one domain into another.
func lowerASCII(r rune) rune {
	if r >= 'A' && r <= 'Z' {
		return r + ('a' - 'A')
	}
	return r
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }
