package keyring

import (
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
)

// RestorationKind is why a state began anew.
type RestorationKind string

// The kinds of restorations.
const (
	RestoreSnapshot RestorationKind = "restore" // from a snapshot
	RestoreSurvivor RestorationKind = "recover" // from the state of a survivor, after the quorum was lost for good
)

// RestorationPhase is how far a restoration has come.
type RestorationPhase string

// The phases. Until it is confirmed the mesh signs nobody in, admits no node, and takes no session.
const (
	RestorationRunning   RestorationPhase = "restoring"
	RestorationAwaiting  RestorationPhase = "awaiting_confirmation"
	RestorationConfirmed RestorationPhase = "confirmed"
)

// RestorationStatement is what an administrator signs to begin a restoration: this snapshot, over this epoch of this mesh.
type RestorationStatement struct {
	Mesh             string
	Kind             RestorationKind
	OldEpoch         uint64
	NewEpoch         uint64
	Digest           []byte            // SHA-256 of the snapshot's file, or of the survivor's state
	SnapshotRevision revision.Revision // of what is restored
	SnapshotTime     time.Time         // when it was taken
	Time             time.Time
	Nonce            []byte // 16 random bytes
	Carrier          string // id of the control node with which a new history begins; empty: the mesh's own goes on
}

// Message is what is signed: domain-separated, each field after its length.
func (s *RestorationStatement) Message() []byte {
	out := []byte("iapmesh/restoration/v1")
	for _, field := range [][]byte{
		[]byte(s.Mesh), []byte(s.Kind), number(s.OldEpoch), number(s.NewEpoch), s.Digest, number(s.SnapshotRevision.Epoch), number(s.SnapshotRevision.Index),
		number(uint64(s.SnapshotTime.UnixMilli())), number(uint64(s.Time.UnixMilli())), s.Nonce, []byte(s.Carrier),
	} {
		out = binary.BigEndian.AppendUint32(out, uint32(len(field)))
		out = append(out, field...)
	}
	return out
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// RestorationSkew is how old, or how far ahead, a statement's time may be when a restoration begins by it.
const RestorationSkew = 15 * time.Minute

// Verify says why the statement does not begin a restoration of the mesh from the epoch old, signed by the administrator: Invalid,
// Conflict or Denied.
func (s *RestorationStatement) Verify(mesh string, old uint64, by *Admin, signature []byte, now time.Time) error {
	switch {
	case len(s.Digest) != sha256.Size || len(s.Nonce) != 16:
		return fault.New(fault.Invalid, "restoration: a digest of %d and a nonce of %d bytes, want %d and 16", len(s.Digest), len(s.Nonce), sha256.Size)
	case s.Kind != RestoreSnapshot && s.Kind != RestoreSurvivor:
		return fault.New(fault.Invalid, "restoration: kind %.40q", string(s.Kind))
	case s.Mesh != mesh:
		return fault.New(fault.Conflict, "restoration: the snapshot is of mesh %.80q, this is %s", s.Mesh, mesh)
	case s.OldEpoch != old || s.NewEpoch <= old:
		return fault.New(fault.Conflict, "restoration: signed for epoch %d after %d, but the mesh is in epoch %d", s.NewEpoch, s.OldEpoch, old)
	}
	return s.VerifySigner(by, signature, now)
}

// VerifySigner says why the signature does not count now: Denied.
func (s *RestorationStatement) VerifySigner(by *Admin, signature []byte, now time.Time) error {
	if by == nil {
		return fault.New(fault.Denied, "restoration: signed by nobody whom the mesh knows")
	}
	if err := by.Check(now); err != nil {
		return err
	}
	if d := now.Sub(s.Time); d > RestorationSkew || d < -RestorationSkew {
		return fault.New(fault.Denied, "restoration: signed at %s, more than %v from now", stamp(s.Time), RestorationSkew)
	}
	return s.VerifySignature(by.PublicKey, signature)
}

// VerifySignature says whether a key signed the statement: Denied if not.
func (s *RestorationStatement) VerifySignature(pub ed25519.PublicKey, signature []byte) error {
	if len(pub) != ed25519.PublicKeySize || !ed25519.Verify(pub, s.Message(), signature) {
		return fault.New(fault.Denied, "restoration: the administrator's signature does not verify")
	}
	return nil
}

// MaxRemembered bounds what a node tells in one call of what it remembers.
const MaxRemembered = MaxJoinBody

func rememberMessage(ekm [32]byte, body []byte) ([]byte, error) {
	if len(body) == 0 || len(body) > MaxRemembered || ekm == [32]byte{} {
		return nil, fault.New(fault.Invalid, "remember: %d bytes, want 1 to %d, on a connection that exports keying material", len(body), MaxRemembered)
	}
	digest := JoinDigest(ekm, body)
	return append([]byte("iapmesh/remember/v1"), digest[:]...), nil
}

// SignRemember signs what a node remembers, with its node key, for the one connection of that exported keying material.
func SignRemember(priv ed25519.PrivateKey, ekm [32]byte, body []byte) ([]byte, error) {
	message, err := rememberMessage(ekm, body)
	if err != nil {
		return nil, err
	}
	return ed25519.Sign(priv, message), nil
}

// VerifyRemember is its inverse: Denied if the node did not sign it for this connection.
func VerifyRemember(pub ed25519.PublicKey, ekm [32]byte, body, signature []byte) error {
	message, err := rememberMessage(ekm, body)
	if err != nil {
		return err
	}
	if len(pub) != ed25519.PublicKeySize || !ed25519.Verify(pub, message, signature) {
		return fault.New(fault.Denied, "remember: the signature is not the node's, or for another connection")
	}
	return nil
}

// Denials is what a state refuses, as whoever holds it remembers it: the gravest first. It names no session: a restoration refuses all
// that were there before it.
func (c *Contents) Denials() []Denial {
	var out []Denial
	for _, k := range c.Keys {
		if k.State == KeyRevoked {
			out = append(out, Denial{Kind: DenyKey, Value: k.ID, Reason: k.Reason, At: k.RevokedAt})
		}
	}
	for _, n := range c.Nodes {
		if n.State == NodeRevoked || n.State == NodeQuarantined {
			out = append(out, Denial{Kind: DenyNode, Value: n.ID, State: string(n.State), Reason: n.Reason, At: n.StateSince})
		}
	}
	for _, a := range c.Admins {
		if !a.RevokedAt.IsZero() {
			out = append(out, Denial{Kind: DenyAdmin, Value: a.ID, Reason: a.Reason, At: a.RevokedAt})
		}
	}
	for _, k := range c.SigningKeys {
		if k.State == SigningRevoked {
			out = append(out, Denial{Kind: DenySigningKey, Value: k.KID, Reason: k.Reason, At: k.StateSince})
		}
	}
	for _, r := range c.Revocations[RevokeSubject] {
		out = append(out, Denial{Kind: DenySubject, Value: r.Value, Block: r.Block, Reason: r.Reason, By: r.By, At: r.At})
	}
	rank := func(d Denial) int {
		i := slices.Index([]DenialKind{DenyKey, DenyNode, DenyAdmin, DenySigningKey}, d.Kind)
		switch {
		case i >= 0:
			return i
		case d.Block:
			return 4
		}
		return 5
	}
	slices.SortFunc(out, func(a, b Denial) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Value, b.Value)) })
	return out
}

