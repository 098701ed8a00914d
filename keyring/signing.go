package keyring

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"slices"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// The lifetimes that a signing key outlives.
const (
	SessionTokenLife   = time.Hour
	AssertionTokenLife = 5 * time.Minute
	JWKSMaxAge         = 60 * time.Second
)

// TokenLife is the longest life of a token of that kind.
func (k SigningKind) TokenLife() time.Duration {
	if k == SigningAssertion {
		return AssertionTokenLife
	}
	return SessionTokenLife
}

// SigningKID names a signing key by its public half, as PublicKey holds it: "s-" or "a-" and 16 characters of a-z and 2-7.
func SigningKID(kind SigningKind, pub []byte) string {
	prefix := "s-"
	if kind == SigningAssertion {
		prefix = "a-"
	}
	return derivedID(prefix, "iapmesh/kid/v1/"+string(kind), pub)
}

// SameSlot reports whether two keys take turns: of both at most one is active.
func (k *SigningKey) SameSlot(o *SigningKey) bool {
	if k.Kind != o.Kind {
		return false
	}
	if k.Kind == SigningSession {
		return k.Node == o.Node
	}
	return k.Region == o.Region && k.RouteSelector == o.RouteSelector
}

func (k SigningKey) to(s SigningState, now time.Time) SigningKey {
	k.State, k.StateSince = s, now
	return k
}

func signingConflict(k *SigningKey, what string) error {
	return fault.New(fault.Conflict, "signing key %s: %s: it is %s", k.KID, what, k.State)
}

// AnnouncementMessage is what a new session key signs, to prove that the announcing node holds it.
func AnnouncementMessage(node string) []byte { return []byte("iapmesh/announce/v1" + node) }

// MaxSessionKeys is how many keys of one node verify at a time: more than it needs that rotates every minute, and few enough that a node
// which was taken over cannot make its own revocation long.
const MaxSessionKeys = 80

// AnnounceSessionKey makes the record of a node's next session key. keys are all signing keys of the mesh. The key signs at once
// if the node has no active one, else after Promote. Announcing the same key again returns its record unchanged; a second one while
// one is announced is a Conflict, so that announced keys cannot pile up.
func AnnounceSessionKey(n Node, pub ed25519.PublicKey, keys map[string]*SigningKey, now time.Time) (SigningKey, error) {
	if err := validPublicKey("session key", pub); err != nil {
		return SigningKey{}, err
	}
	if !n.Trusted() || !n.HasRole(RoleProxy) {
		return SigningKey{}, fault.New(fault.Denied, "node %s (%s, %v): only a trusted proxy has session keys", n.ID, n.State, n.Roles)
	}
	verify := 0
	for _, k := range keys {
		if k.Kind == SigningSession && k.Node == n.ID && k.Verifies() && k.KID != SigningKID(SigningSession, pub) {
			verify++
		}
	}
	if verify >= MaxSessionKeys {
		return SigningKey{}, fault.New(fault.Exhausted, "node %s has %d session keys that verify: it gets another when one of them is over", n.ID, verify)
	}
	return announce(SigningKey{
		Kind: SigningSession, Node: n.ID, Region: n.Region, RouteSelector: n.RouteSelector,
		PublicKey: slices.Clone(pub), ProvisioningKey: n.ProvisioningKey,
	}, keys, now)
}

// AnnounceAssertionKey makes the record of the next assertion key for a region and selector; spki is PKIX DER of a P-256 key. It
// signs at once if its slot has no active key: applications that do not fetch an unknown key are no worse off than without any.
func AnnounceAssertionKey(region, selector string, spki []byte, keys map[string]*SigningKey, now time.Time) (SigningKey, error) {
	if err := ValidRegion(region); err != nil {
		return SigningKey{}, err
	}
	if err := validSelector(selector); err != nil {
		return SigningKey{}, err
	}
	if len(spki) > 256 {
		return SigningKey{}, fault.New(fault.Invalid, "assertion key: %d bytes, at most 256", len(spki))
	}
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if pub, ok := parsed.(*ecdsa.PublicKey); err != nil || !ok || pub.Curve != elliptic.P256() {
		return SigningKey{}, fault.New(fault.Invalid, "assertion key: want PKIX DER of a P-256 key")
	}
	return announce(SigningKey{
		Kind: SigningAssertion, Region: region, RouteSelector: selector, PublicKey: slices.Clone(spki),
	}, keys, now)
}

