package session

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	stdjson "encoding/json"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/state"
)

// MaxToken bounds a token, in bytes: four cookies.
const MaxToken = maxChunks * chunkSize

const (
	maxHeader   = 256 // bytes of base64url
	sessionType = "iapmesh-session+jwt"
	handoffType = "iapmesh-handoff+jwt"
	handoffLife = time.Minute
)

// Purpose is what a token is for. A token of one purpose is refused for every other, by its typ and by its audience.
type Purpose struct {
	typ, audience string
	life          time.Duration // the longest
}

// Handoff is the purpose of a ticket that carries a sign-in from the sign-in host to a target host, within a minute.
func Handoff(host string) Purpose { return Purpose{handoffType, host, handoffLife} }

func sessions() Purpose {
	return Purpose{sessionType, "session", resource.MaxSessionLifetime}
}

// registered are the claims that every token has.
type registered struct {
	Issuer   string `json:"iss"`
	Audience string `json:"aud"`
	IssuedAt int64  `json:"iat"`
	Expires  int64  `json:"exp"`
}

// claims are a session's.
type claims struct {
	registered
	Subject  string   `json:"sub"`
	Email    string   `json:"email,omitempty"`
	Name     string   `json:"name,omitempty"`
	Groups   []string `json:"groups"` // [] never null
	Session  string   `json:"sid"`
	Host     string   `json:"host,omitempty"`
	AuthTime int64    `json:"auth_time,omitempty"`
	AMR      []string `json:"amr,omitempty"`
	Revision string   `json:"rev"`
}

// opened is a token whose signature and purpose hold.
type opened struct {
	kid     string
	public  ed25519.PublicKey
	payload []byte
}

func sign(k signingKey, p Purpose, body any) (string, error) {
	payload, err := stdjson.Marshal(body)
	if err != nil {
		return "", fault.New(fault.Internal, "encode %s: %w", p.typ, err)
	}
	opts := (&jose.SignerOptions{}).WithType(jose.ContentType(p.typ)).WithHeader("krev", k.record.Revision.String())
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: k.private, KeyID: k.record.KID}}, opts)
	if err != nil {
		return "", fault.New(fault.Internal, "sign %s: %w", p.typ, err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", fault.New(fault.Internal, "sign %s: %w", p.typ, err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		return "", fault.New(fault.Internal, "sign %s: %w", p.typ, err)
	}
	if len(token) > MaxToken {
		return "", fault.New(fault.Invalid, "%s: %d bytes, at most %d: too many groups", p.typ, len(token), MaxToken)
	}
	return token, nil
}

// open checks size, form, header, key and signature, in the order of their cost. What the payload says is still to be checked.
// It verifies EdDSA itself (RFC 8037: Ed25519 over the token up to its last dot): with one algorithm, one key and nothing but four
// known header fields, go-jose's parser would add a third to the cost and decide nothing.
func open(view *state.View, p Purpose, token string) (*opened, error) {
	if len(token) > MaxToken {
		return nil, invalid("token of %d bytes, at most %d", len(token), MaxToken)
	}
	parts := strings.SplitN(token, ".", 4)
	if len(parts) != 3 || len(parts[0]) > maxHeader {
		return nil, invalid("not a token")
	}
	raw, err := decodePart(parts[0])
	if err != nil {
		return nil, err
	}
	var h map[string]string // alg, kid, krev (at which the key's record was written) and typ: no crit, no jwk, nothing else
	if err := json.Unmarshal(raw, &h); err != nil || len(h) != 4 {
		return nil, invalid("header: want alg, kid, krev and typ alone")
	}
	if h["alg"] != string(jose.EdDSA) || h["typ"] != p.typ {
		return nil, invalid("header: alg %.20q and typ %.40q, want EdDSA and %s", h["alg"], h["typ"], p.typ)
	}
	kid := h["kid"]
	if keyring.ValidSessionID(kid) != nil { // the same plain characters: it will stand in errors and logs
		return nil, invalid("header: kid")
	}
	wrote, err := revision.Parse(h["krev"])
	if err != nil {
		return nil, invalid("header: krev")
	}
	key := view.Keyring.SigningKeys[kid]
	switch {
	case key == nil && view.Revision.Before(wrote):
		return nil, &UnknownKeyError{KID: kid, Newer: true, Needs: wrote}
	case key == nil:
		return nil, &UnknownKeyError{KID: kid}
	case key.Kind != keyring.SigningSession || len(key.PublicKey) != ed25519.PublicKeySize:
		return nil, invalid("signing key %s signs no sessions", kid)
	}
	payload, err := decodePart(parts[1])
	if err != nil {
		return nil, err
	}
	signature, err := decodePart(parts[2])
	if err != nil {
		return nil, err
	}
	public := ed25519.PublicKey(key.PublicKey)
	if !ed25519.Verify(public, []byte(token[:len(parts[0])+1+len(parts[1])]), signature) {
		return nil, invalid("signature")
	}
	return &opened{kid: kid, public: public, payload: payload}, nil
}

