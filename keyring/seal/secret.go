package seal

import (
	"fmt"
	"strconv"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// MaxSecret bounds a secret's plaintext.
const MaxSecret = 64 << 10

// NewSecret encrypts a secret of the key's audience, bound to audience, name and version.
func NewSecret(key AudienceKey, name string, plaintext []byte, now time.Time) (keyring.Secret, error) {
	if name == "" || len(name) > 512 || len(plaintext) > MaxSecret {
		return keyring.Secret{}, fault.New(fault.Invalid, "secret %.80q: a name of %d and a value of %d bytes, at most 512 and %d",
			name, len(name), len(plaintext), MaxSecret)
	}
	s := keyring.Secret{Audience: key.audience, Name: name, Version: key.version, At: now}
	x, err := key.cipher()
	if err != nil {
		return keyring.Secret{}, err
	}
	s.Ciphertext = x.seal(plaintext, secretContext(s))
	return s, nil
}

// OpenSecret decrypts a secret. Conflict: the key is of another audience or version than the secret.
func OpenSecret(key AudienceKey, s keyring.Secret) ([]byte, error) {
	if s.Audience != key.audience || s.Version != key.version {
		return nil, fault.New(fault.Conflict, "secret %s/%s, version %d: the key is %s", s.Audience, s.Name, s.Version, key.shown())
	}
	if len(s.Ciphertext) > MaxSecret+overhead {
		return nil, fault.New(fault.Invalid, "secret %s/%s: %d bytes, too many", s.Audience, s.Name, len(s.Ciphertext))
	}
	x, err := key.cipher()
	if err != nil {
		return nil, err
	}
	plaintext, err := x.open(s.Ciphertext, secretContext(s))
	if err != nil {
		return nil, fmt.Errorf("secret %s/%s: %w", s.Audience, s.Name, err)
	}
	return plaintext, nil
}

// Reseal moves a secret from one version of its audience's key to the next.
func Reseal(old, next AudienceKey, s keyring.Secret, now time.Time) (keyring.Secret, error) {
	if old.audience != next.audience {
		return keyring.Secret{}, fault.New(fault.Invalid, "secret %s/%s: cannot move to audience %s", s.Audience, s.Name, next.audience)
	}
	plaintext, err := OpenSecret(old, s)
	if err != nil {
		return keyring.Secret{}, err
	}
	return NewSecret(next, s.Name, plaintext, now)
}

func (k AudienceKey) cipher() (*xaes, error) {
	if k.k == nil {
		return nil, fault.New(fault.Internal, "audience key: missing")
	}
	return newXAES(k.k())
}

func secretContext(s keyring.Secret) []byte {
	return bind("iapmesh/secret/v1", s.Audience, s.Name, strconv.FormatUint(uint64(s.Version), 10))
}
