package login

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/session"
)

const (
	stateCookie   = session.CookiePrefix + "state"
	attemptPrefix = session.CookiePrefix + "attempt_"

	attemptLife = 10 * time.Minute
	maxAttempts = 4 // in a browser at a time; a further one replaces the oldest

	stateLength = 26 // rand.Text's
	idLength    = 8 + stateLength
)

// request is what a host asks of the sign-in host.
type request struct {
	Target  target `json:"t"`
	State   string `json:"s,omitempty"` // stateHash; empty if the sign-in host asks for itself
	Expires int64  `json:"e"`
}

// attempt is one way to a provider and back. It lies, sealed, in a cookie whose name ends in the attempt's id, which is also the
// state parameter: a callback without the cookie of its state is somebody else's.
type attempt struct {
	Request  request `json:"r"`
	Provider string  `json:"p"`
	Digest   string  `json:"d"` // of the provider's specification: a code goes back to nobody else
	Verifier string  `json:"v"` // PKCE
	Nonce    string  `json:"n"`
	Redirect string  `json:"u"` // the redirect URI, port and all, as it was sent
	Began    int64   `json:"b"`
}

// state is the value of this host's state cookie, set anew if there is none. Tabs share it: a ticket consumes it, and a second
// ticket then finds the session that the first one brought.
func (v *visit) state() string {
	value := cookieValue(v.r, stateCookie)
	if !isText(value) {
		value = rand.Text()
	}
	v.setCookie(stateCookie, value, attemptLife+time.Minute)
	return value
}

// stateHash binds a state to its host.
func stateHash(host, state string) string {
	sum := sha256.Sum256([]byte("iapmesh/state/v1 " + host + " " + state))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func sameState(want, host, state string) bool {
	return isText(state) && subtle.ConstantTimeCompare([]byte(want), []byte(stateHash(host, state))) == 1
}

// newAttemptID begins with its time, so that the oldest can be told by name.
func newAttemptID(now time.Time) string { return fmt.Sprintf("%08x", uint32(now.Unix())) + rand.Text() }

func validAttemptID(id string) bool {
	return len(id) == idLength && isText(id[8:]) && strings.Trim(id[:8], "0123456789abcdef") == ""
}

// isText reports whether s is as rand.Text writes it.
func isText(s string) bool {
	return len(s) == stateLength && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}

func (v *visit) writeAttempt(b *boxes, id string, a attempt) error {
	var open []string
	for _, c := range v.r.Cookies() {
		if id, ok := strings.CutPrefix(c.Name, attemptPrefix); ok && validAttemptID(id) {
			open = append(open, id)
		}
	}
	slices.Sort(open)
	for _, old := range open[:max(len(open)-maxAttempts+1, 0)] {
		v.clearCookie(attemptPrefix + old)
	}
	value, err := b.sealJSON(sealedAttempt, id, a)
	if err != nil {
		return err
	}
	v.setCookie(attemptPrefix+id, value, attemptLife)
	return nil
}

// takeAttempt reads the attempt that a callback belongs to, and makes the browser forget it: it is used once.
func (v *visit) takeAttempt(b *boxes, id string) (attempt, error) {
	if !validAttemptID(id) {
		return attempt{}, fault.New(fault.Invalid, "callback: no valid state")
	}
	value := cookieValue(v.r, attemptPrefix+id)
	if value == "" {
		return attempt{}, fault.New(fault.Unauthenticated, "callback: this browser began no such sign-in, or it was finished")
	}
	v.clearCookie(attemptPrefix + id)
	var a attempt
	if err := b.openJSON(sealedAttempt, id, value, &a); err != nil {
		return attempt{}, err
	}
	if now := v.cfg.Now().Unix(); now-a.Began > int64(attemptLife/time.Second) || a.Began-now > 60 {
		return attempt{}, fault.New(fault.Unauthenticated, "callback: the sign-in took longer than %s", attemptLife)
	}
	return a, nil
}

// cookieValue is empty if the cookie is not there, or there twice with different values.
func cookieValue(r *http.Request, name string) string {
	found := ""
	for _, c := range r.CookiesNamed(name) {
		if found != "" && found != c.Value {
			return ""
		}
		found = c.Value
	}
	return found
}

func (v *visit) setCookie(name, value string, life time.Duration) {
	http.SetCookie(v.w, &http.Cookie{
		Name: name, Value: value, Path: "/", MaxAge: int(life / time.Second), HttpOnly: true, Secure: true, SameSite: http.SameSiteLaxMode,
	})
}

func (v *visit) clearCookie(name string) {
	http.SetCookie(v.w, &http.Cookie{Name: name, Path: "/", MaxAge: -1, HttpOnly: true, Secure: true, SameSite: http.SameSiteLaxMode})
}
