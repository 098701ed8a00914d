package login

import (
	"bytes"
	"compress/flate"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"sync/atomic"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/session"
	"github.com/iapmesh/iapmesh/node/state"
)

// purpose separates what is sealed: each has a key of its own, so that nothing sealed for one is ever taken for another.
type purpose string

const (
	sealedRequest purpose = "request/v1"  // from a host to the sign-in host
	sealedAttempt purpose = "attempt/v1"  // the cookie of one way to a provider and back
	sealedTicket  purpose = "ticket/v1"   // from the sign-in host back
	sealedSignOut purpose = "sign-out/v1" // from a host that a user signed out on
)

// maxPlain bounds what is opened, in bytes: a ticket's token and what lies around it.
const maxPlain = session.MaxToken + 4096

// boxes seal under keys derived from one hand-off secret (HKDF-SHA-256, AES-256-GCM with random nonces).
type boxes struct {
	secret *keyring.Secret
	of     map[purpose]cipher.AEAD
}

// keyCache remembers the boxes of the newest secret: opening it takes an HPKE decapsulation.
type keyCache struct{ last atomic.Pointer[boxes] }

// boxes returns those of a view. Unavailable: this node cannot open the hand-off secret, or not yet.
func (l *Login) boxes(view *state.View) (*boxes, error) {
	record := view.Keyring.Secrets[keyring.AudienceProxies+"/"+keyring.SecretHandoff]
	if b := l.keys.last.Load(); b != nil && record != nil && b.secret == record {
		return b, nil
	}
	secret, err := l.cfg.Secrets.Open(view.Keyring, keyring.AudienceProxies, keyring.SecretHandoff)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "hand-off secret: %w", err)
	}
	if len(secret) != 32 {
		return nil, fault.New(fault.Internal, "hand-off secret: %d bytes, want 32", len(secret))
	}
	b := &boxes{secret: record, of: map[purpose]cipher.AEAD{}}
	for _, p := range []purpose{sealedRequest, sealedAttempt, sealedTicket, sealedSignOut} {
		key, err := hkdf.Key(sha256.New, secret, nil, "iapmesh/login/"+string(p), 32)
		if err != nil {
			return nil, fault.New(fault.Internal, "hand-off key: %w", err)
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, fault.New(fault.Internal, "hand-off key: %w", err)
		}
		if b.of[p], err = cipher.NewGCMWithRandomNonce(block); err != nil {
			return nil, fault.New(fault.Internal, "hand-off key: %w", err)
		}
	}
	l.keys.last.Store(b)
	return b, nil
}

// seal encrypts as base64url; it opens only for the same purpose and context.
func (b *boxes) seal(p purpose, context string, plain []byte) string {
	return base64.RawURLEncoding.EncodeToString(b.of[p].Seal(nil, nil, plain, []byte(context)))
}

// open reads what seal wrote. Its error, of kind Unauthenticated, says nothing of the contents.
func (b *boxes) open(p purpose, context, text string) ([]byte, error) {
	bad := fault.New(fault.Unauthenticated, "%s: not sealed by this mesh, or for something else", p)
	if len(text) > base64.RawURLEncoding.EncodedLen(maxPlain) {
		return nil, bad
	}
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, bad
	}
	plain, err := b.of[p].Open(nil, nil, sealed, []byte(context))
	if err != nil {
		return nil, bad
	}
	return plain, nil
}

func (b *boxes) sealJSON(p purpose, context string, v any) (string, error) {
	plain, err := json.Marshal(v)
	if err != nil {
		return "", fault.New(fault.Internal, "seal %s: %w", p, err)
	}
	return b.seal(p, context, plain), nil
}

func (b *boxes) openJSON(p purpose, context, text string, v any) error {
	plain, err := b.open(p, context, text)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(plain, v); err != nil {
		return fault.New(fault.Unauthenticated, "%s: not understood: sealed by another version", p)
	}
	return nil
}

// pack compresses a token, most of which is base64 and much of that the names of groups: it must fit into an address. Nothing
// that a third party chooses is compressed with it, so that its length betrays nothing.
func pack(token string) ([]byte, error) {
	var out bytes.Buffer
	z, err := flate.NewWriter(&out, flate.BestCompression)
	if err == nil {
		if _, err = z.Write([]byte(token)); err == nil {
			err = z.Close()
		}
	}
	if err != nil {
		return nil, fault.New(fault.Internal, "pack a token: %w", err)
	}
	return out.Bytes(), nil
}

// unpack is pack's inverse, for at most session.MaxToken bytes.
func unpack(packed []byte) (string, error) {
	token, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(packed)), session.MaxToken+1))
	if err != nil || len(token) > session.MaxToken {
		return "", fault.New(fault.Unauthenticated, "ticket: not understood")
	}
	return string(token), nil
}
