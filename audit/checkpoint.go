package audit

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/mod/sumdb/note"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// MaxNote is the longest signed checkpoint in bytes.
const MaxNote = 4 << 10

// Checkpoint is what a node states each second about its tree. Its text is a C2SP tlog-checkpoint:
//
//	iapmesh/audit/v1/<mesh>/<node>/<run>
//	<size>
//	<root, base64>
//	time <RFC 3339, UTC>
//
// It is signed as a C2SP signed note with the node's Ed25519 key (signature type 1). The first line separates it from all else
// that this key signs: nothing else begins with "iapmesh/audit/v1/".
type Checkpoint struct {
	Mesh, Node string
	Run        Run
	Size       uint64
	Root       Hash
	Time       time.Time
}

const originPrefix = "iapmesh/audit/v1/"

func originOf(mesh, node string, run Run) string {
	return originPrefix + mesh + "/" + node + "/" + run.String()
}

// text is what is signed. It is strict in what it writes; parseCheckpoint takes nothing else.
func (c Checkpoint) text() string {
	var b strings.Builder
	b.WriteString(originOf(c.Mesh, c.Node, c.Run))
	b.WriteByte('\n')
	b.WriteString(strconv.FormatUint(c.Size, 10))
	b.WriteByte('\n')
	b.WriteString(base64.StdEncoding.EncodeToString(c.Root[:]))
	b.WriteString("\ntime ")
	b.WriteString(c.Time.UTC().Format(time.RFC3339Nano))
	b.WriteByte('\n')
	return b.String()
}

// Signer is a node's key: it signs with Ed25519 (no pre-hash). crypto/ed25519 keys become one by SignWith.
type Signer interface {
	Public() ed25519.PublicKey
	Sign(message []byte) ([]byte, error)
}

// SignWith makes a Signer of a private key.
func SignWith(key ed25519.PrivateKey) Signer { return keySigner(key) }

type keySigner ed25519.PrivateKey

func (k keySigner) Public() ed25519.PublicKey {
	return ed25519.PrivateKey(k).Public().(ed25519.PublicKey)
}

func (k keySigner) Sign(message []byte) ([]byte, error) {
	return ed25519.Sign(ed25519.PrivateKey(k), message), nil
}

// Sign returns the checkpoint as a note signed by its node.
func (c Checkpoint) Sign(s Signer) ([]byte, error) {
	for _, name := range []string{c.Mesh, c.Node} {
		if err := CheckName(name); err != nil {
			return nil, err
		}
	}
	signed, err := note.Sign(&note.Note{Text: c.text()}, &nodeKey{name: originOf(c.Mesh, c.Node, c.Run), public: s.Public(), sign: s.Sign})
	if err != nil {
		return nil, fault.New(fault.Internal, "sign checkpoint of %s/%s: %w", c.Node, c.Run, err)
	}
	return signed, nil
}

// OpenCheckpoint verifies a note against the key of the node that it must be from and returns the checkpoint. Kind Invalid if it
// is no checkpoint, Denied if the node's signature is absent or wrong.
func OpenCheckpoint(signed []byte, node string, key ed25519.PublicKey) (Checkpoint, error) {
	c, err := Peek(signed)
	if err != nil {
		return Checkpoint{}, err
	}
	if c.Node != node {
		return Checkpoint{}, fault.New(fault.Denied, "checkpoint of node %q, not of %q", c.Node, node)
	}
	if len(key) != ed25519.PublicKeySize {
		return Checkpoint{}, fault.New(fault.Invalid, "checkpoint of %s: public key of %d bytes", node, len(key))
	}
	if _, err := note.Open(signed, note.VerifierList(&nodeKey{name: originOf(c.Mesh, c.Node, c.Run), public: key})); err != nil {
		return Checkpoint{}, fault.New(fault.Denied, "checkpoint of %s/%s at %d: %w", c.Node, c.Run, c.Size, err)
	}
	return c, nil
}

// Peek parses a note's text without verifying any signature: for what is not decided on it.
func Peek(signed []byte) (Checkpoint, error) {
	if len(signed) > MaxNote {
		return Checkpoint{}, fault.New(fault.Invalid, "checkpoint: %d bytes, at most %d", len(signed), MaxNote)
	}
	text, _, ok := strings.Cut(string(signed), "\n\n")
	if !ok {
		return Checkpoint{}, fault.New(fault.Invalid, "checkpoint: no signed note")
	}
	return parseCheckpoint(text + "\n")
}

func parseCheckpoint(text string) (Checkpoint, error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 5 {
		return Checkpoint{}, fault.New(fault.Invalid, "checkpoint: %d lines, want origin, size, root, time", len(lines)-1)
	}
	var c Checkpoint
	rest, ok := strings.CutPrefix(lines[0], originPrefix)
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 {
		return Checkpoint{}, fault.New(fault.Invalid, "checkpoint: origin %.80q", lines[0])
	}
	c.Mesh, c.Node = parts[0], parts[1]
	var err error
	if c.Run, err = ParseRun(parts[2]); err != nil {
		return Checkpoint{}, err
	}
	if c.Size, err = strconv.ParseUint(lines[1], 10, 63); err != nil {
		return Checkpoint{}, fault.New(fault.Invalid, "checkpoint: size %.40q", lines[1])
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != len(c.Root) {
		return Checkpoint{}, fault.New(fault.Invalid, "checkpoint: root %.80q", lines[2])
	}
	c.Root = Hash(root)
	stamp, ok := strings.CutPrefix(lines[3], "time ")
	if c.Time, err = time.Parse(time.RFC3339Nano, stamp); !ok || err != nil {
		return Checkpoint{}, fault.New(fault.Invalid, "checkpoint: time %.80q", lines[3])
	}
	if c.text() != text || CheckName(c.Mesh) != nil || CheckName(c.Node) != nil {
		return Checkpoint{}, fault.New(fault.Invalid, "checkpoint: not in the form in which it is written")
	}
	return c, nil
}

// CheckName says whether a name of a mesh or a node can stand in a checkpoint and be a directory.
func CheckName(name string) error {
	bad := func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r) || r == '+' || r == '/' || r == unicode.ReplacementChar
	}
	if name == "" || len(name) > 253 || name[0] == '.' || strings.IndexFunc(name, bad) >= 0 {
		return fault.New(fault.Invalid, "audit name %.80q: want 1 to 253 characters without space, control character, plus or slash, and no dot first", name)
	}
	return nil
}

// nodeKey signs (if sign is set) and verifies notes of signature type 1, Ed25519.
type nodeKey struct {
	name   string
	public ed25519.PublicKey
	sign   func([]byte) ([]byte, error)
}

func (k *nodeKey) Name() string                    { return k.name }
func (k *nodeKey) KeyHash() uint32                 { return keyHash(k.name, 1, k.public) }
func (k *nodeKey) Verify(msg, sig []byte) bool     { return ed25519.Verify(k.public, msg, sig) }
func (k *nodeKey) Sign(msg []byte) ([]byte, error) { return k.sign(msg) }

// keyHash is the key ID of C2SP signed-note: the first four bytes of SHA-256(name ‖ LF ‖ type ‖ key).
func keyHash(name string, algorithm byte, key ed25519.PublicKey) uint32 {
	sum := sha256.Sum256(append(append([]byte(name), '\n', algorithm), key...))
	return binary.BigEndian.Uint32(sum[:])
}
