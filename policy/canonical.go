package policy

import (
	"strings"
	"unicode/utf8"

	"github.com/iapmesh/iapmesh/internal/fault"
)

const (
	maxName     = 253 // bytes of a name or an id
	maxPath     = 16 << 10
	maxSegments = 256 // of a path: each costs an element of context.http.under
)

// checkName refuses names that would be unreadable or ambiguous in an id or a record.
func checkName(s string) error {
	switch {
	case s == "":
		return fault.New(fault.Invalid, "empty")
	case len(s) > maxName:
		return fault.New(fault.Invalid, "%d bytes, at most %d", len(s), maxName)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r <= 0x20 || r == 0x7f }):
		return fault.New(fault.Invalid, "%.60q: white space, control characters or no UTF-8", s)
	}
	return nil
}

// checkPath says what keeps a path from being canonical; empty if nothing does. The proxy has canonicalised already: this is
// the second lock, so that no caller can have "/public/../admin" judged as something under /public.
func checkPath(p string) string {
	switch {
	case !strings.HasPrefix(p, "/"):
		return "not absolute"
	case len(p) > maxPath:
		return "too long"
	case strings.Contains(p, "//"):
		return "empty segment"
	case strings.ContainsAny(p, "\\\x00"):
		return "backslash or NUL"
	case strings.Count(p, "/") > maxSegments:
		return "too many segments"
	}
	if !strings.Contains(p, "/.") {
		return ""
	}
	for segment := range strings.SplitSeq(p, "/") {
		if segment == "." || segment == ".." {
			return "dot segment"
		}
	}
	return ""
}

// ancestors calls yield with every segment-boundary ancestor of a canonical path, itself included without its final slash.
func ancestors(p string, yield func(string)) {
	yield("/")
	for i := 1; i < len(p); i++ {
		if p[i] == '/' {
			yield(p[:i])
		}
	}
	if len(p) > 1 && p[len(p)-1] != '/' {
		yield(p)
	}
}

// cleanEmail lowers ASCII letters; empty if the address does not hold exactly one @ between two parts. Other letters stay as
// they are: folding them would make look-alikes equal (the Kelvin sign lowers to k).
func cleanEmail(s string) string {
	local, domain, ok := strings.Cut(s, "@")
	if !ok || local == "" || domain == "" || strings.Contains(domain, "@") || !plain(s) {
		return ""
	}
	return lowerASCII(s)
}

// cleanDomain lowers ASCII letters; empty if it cannot be an e-mail's domain.
func cleanDomain(s string) string {
	if s == "" || strings.ContainsAny(s, "@/*") || strings.HasPrefix(s, ".") || strings.HasSuffix(s, ".") || !plain(s) {
		return ""
	}
	return lowerASCII(s)
}

func plain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r <= 0x20 || r == 0x7f })
}

// cleanCountry returns two capital letters, or nothing.
func cleanCountry(s string) string {
	if len(s) != 2 || s[0] < 'A' || s[0] > 'Z' || s[1] < 'A' || s[1] > 'Z' {
		return ""
	}
	return s
}

func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}