// Restoration is the record of a restoration, and the gate that every node holds shut until an operator has confirmed it.
type Restoration struct {
	Statement    RestorationStatement
	By           string // id of the administrator who signed
	ByName       string
	Signature    []byte
	Phase        RestorationPhase
	SessionsFrom revision.Revision // sessions minted before are refused, for good
	List         RestoreList       // what confirming gives back
	Kept         []string          // control nodes that stayed trusted: they carry the commits
	Refused      []Denial          // what the snapshot would accept and stays refused, as far as the record holds it
	Confirmed    []byte            // digest of the list that an operator confirmed; empty until then
	ConfirmedBy  string
	Except       []string // keys and nodes that he held back
}

// RestoreList is what a restoration holds back until an operator confirms it.
type RestoreList struct {
	Keys   []HeldKey
	Nodes  []HeldNode
	Admins []string // ids of those who count
}

// HeldKey is a provisioning key that confirming puts back into a state.
type HeldKey struct {
	ID    string
	State KeyState
}

// HeldNode is a node that confirming puts back into a state.
type HeldNode struct {
	ID    string
	State NodeState
}

// Reason is what stands on keys and nodes that the restoration holds back.
func (r *Restoration) Reason() string {
	return fmt.Sprintf("restored under epoch %d: awaits an operator's confirmation", r.Statement.NewEpoch)
}

// Unlisted is what stands on those that the snapshot does not know: no confirmation of a list gives them back.
func (r *Restoration) Unlisted() string {
	return fmt.Sprintf("not in the snapshot that was restored under epoch %d", r.Statement.NewEpoch)
}

// HeldBack is what stands on those that an operator excepted.
func (r *Restoration) HeldBack() string {
	return fmt.Sprintf("held back when the restoration under epoch %d was confirmed", r.Statement.NewEpoch)
}

// holds reports whether confirming the restoration would give the node back.
func (r *Restoration) holds(n *Node) bool {
	return r != nil && n.State == NodeQuarantined && n.Reason == r.Reason()
}

// Keep makes of a quarantine that a restoration's confirmation would end one that only an operator ends. Any other node stays as it is.
func (r *Restoration) Keep(n Node, reason string, now time.Time) (Node, error) {
	if !r.holds(&n) {
		return n, nil
	}
	return n.toFor(NodeQuarantined, cmp.Or(reason, "quarantined by an operator before the restoration was confirmed"), now)
}

// Pending is what of the list is still held back in a state.
func (r *Restoration) Pending(c *Contents) RestoreList {
	var out RestoreList
	for _, h := range r.List.Keys {
		if k := c.Keys[h.ID]; k != nil && k.State == KeySuspended && k.Reason == r.Reason() {
			out.Keys = append(out.Keys, h)
		}
	}
	for _, h := range r.List.Nodes {
		if n := c.Nodes[h.ID]; n != nil && r.holds(n) {
			out.Nodes = append(out.Nodes, h)
		}
	}
	for id, a := range c.Admins {
		if a.RevokedAt.IsZero() {
			out.Admins = append(out.Admins, id)
		}
	}
	slices.Sort(out.Admins)
	return out
}

