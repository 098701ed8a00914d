package audit

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"strconv"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// Countersign adds the aggregator's signature to a checkpoint that it has verified and stored: a C2SP tlog-cosignature (signature
// type 4, Ed25519), which states that at a time the aggregator held a tree of that size and root, and no other. The name of the
// aggregator's key is "iapmesh/audit/v1/<mesh>/<aggregator>".
func Countersign(signed []byte, aggregator string, s Signer, at time.Time) ([]byte, error) {
	c, err := Peek(signed)
	if err != nil {
		return nil, err
	}
	if err := CheckName(aggregator); err != nil {
		return nil, err
	}
	n, err := openAny(signed)
	if err != nil {
		return nil, err
	}
	key := &witnessKey{name: originPrefix + c.Mesh + "/" + aggregator, public: s.Public(), sign: s.Sign, at: at}
	out, err := note.Sign(n, key)
	if err != nil {
		return nil, fault.New(fault.Internal, "countersign checkpoint of %s/%s: %w", c.Node, c.Run, err)
	}
	return out, nil
}

// openAny returns a note with all its signatures unverified: what adds one must keep the others.
func openAny(signed []byte) (*note.Note, error) {
	_, err := note.Open(signed, note.VerifierList())
	if unverified := (*note.UnverifiedNoteError)(nil); errors.As(err, &unverified) {
		return unverified.Note, nil
	}
	return nil, fault.New(fault.Invalid, "checkpoint: %w", err)
}

// VerifyCountersignature checks that the aggregator countersigned the note, and returns when.
func VerifyCountersignature(signed []byte, aggregator string, key ed25519.PublicKey) (time.Time, error) {
	c, err := Peek(signed)
	if err != nil {
		return time.Time{}, err
	}
	if len(key) != ed25519.PublicKeySize {
		return time.Time{}, fault.New(fault.Invalid, "countersignature of %s: public key of %d bytes", aggregator, len(key))
	}
	k := &witnessKey{name: originPrefix + c.Mesh + "/" + aggregator, public: key}
	if _, err := note.Open(signed, note.VerifierList(k)); err != nil {
		return time.Time{}, fault.New(fault.Denied, "countersignature of %s on %s/%s at %d: %w", aggregator, c.Node, c.Run, c.Size, err)
	}
	return k.at, nil
}

// witnessKey signs and verifies notes of signature type 4: timestamp (8 bytes, big-endian, seconds) ‖ Ed25519 signature over
// "cosignature/v1" LF "time <seconds>" LF text. Verify leaves the timestamp in at.
type witnessKey struct {
	name   string
	public ed25519.PublicKey
	sign   func([]byte) ([]byte, error)
	at     time.Time
}

func (k *witnessKey) Name() string    { return k.name }
func (k *witnessKey) KeyHash() uint32 { return keyHash(k.name, 4, k.public) }

func cosigned(seconds uint64, msg []byte) []byte {
	b := strconv.AppendUint([]byte("cosignature/v1\ntime "), seconds, 10)
	return append(append(b, '\n'), msg...)
}

func (k *witnessKey) Sign(msg []byte) ([]byte, error) {
	seconds := uint64(max(k.at.Unix(), 0))
	sig, err := k.sign(cosigned(seconds, msg))
	if err != nil {
		return nil, err
	}
	return append(binary.BigEndian.AppendUint64(nil, seconds), sig...), nil
}

func (k *witnessKey) Verify(msg, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	seconds := binary.BigEndian.Uint64(sig)
	if seconds > 1<<40 || !ed25519.Verify(k.public, cosigned(seconds, msg), sig[8:]) {
		return false
	}
	k.at = time.Unix(int64(seconds), 0).UTC()
	return true
}
