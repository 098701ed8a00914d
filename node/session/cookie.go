package session

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// CookieName is the session cookie's. What does not fit goes on in CookieName_1, CookieName_2, …
const CookieName = CookiePrefix + "session"

// CookiePrefix begins the name of every cookie that the mesh sets; Strip removes them all.
const CookiePrefix = "__Host-iapmesh_"

const (
	chunkSize = 3800 // bytes of value: browsers take 4,096 with name and attributes
	maxChunks = 4
	maxScan   = 64 << 10 // bytes of Cookie headers that are looked at
)

// WriteCookie sets the session cookie, HttpOnly, Secure, SameSite=Lax, for this host alone. Where the token takes several cookies,
// the first begins with their count and a tilde, so that one left over from a longer token is never taken for a part.
func WriteCookie(w http.ResponseWriter, token string, life time.Duration) {
	n := (len(token) + chunkSize - 1) / chunkSize
	for i := range max(n, 1) {
		value := token[i*chunkSize : min((i+1)*chunkSize, len(token))]
		if i == 0 && n > 1 {
			value = strconv.Itoa(n) + "~" + value
		}
		http.SetCookie(w, cookie(chunkName(i), value, max(int(life/time.Second), 1)))
	}
}

// ReadCookie returns the token in the request's cookies; empty if there is none, or if it is incomplete, ambiguous or too large.
func ReadCookie(r *http.Request) string {
	first := find(r.Header["Cookie"], CookieName)
	count, rest, chunked := strings.Cut(first, "~")
	if !chunked {
		return first
	}
	n := 0
	if len(count) == 1 {
		n = int(count[0] - '0')
	}
	if n < 2 || n > maxChunks {
		return ""
	}
	var b strings.Builder
	b.WriteString(rest)
	for i := 1; i < n; i++ {
		part := find(r.Header["Cookie"], chunkName(i))
		if part == "" || strings.Contains(part, "~") {
			return ""
		}
		b.WriteString(part)
	}
	if b.Len() > MaxToken {
		return ""
	}
	return b.String()
}

// ClearCookie makes the browser forget the session cookie, and the further parts that the request has.
func ClearCookie(w http.ResponseWriter, r *http.Request) {
	for i := range maxChunks {
		if i == 0 || has(r.Header["Cookie"], chunkName(i)) {
			http.SetCookie(w, cookie(chunkName(i), "", -1))
		}
	}
}

// StripCookies removes the mesh's cookies from a request's headers, before it is forwarded, and leaves the others as they are.
func StripCookies(h http.Header) {
	lines := h["Cookie"]
	kept := make([]string, 0, len(lines))
	changed := false
	for _, line := range lines {
		rest, stripped := strip(line)
		changed = changed || stripped
		if rest != "" {
			kept = append(kept, rest)
		}
	}
	switch {
	case !changed:
	case len(kept) == 0:
		delete(h, "Cookie")
	default:
		h["Cookie"] = kept
	}
}

// strip returns a Cookie header without ours, and whether there was one.
func strip(line string) (string, bool) {
	found := false
	for pair := range strings.SplitSeq(line, ";") {
		found = found || ours(pair)
	}
	if !found {
		return line, false
	}
	var b strings.Builder
	for pair := range strings.SplitSeq(line, ";") {
		switch {
		case ours(pair):
		case b.Len() == 0:
			b.WriteString(trim(pair))
		default:
			b.WriteByte(';')
			b.WriteString(pair)
		}
	}
	return b.String(), true
}

// ours folds case: an application's framework might.
func ours(pair string) bool {
	pair = trim(pair)
	return len(pair) >= len(CookiePrefix) && strings.EqualFold(pair[:len(CookiePrefix)], CookiePrefix)
}

func cookie(name, value string, maxAge int) *http.Cookie {
	return &http.Cookie{Name: name, Value: value, Path: "/", MaxAge: maxAge, HttpOnly: true, Secure: true, SameSite: http.SameSiteLaxMode}
}

func chunkName(i int) string {
	if i == 0 {
		return CookieName
	}
	return CookieName + "_" + strconv.Itoa(i)
}

// find returns a cookie's value; empty if it is not there, too long, or there twice with different values: which of them is ours
// cannot be told.
func find(lines []string, name string) string {
	found, scanned := "", 0
	for _, line := range lines {
		if scanned += len(line); scanned > maxScan {
			return ""
		}
		for pair := range strings.SplitSeq(line, ";") {
			value, ok := strings.CutPrefix(trim(pair), name+"=")
			if !ok || value == "" {
				continue
			}
			if len(value) > chunkSize+2 || (found != "" && found != value) {
				return ""
			}
			found = value
		}
	}
	return found
}

func has(lines []string, name string) bool {
	for _, line := range lines {
		for pair := range strings.SplitSeq(line, ";") {
			if strings.HasPrefix(trim(pair), name+"=") {
				return true
			}
		}
	}
	return false
}

func trim(s string) string { return strings.Trim(s, " \t") }
