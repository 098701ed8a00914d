package seal

import (
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// AudienceKey opens and seals the secrets of one audience in one version. Printed or logged, it does not show itself.
type AudienceKey struct {
	audience string
	version  uint32
	k        func() []byte // behind a function: see keyring.ProvisioningSecret
}

// Audience is the name of the key's audience.
func (k AudienceKey) Audience() string { return k.audience }

// Version is the key's version; it grows by one with each rotation.
func (k AudienceKey) Version() uint32 { return k.version }

func (k AudienceKey) shown() string {
	return fmt.Sprintf("[key %d of audience %s]", k.version, k.audience)
}

// Format shows audience and version, whatever the verb.
func (k AudienceKey) Format(f fmt.State, _ rune) { io.WriteString(f, k.shown()) }

// LogValue shows audience and version.
func (k AudienceKey) LogValue() slog.Value { return slog.StringValue(k.shown()) }

func newAudienceKey(audience string, version uint32) AudienceKey {
	key := make([]byte, keySize)
	rand.Read(key)
	return holdAudienceKey(audience, version, key)
}

func holdAudienceKey(audience string, version uint32, key []byte) AudienceKey {
	return AudienceKey{audience, version, func() []byte { return key }}
}

// NewAudience makes an audience, version 1, with its key. members are sealing public keys by node id.
func NewAudience(name string, members map[string][]byte, now time.Time) (keyring.Audience, AudienceKey, error) {
	if name == "" || len(name) > 512 {
		return keyring.Audience{}, AudienceKey{}, fault.New(fault.Invalid, "audience: a name of %d bytes, want 1 to 512", len(name))
	}
	return wrapAll(name, 1, members, now)
}

// Rotate makes the audience's next version with a new key for exactly these members. Whoever is left out opens nothing that is
// sealed from now on; the secrets must be resealed (Reseal) in the same commit, and renewed at their source if the reason is mistrust.
func Rotate(a keyring.Audience, members map[string][]byte, now time.Time) (keyring.Audience, AudienceKey, error) {
	if a.Version == 0 || a.Version+1 == 0 {
		return a, AudienceKey{}, fault.New(fault.Invalid, "audience %s: version %d cannot rotate", a.Name, a.Version)
	}
	next, key, err := wrapAll(a.Name, a.Version+1, members, now)
	if err != nil {
		return a, AudienceKey{}, err
	}
	return next, key, nil
}

func wrapAll(name string, version uint32, members map[string][]byte, now time.Time) (keyring.Audience, AudienceKey, error) {
	if len(members) == 0 {
		return keyring.Audience{}, AudienceKey{}, fault.New(fault.Invalid, "audience %s: no members: nobody could open it again", name)
	}
	a, key := keyring.Audience{Name: name, Version: version, RotatedAt: now}, newAudienceKey(name, version)
	for _, node := range slices.Sorted(maps.Keys(members)) {
		w, err := wrapFor(key, node, members[node])
		if err != nil {
			return keyring.Audience{}, AudienceKey{}, err
		}
		a.Wraps = append(a.Wraps, w)
	}
	return a, key, nil
}

func wrapFor(key AudienceKey, node string, pub []byte) (keyring.Wrap, error) {
	out, err := WrapTo(pub, audienceInfo(key.audience, key.version, node), key.k())
	if err != nil {
		return keyring.Wrap{}, fmt.Errorf("audience %s: member %s: %w", key.audience, node, err)
	}
	return keyring.Wrap{Node: node, Encapsulated: out[:encapsulatedSize], Ciphertext: out[encapsulatedSize:]}, nil
}

func audienceInfo(name string, version uint32, node string) []byte {
	return bind("iapmesh/audience/v1", name, strconv.FormatUint(uint64(version), 10), node)
}

// AddMember wraps the audience's key to one more node. A member is wrapped to anew, as when its sealing key has changed.
func AddMember(a keyring.Audience, key AudienceKey, node string, pub []byte) (keyring.Audience, error) {
	if err := fits(a, key); err != nil {
		return a, err
	}
	w, err := wrapFor(key, node, pub)
	if err != nil {
		return a, err
	}
	wraps := slices.DeleteFunc(slices.Clone(a.Wraps), func(have keyring.Wrap) bool { return have.Node == node })
	a.Wraps = append(wraps, w)
	slices.SortFunc(a.Wraps, func(x, y keyring.Wrap) int {
		if x.Node < y.Node {
			return -1
		}
		return 1
	})
	return a, nil
}

func fits(a keyring.Audience, key AudienceKey) error {
	if key.k == nil || key.audience != a.Name || key.version != a.Version {
		return fault.New(fault.Conflict, "audience %s, version %d: the key is %s", a.Name, a.Version, key.shown())
	}
	return nil
}

// IsMember reports whether the audience's key is wrapped to a node.
func IsMember(a keyring.Audience, node string) bool {
	return slices.ContainsFunc(a.Wraps, func(w keyring.Wrap) bool { return w.Node == node })
}

// OpenAudience unwraps the audience's key for a member. Denied: the node is none, or the wrap is not for its key.
func OpenAudience(a keyring.Audience, node string, priv SealingKey) (AudienceKey, error) {
	for _, w := range a.Wraps {
		if w.Node != node {
			continue
		}
		if len(w.Encapsulated) != encapsulatedSize {
			return AudienceKey{}, fault.New(fault.Invalid, "audience %s: an encapsulated key of %d bytes", a.Name, len(w.Encapsulated))
		}
		key, err := UnwrapFrom(priv, audienceInfo(a.Name, a.Version, node), slices.Concat(w.Encapsulated, w.Ciphertext))
		if err != nil {
			return AudienceKey{}, fmt.Errorf("audience %s, version %d: %w", a.Name, a.Version, err)
		}
		if len(key) != keySize {
			return AudienceKey{}, fault.New(fault.Invalid, "audience %s: a key of %d bytes, want %d", a.Name, len(key), keySize)
		}
		return holdAudienceKey(a.Name, a.Version, key), nil
	}
	return AudienceKey{}, fault.New(fault.Denied, "audience %s: node %s is no member", a.Name, node)
}
