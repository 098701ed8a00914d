// Package enroll is the join handshake, both ends: a node that holds a provisioning key and the hash of the mesh's root becomes a
// node with a certificate. PROTOCOLS.md has the exact form.
//
// Invariants. The signatures are bound to the TLS connection by its exported keying material, so that nobody in between can use
// them. The joiner talks to a control node under the pinned root, or to nobody. The server decides nothing: it bounds sizes,
// rates and time, and hands the attempt to whoever leads, who verifies all of it. What was refused is answered in the same way
// until the provisioning key's signature has verified.
package enroll

import (
	"crypto/tls"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// ExporterLabel is the TLS exporter's label (RFC 8446 §7.5; the channel binding follows RFC 9266).
const ExporterLabel = "EXPORTER-iapmesh-join-v1"

// exportKeyingMaterial binds to one connection: it is different on each, and for a man in the middle.
func exportKeyingMaterial(state tls.ConnectionState) ([32]byte, error) {
	if state.Version != tls.VersionTLS13 {
		return [32]byte{}, fault.New(fault.Unauthenticated, "join: TLS 1.3 only")
	}
	raw, err := state.ExportKeyingMaterial(ExporterLabel, nil, 32)
	if err != nil {
		return [32]byte{}, fault.New(fault.Internal, "join: export keying material: %w", err)
	}
	return [32]byte(raw), nil
}
