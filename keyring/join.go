package keyring

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// MaxJoinBody bounds the signed bytes of a join request.
const MaxJoinBody = 16 << 10

// JoinExporterLabel is the TLS exporter label (RFC 9266 gives the pattern) whose 32 bytes bind a join to its connection.
const JoinExporterLabel = "EXPORTER-iapmesh-join-v1"

// JoinSigner says which of the three keys of a join signed.
type JoinSigner string

// The signers of a join.
const (
	SignerProvisioning JoinSigner = "provisioning"
	SignerNode         JoinSigner = "node"
	SignerSession      JoinSigner = "session"
)

// JoinDigest is SHA-256 of the keying material and the exact request bytes, these after their length (u32, big-endian).
func JoinDigest(ekm [32]byte, body []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write(ekm[:])
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(body))))
	h.Write(body)
	return [sha256.Size]byte(h.Sum(nil))
}

// joinMessage is what is signed: "iapmesh/join/v1/<signer>" ‖ JoinDigest.
func joinMessage(signer JoinSigner, ekm [32]byte, body []byte) ([]byte, error) {
	switch signer {
	case SignerProvisioning, SignerNode, SignerSession:
	default:
		return nil, fault.New(fault.Invalid, "join: unknown signer %.40q", string(signer))
	}
	if len(body) == 0 || len(body) > MaxJoinBody {
		return nil, fault.New(fault.Invalid, "join: a request of %d bytes, want 1 to %d", len(body), MaxJoinBody)
	}
	if ekm == [32]byte{} {
		return nil, fault.New(fault.Invalid, "join: no keying material of the connection")
	}
	digest := JoinDigest(ekm, body)
	return append([]byte("iapmesh/join/v1/"+string(signer)), digest[:]...), nil
}

// SignJoin signs a join request in the role of signer, bound to the connection with that exported keying material.
func SignJoin(signer JoinSigner, priv ed25519.PrivateKey, ekm [32]byte, body []byte) ([]byte, error) {
	if len(priv) != ed25519.PrivateKeySize {
		return nil, fault.New(fault.Invalid, "join: the %s key has %d bytes, want an Ed25519 private key", string(signer), len(priv))
	}
	message, err := joinMessage(signer, ekm, body)
	if err != nil {
		return nil, err
	}
	return ed25519.Sign(priv, message), nil
}

// VerifyJoin checks what SignJoin made. A wrong signature is Unauthenticated; the usual cause beside a wrong key is something
// that terminates TLS between the two.
func VerifyJoin(signer JoinSigner, pub ed25519.PublicKey, ekm [32]byte, body, signature []byte) error {
	if err := validPublicKey(string(signer)+" key", pub); err != nil {
		return err
	}
	message, err := joinMessage(signer, ekm, body)
	if err != nil {
		return err
	}
	if len(signature) != ed25519.SignatureSize || !ed25519.Verify(pub, message, signature) {
		return fault.New(fault.Unauthenticated, "join: the signature by the %s key does not hold on this connection "+
			"(a load balancer or proxy that terminates TLS in between breaks it: pass TCP through)", string(signer))
	}
	return nil
}