// decodePart decodes base64url in its one spelling: Go's decoder would skip line ends and loose bits, and a token that can be
// spelled in many ways can fill a cache.
func decodePart(part string) ([]byte, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil || base64.RawURLEncoding.EncodedLen(len(b)) != len(part) {
		return nil, invalid("not base64url")
	}
	return b, nil
}

// check pins issuer and audience, and bounds the lifetime: no node, however it errs, mints for longer than the purpose allows.
func (r registered) check(view *state.View, p Purpose, now time.Time) error {
	settings := view.Config.Settings
	issued, expires := time.Unix(r.IssuedAt, 0), time.Unix(r.Expires, 0)
	switch {
	case settings == nil || settings.Issuer == "" || r.Issuer != settings.Issuer:
		return invalid("issuer %.100q", r.Issuer)
	case r.Audience != p.audience:
		return invalid("audience %.100q", r.Audience)
	case r.IssuedAt < 0 || !expires.After(issued) || expires.Sub(issued) > p.life:
		return invalid("lifetime")
	case now.Add(keyring.Skew).Before(issued):
		return invalid("issued in the future")
	case !now.Before(expires.Add(keyring.Skew)):
		return ErrExpired
	}
	return nil
}

// standing looks up what a signature alone does not say: that the key still verifies, with this public half if one is given, and
// that its node may still speak. A departed node's tokens count until they expire, as far as inTime says so.
func standing(view *state.View, kid string, public ed25519.PublicKey) (*keyring.SigningKey, *keyring.Node, error) {
	key := view.Keyring.SigningKeys[kid]
	switch {
	case key == nil:
		return nil, nil, &UnknownKeyError{KID: kid}
	case key.State == keyring.SigningRevoked:
		return nil, nil, revoked("signing key %s is revoked", kid)
	case key.Kind != keyring.SigningSession || !key.Verifies():
		return nil, nil, invalid("signing key %s is %s", kid, key.State)
	case public != nil && !bytes.Equal(key.PublicKey, public):
		return nil, nil, invalid("signing key %s is another now", kid)
	}
	node := view.Keyring.Nodes[key.Node]
	switch {
	case node == nil:
		return nil, nil, invalid("signing key %s: node %s is unknown", kid, key.Node)
	case node.State == keyring.NodeRevoked, node.State == keyring.NodeQuarantined:
		return nil, nil, revoked("minting node %s is %s", node.ID, node.State)
	case !node.TokensCount():
		return nil, nil, invalid("minting node %s is %q", node.ID, node.State)
	case !node.HasRole(keyring.RoleProxy):
		return nil, nil, invalid("minting node %s is no proxy", node.ID)
	}
	return key, node, nil
}

// inTime refuses what a node has signed after it departed: whatever it kept of its keys, it speaks for the mesh no more. Two clocks of the
// mesh may differ. A key alone that no longer signs is held to nothing: a node that has not heard of its successor goes on by it, and rightly
// (decision 0020).
func inTime(node *keyring.Node, issued time.Time) error {
	if node.State == keyring.NodeDeparted && issued.After(node.StateSince.Add(keyring.Skew)) {
		return invalid("issued by node %s after it had departed", node.ID)
	}
	return nil
}
