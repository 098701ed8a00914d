package control_test

import (
	"bytes"
	"testing"

	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// A node that was revoked knows the gossip key: the others must stop speaking by it.
func TestTheGossipRingIsAnotherOnceANodeIsRevoked(t *testing.T) {
	t.Parallel()
	w := start(t)
	gone, stays := w.joined(w.boot, "web-1", "eu-west"), w.joined(w.boot, "web-2", "us-east")
	ring := func(j *joiner) []byte {
		member := seal.Member{Node: j.id(), Key: j.sealing}
		keys, err := member.Open(w.view().Keyring, keyring.AudienceGossip, keyring.SecretGossipRing)
		if err != nil {
			t.Fatal(err)
		}
		return keys
	}
	known := ring(gone)
	if !bytes.Equal(known, ring(stays)) {
		t.Fatal("two rings in one mesh")
	}
	must(t, second2(w.Revoke(t.Context(), "admin/ana", &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE, Value: "web-1"})))
	w.eventually("a ring without the revoked node", func() bool { return !w.opens(gone, keyring.AudienceGossip) })
	if now := ring(stays); len(now) != 32 || bytes.Contains(now, known) {
		t.Errorf("a ring of %d bytes: want a new key alone", len(now))
	}
}
