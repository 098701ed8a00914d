package login

import (
	"time"

	"github.com/iapmesh/iapmesh/internal/identity"
	"github.com/iapmesh/iapmesh/node/state"
)

// Patient lets identity providers take many times as long as usual: a busy machine may stop for seconds in the middle of a handshake.
func (l *Login) Patient() { l.providers.patience = 5 * time.Minute }

// ParseReturn is parseReturn, as the address that a browser would be sent to.
func ParseReturn(host, address, port string) (string, error) {
	t, err := parseReturn(host, address)
	if err != nil {
		return "", err
	}
	return t.url(port), nil
}

// SplitHost is splitHost.
func SplitHost(s string) (host, port string, ok bool) { return splitHost(s) }

// IdentityOf is identityOf.
func IdentityOf(provider, groupsClaim string, payload []byte) (identity.Identity, error) {
	return identityOf(provider, groupsClaim, payload)
}

// OpenAll tries a text as everything that a browser brings back sealed, and reports whether it was any of it.
func (l *Login) OpenAll(view *state.View, context, text string) (bool, error) {
	b, err := l.boxes(view)
	if err != nil {
		return false, err
	}
	for p := range b.of {
		if _, err := b.open(p, context, text); err == nil {
			return true, nil
		}
	}
	return false, nil
}

// Unpack is unpack.
func Unpack(packed []byte) (string, error) { return unpack(packed) }

// Pack is pack.
func Pack(token string) ([]byte, error) { return pack(token) }