// Unheld are a state's records without what an unconfirmed restoration holds back: what another restoration begins with, which holds
// it back in turn.
func (c *Contents) Unheld() *Contents {
	r := c.Unconfirmed()
	if r == nil {
		return c
	}
	out := *c
	out.Keys, out.Nodes = maps.Clone(c.Keys), maps.Clone(c.Nodes)
	pending := r.Pending(c)
	for _, h := range pending.Keys {
		k := *c.Keys[h.ID]
		k.State, k.Reason = h.State, ""
		out.Keys[h.ID] = &k
	}
	for _, h := range pending.Nodes {
		n := *c.Nodes[h.ID]
		n.State, n.Reason = h.State, ""
		out.Nodes[h.ID] = &n
	}
	return &out
}

// Digest names a list as an operator confirms it: of this restoration, with exactly these items.
func (r *Restoration) Digest(l RestoreList) []byte {
	h := sha256.New()
	write := func(kind, id, state string) {
		for _, s := range []string{kind, id, state} {
			_ = binary.Write(h, binary.BigEndian, uint32(len(s))) // a hash takes all
			h.Write([]byte(s))
		}
	}
	h.Write([]byte("iapmesh/restoration-list/v1"))
	h.Write(r.Statement.Message())
	for _, k := range l.Keys {
		write("key", k.ID, string(k.State))
	}
	for _, n := range l.Nodes {
		write("node", n.ID, string(n.State))
	}
	for _, a := range l.Admins {
		write("admin", a, "")
	}
	return h.Sum(nil)
}

// Unconfirmed returns the restoration that awaits an operator; nil if there is none.
func (c *Contents) Unconfirmed() *Restoration {
	if r := c.Restoration; r != nil && r.Phase != RestorationConfirmed {
		return r
	}
	return nil
}

// Why Closed refuses.
var (
	ErrAwaitsOperator = errors.New("the mesh was restored and awaits an operator: iapmesh snapshot pending, then confirm")
	ErrRestoring      = errors.New("the mesh is being restored")
)

// Closed says why nobody may sign in, join or use a session: Unavailable, until an operator has confirmed what was restored.
func (c *Contents) Closed() error {
	r := c.Unconfirmed()
	switch {
	case r == nil:
		return nil
	case r.Phase == RestorationAwaiting:
		return fault.Wrap(fault.Unavailable, ErrAwaitsOperator)
	}
	return fault.Wrap(fault.Unavailable, ErrRestoring)
}

// Fenced reports whether a session minted at a revision is of before the last restoration, or of before its confirmation.
func (c *Contents) Fenced(minted revision.Revision) bool {
	return c.Restoration != nil && (c.Restoration.Phase != RestorationConfirmed || minted.Before(c.Restoration.SessionsFrom))
}

// ReleaseHeldKey puts a key that a restoration holds back into the state that its list says, and then does what time does: one that
// has expired meanwhile is expired.
func ReleaseHeldKey(k Key, h HeldKey, r *Restoration, now time.Time) (Key, error) {
	if k.ID != h.ID || k.State != KeySuspended || k.Reason != r.Reason() || !admits(h.State) {
		return k, keyConflict(&k, "release after a restoration")
	}
	k.State, k.Reason = h.State, ""
	k, _ = SweepKey(k, now)
	return k, nil
}

// ReleaseHeldNode puts a node that a restoration holds back into the state that its list says.
func ReleaseHeldNode(n Node, h HeldNode, r *Restoration, now time.Time) (Node, error) {
	if n.ID != h.ID || n.State != NodeQuarantined || n.Reason != r.Reason() || !(&Node{State: h.State}).Trusted() {
		return n, nodeConflict(&n, "release after a restoration")
	}
	return n.to(h.State, "", now), nil
}

func admits(s KeyState) bool { return s == KeyActive || s == KeyPending || s == KeyRetiring }

// KeyLetsIn reports whether a change of a key lets somebody in whom the key did not let in before; before is nil for one that is new.
// A new key that succeeds none is the word of an administrator of now, and brings nothing back.
func KeyLetsIn(before, after *Key) bool {
	if before == nil {
		return after.accepts() && after.Predecessor != ""
	}
	return after.accepts() && !before.accepts()
}

// accepts reports whether the key lets somebody in, now or once its time has come, without anybody's further word.
func (k *Key) accepts() bool { return admits(k.State) && !k.AwaitsApproval() && !k.Proposed() }

// NodeLetsIn reports whether a change of a node lets one in that was not trusted before, or moves one to another key; before is nil
// for one that is new.
func NodeLetsIn(before, after *Node) bool {
	if before == nil {
		return after.Trusted()
	}
	return after.Trusted() && !before.Trusted() || after.BoundKey != before.BoundKey || after.RebindTo != "" && after.RebindTo != before.RebindTo
}
