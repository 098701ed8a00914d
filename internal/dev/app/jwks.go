package app

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/iapmesh/iapmesh/internal/fault"
)

const (
	fetchTimeout = 10 * time.Second // a region that is stopped delays the others' users once a minute; one that is only slow must not refuse them
	keysMaxAge   = time.Minute      // as the mesh's Cache-Control says
	keysMinAge   = time.Second      // between fetches for unknown kids, which anybody can send
	keysLimit    = time.Hour        // a set that could not be renewed is forgotten
	maxKeySet    = 256 << 10
)

// keySet caches keys by kid. It fetches again when the cache is a minute old or a kid is unknown; a URL that does not answer
// keeps the keys that it gave before, so that a region which is cut off does not sign everybody out of its applications.
type keySet struct {
	urls   []string
	client *http.Client
	log    *slog.Logger
	now    func() time.Time

	mu      sync.Mutex // guards all below, and makes concurrent requests wait for one fetch
	fetched time.Time
	sets    []fetchedSet // by index of urls
}

type fetchedSet struct {
	keys map[string]*ecdsa.PublicKey
	at   time.Time
}

func newKeySet(c Config) *keySet {
	return &keySet{urls: c.JWKS, client: c.Client, log: c.Logger, now: c.Now, sets: make([]fetchedSet, len(c.JWKS))}
}

// find returns the key of that id: Unauthenticated if no set has it, Unavailable if none could be fetched.
func (k *keySet) find(ctx context.Context, kid string) (*ecdsa.PublicKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	key, age := k.lookup(kid, now), now.Sub(k.fetched).Abs()
	if key != nil && age < keysMaxAge || key == nil && age < keysMinAge {
		return key, k.unknown(key, kid)
	}
	// The fetch serves every request that waits: the first one's client hanging up shall not end it.
	fetchCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
	defer cancel()
	answers := make([]fetchedSet, len(k.urls))
	var group sync.WaitGroup
	for i, url := range k.urls {
		group.Go(func() {
			keys, err := k.fetch(fetchCtx, url)
			if err != nil {
				k.log.WarnContext(ctx, "fetch keys", "url", url, "error", err)
				return
			}
			answers[i] = fetchedSet{keys: keys, at: now}
		})
	}
	group.Wait()
	answered := false
	for i, answer := range answers {
		if answer.keys != nil {
			k.sets[i], answered = answer, true
		}
	}
	k.fetched = now
	key = k.lookup(kid, now)
	if key == nil && !answered {
		return nil, fault.New(fault.Unavailable, "key %.80q: none of %d key sets could be fetched", kid, len(k.urls))
	}
	return key, k.unknown(key, kid)
}

func (k *keySet) unknown(key *ecdsa.PublicKey, kid string) error {
	if key == nil {
		return fault.New(fault.Unauthenticated, "key %.80q is in no key set of the mesh", kid)
	}
	return nil
}

func (k *keySet) lookup(kid string, now time.Time) *ecdsa.PublicKey {
	for _, set := range k.sets {
		if key, ok := set.keys[kid]; ok && now.Sub(set.at) < keysLimit {
			return key
		}
	}
	return nil
}

func (k *keySet) fetch(ctx context.Context, url string) (map[string]*ecdsa.PublicKey, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := k.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fault.New(fault.Unavailable, "status %d", response.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxKeySet+1))
	if err != nil {
		return nil, err
	}
	return ParseKeys(body)
}

// ParseKeys reads a JWKS (RFC 7517) and keeps the keys that may sign assertions: P-256, named, public, for ES256 signatures.
func ParseKeys(data []byte) (map[string]*ecdsa.PublicKey, error) {
	if len(data) > maxKeySet {
		return nil, fault.New(fault.Exhausted, "key set of more than %d bytes", maxKeySet)
	}
	// One key that this program cannot read shall not hide the others.
	var raw struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, fault.New(fault.Invalid, "parse key set: %w", err)
	}
	if raw.Keys == nil {
		return nil, fault.New(fault.Invalid, "parse key set: no keys member")
	}
	keys := map[string]*ecdsa.PublicKey{}
	for _, member := range raw.Keys {
		var jwk jose.JSONWebKey
		if err := jwk.UnmarshalJSON(member); err != nil {
			continue
		}
		key, ok := jwk.Key.(*ecdsa.PublicKey)
		if !ok || key.Curve != elliptic.P256() || jwk.KeyID == "" || jwk.Use != "" && jwk.Use != "sig" ||
			jwk.Algorithm != "" && jwk.Algorithm != string(jose.ES256) {
			continue
		}
		if _, twice := keys[jwk.KeyID]; twice {
			return nil, fault.New(fault.Invalid, "parse key set: key %.80q twice", jwk.KeyID)
		}
		keys[jwk.KeyID] = key
	}
	return keys, nil
}