func announce(k SigningKey, keys map[string]*SigningKey, now time.Time) (SigningKey, error) {
	k.KID = SigningKID(k.Kind, k.PublicKey)
	if have := keys[k.KID]; have != nil {
		if have.SameSlot(&k) && (have.State == SigningAnnounced || have.State == SigningActive) {
			return *have, nil
		}
		return SigningKey{}, signingConflict(have, "announce")
	}
	signsAtOnce := true
	for _, o := range keys {
		if !o.SameSlot(&k) {
			continue
		}
		switch {
		case o.State == SigningAnnounced:
			return SigningKey{}, fault.New(fault.Conflict, "signing key %s: announce: %s is announced already", k.KID, o.KID)
		case o.State == SigningActive:
			signsAtOnce = false
		}
	}
	k.AnnouncedAt = now
	k = k.to(SigningAnnounced, now)
	if signsAtOnce {
		k = k.to(SigningActive, now)
		k.ActiveAt = now
	}
	return k, nil
}

// Promote lets an announced key sign, and returns all records that change: it, and the keys of its slot that signed until now and
// verify from here on. Whether it may is ReadyToPromote's to say, or an operator's.
func Promote(next SigningKey, keys map[string]*SigningKey, now time.Time) ([]SigningKey, error) {
	if next.State != SigningAnnounced {
		return nil, signingConflict(&next, "promote")
	}
	next = next.to(SigningActive, now)
	next.ActiveAt = now
	changed := []SigningKey{next}
	for _, o := range keys {
		if o.KID != next.KID && o.State == SigningActive && o.SameSlot(&next) {
			changed = append(changed, stopSigning(*o, now))
		}
	}
	return changed, nil
}

func stopSigning(k SigningKey, now time.Time) SigningKey {
	k = k.to(SigningVerifyOnly, now)
	k.RotateRequested = false
	k.RetireAt = lastToken(k.Kind, now)
	return k
}

// StopSigning turns an active or announced key into verify_only, as when its node has departed: what it signed still counts.
func StopSigning(k SigningKey, now time.Time) (SigningKey, error) {
	if k.State != SigningActive && k.State != SigningAnnounced {
		return k, signingConflict(&k, "stop signing")
	}
	return stopSigning(k, now), nil
}

// RequestRotation asks the holder of an active key for a successor. Asking twice changes nothing.
func RequestRotation(k SigningKey) (SigningKey, error) {
	if k.State != SigningActive {
		return k, signingConflict(&k, "rotate")
	}
	k.RotateRequested = true
	return k, nil
}

// SweepSigningKey does what time does: verify_only → retired once the last token is over. It reports whether anything changed.
// knownSince is since when whoever signed with the key was seen to know that it no longer does; zero: not yet. One that is cut off
// goes on signing, and what it signs must verify; of one that is gone, StateSince is soon enough.
func SweepSigningKey(k SigningKey, knownSince, now time.Time) (SigningKey, bool) {
	if k.State != SigningVerifyOnly || now.Before(k.RetireAt) || knownSince.IsZero() || now.Before(lastToken(k.Kind, knownSince)) {
		return k, false
	}
	return k.to(SigningRetired, now), true
}

// lastToken is when the last token is over that was signed before stopped.
func lastToken(kind SigningKind, stopped time.Time) time.Time {
	return stopped.Add(kind.TokenLife() + Skew)
}

// DestroySigningKey records that the private half of a retired key is gone.
func DestroySigningKey(k SigningKey, now time.Time) (SigningKey, error) {
	if k.State != SigningRetired {
		return k, signingConflict(&k, "destroy")
	}
	return k.to(SigningDestroyed, now), nil
}

// RevokeSigningKey revokes a key that verifies: from this revision on it verifies nothing. A retired one has nothing to revoke.
func RevokeSigningKey(k SigningKey, reason string, now time.Time) (SigningKey, error) {
	switch {
	case k.State == SigningRevoked:
		return k, nil
	case !k.Verifies():
		return k, signingConflict(&k, "revoke")
	}
	if err := validText("reason", reason, MaxReason); err != nil {
		return k, err
	}
	k.Reason = reason
	return k.to(SigningRevoked, now), nil
}
