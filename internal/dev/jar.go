package dev

import (
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
)

// Jar keeps cookies as browsers do: shared by the ports of a host, and with the rules of RFC 6265bis that net/http/cookiejar
// leaves out: name prefixes, no Secure cookie from a plain page, and the limit of 4,096 bytes, past which a browser drops a
// cookie without a word.
type Jar struct{ jar *cookiejar.Jar }

var _ http.CookieJar = (*Jar)(nil)

// NewJar makes an empty jar.
func NewJar() *Jar {
	jar, _ := cookiejar.New(nil) // never returns an error (net/http/cookiejar)
	return &Jar{jar: jar}
}

// SetCookies keeps those cookies that a browser would keep.
func (j *Jar) SetCookies(u *url.URL, cookies []*http.Cookie) {
	kept := make([]*http.Cookie, 0, len(cookies))
	for _, c := range cookies {
		if acceptable(u, c) {
			kept = append(kept, c)
		}
	}
	j.jar.SetCookies(u, kept)
}

// Cookies are those that a browser would send to u; only names and values are set.
func (j *Jar) Cookies(u *url.URL) []*http.Cookie { return j.jar.Cookies(u) }

func acceptable(u *url.URL, c *http.Cookie) bool {
	name := strings.ToLower(c.Name) // prefixes match in any case (RFC 6265bis §5.7)
	secure := c.Secure && u.Scheme == "https"
	switch {
	case len(c.Name)+len(c.Value) > 4096:
		return false
	case c.Secure && !secure, c.SameSite == http.SameSiteNoneMode && !c.Secure:
		return false
	case strings.HasPrefix(name, "__secure-") && !secure:
		return false
	case strings.HasPrefix(name, "__host-") && (!secure || c.Path != "/" || c.Domain != ""):
		return false
	}
	return true
}
