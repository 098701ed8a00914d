package login

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/identity"
)

// The caps on what an id token says, beyond which it is refused or, where only people read it, left out.
const (
	maxSubject = 255 // OpenID Connect Core 1.0 §2
	maxEmail   = 254
	maxName    = 256
	maxGroups  = 1000
	maxGroup   = 256
	maxAMR     = 8

	defaultGroupsClaim = "groups"
)

// claimSet is a verified token's payload, with its names as they are written: encoding/json would fold their case.
type claimSet map[string]json.RawMessage

// identityOf makes an identity of a verified id token's payload.
func identityOf(provider, groupsClaim string, payload []byte) (identity.Identity, error) {
	var c claimSet
	if err := json.Unmarshal(payload, &c); err != nil {
		return identity.Identity{}, fault.New(fault.Unauthenticated, "claims: not a JSON object")
	}
	sub := c.text("sub")
	if sub == "" || len(sub) > maxSubject {
		return identity.Identity{}, fault.New(fault.Unauthenticated, "claims: sub of %d bytes, want 1 to %d", len(sub), maxSubject)
	}
	if groupsClaim == "" {
		groupsClaim = defaultGroupsClaim
	}
	groups, err := c.groups(provider, groupsClaim)
	if err != nil {
		return identity.Identity{}, err
	}
	id := identity.Identity{Subject: provider + "/" + sub, Email: c.email(), Name: c.name(), Groups: groups, AuthTime: c.time("auth_time"), AMR: c.amr()}
	if id.AuthTime.IsZero() {
		id.AuthTime = c.time("iat")
	}
	if err := id.Validate(); err != nil {
		return identity.Identity{}, fault.Wrap(fault.Unauthenticated, err)
	}
	return id, nil
}

// text is a claim that is a string; empty for any other.
func (c claimSet) text(name string) string {
	var s string
	if json.Unmarshal(c[name], &s) != nil {
		return ""
	}
	return s
}

func (c claimSet) time(name string) time.Time {
	var n json.Number
	if json.Unmarshal(c[name], &n) != nil {
		return time.Time{}
	}
	seconds, err := strconv.ParseFloat(string(n), 64)
	if err != nil || seconds <= 0 || seconds > 1<<40 {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0)
}

// email is the address if it is one, and the provider does not say that it is unverified. Some say it in a string.
func (c claimSet) email() string {
	email := c.text("email")
	local, domain, _ := strings.Cut(email, "@")
	if len(email) > maxEmail || local == "" || domain == "" || strings.Contains(domain, "@") || strings.ContainsFunc(email, unprintable) || strings.Contains(email, " ") {
		return ""
	}
	if raw, said := c["email_verified"]; said {
		var verified bool
		if json.Unmarshal(raw, &verified) != nil {
			verified = strings.EqualFold(c.text("email_verified"), "true")
		}
		if !verified {
			return ""
		}
	}
	return email
}

func (c claimSet) name() string {
	for _, claim := range []string{"name", "preferred_username"} {
		if s := c.text(claim); s != "" && len(s) <= maxName && !strings.ContainsFunc(s, unprintable) {
			return s
		}
	}
	return ""
}

// groups are those of one claim, a string or an array of them, sorted, each once. A claim of another shape is refused: that a
// user is in no group may be what lets them in.
func (c claimSet) groups(provider, claim string) ([]string, error) {
	raw, there := c[claim]
	if !there || string(raw) == "null" {
		return nil, nil
	}
	var names []string
	if json.Unmarshal(raw, &names) != nil {
		var one string
		if json.Unmarshal(raw, &one) != nil {
			return nil, fault.New(fault.Unauthenticated, "claim %.60q: want a string or an array of strings", claim)
		}
		names = []string{one}
	}
	if len(names) > maxGroups {
		return nil, fault.New(fault.Unauthenticated, "claim %.60q: %d groups, at most %d", claim, len(names), maxGroups)
	}
	out := make([]string, 0, len(names))
	for _, n := range names {
		if len(n) > maxGroup {
			return nil, fault.New(fault.Unauthenticated, "claim %.60q: group of %d bytes, at most %d", claim, len(n), maxGroup)
		}
		if n != "" {
			out = append(out, provider+"/"+n)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// amr is how the user proved who they are (RFC 8176).
func (c claimSet) amr() []string {
	var all []string
	if json.Unmarshal(c["amr"], &all) != nil {
		return nil
	}
	var out []string
	for _, m := range all {
		if len(out) < maxAMR && m != "" && len(m) <= 32 && !strings.ContainsFunc(m, unprintable) {
			out = append(out, m)
		}
	}
	return out
}

func unprintable(c rune) bool {
	return c < ' ' || c >= 0x7f && c < 0xa0 || c == '\u2028' || c == '\u2029' || c == '\ufeff'
}

// plain cuts what a stranger wrote down to what can be shown: letters, digits and a few signs.
func plain(s string, n int) string {
	s = strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c == '.' {
			return c
		}
		return -1
	}, s)
	return s[:min(len(s), n)]
}
