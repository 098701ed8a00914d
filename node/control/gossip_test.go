package control_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// ring is the gossip keys as a node can open them now; nil if it cannot.
func (w *world) ring(j *joiner) [][]byte {
	w.t.Helper()
	return w.ringIn(w.view(), j)
}

func (w *world) ringIn(v *state.View, j *joiner) [][]byte {
	w.t.Helper()
	member := seal.Member{Node: j.id(), Key: j.sealing}
	secret, err := member.Open(v.Keyring, keyring.AudienceGossip, keyring.SecretGossipRing)
	if fault.Is(err, fault.Denied) {
		return nil
	}
	must(w.t, err)
	keys, err := keyring.ParseRing(secret)
	must(w.t, err)
	return keys
}

// eventuallyPhase waits for a phase of the ring, and returns its keys. Nobody reports meanwhile unless report is set; nobody
// acknowledges the phase itself, so that the ring stays in it.
func (w *world) eventuallyPhase(j *joiner, phase keyring.RingPhase, keys int, report bool) (ring [][]byte) {
	w.t.Helper()
	w.eventually("phase "+string(phase), func() bool {
		v := w.view()
		ring = w.ringIn(v, j)
		if v.Keyring.GossipRing.Phase == phase && len(ring) == keys {
			return true
		}
		if report {
			w.everybodyReportsOf(v)
		}
		return false
	})
	return ring
}

// A node that was revoked knows the gossip key: the others stop speaking by it, without a moment in which two of them do not
// understand each other.
func TestTheGossipKeyIsReplacedStepByStepOnceANodeIsRevoked(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.clock.advance(time.Minute) // by now the leader can tell who is silent
	gone, stays := w.joined(w.boot, "web-1", "eu-west"), w.joined(w.boot, "web-2", "us-east")
	known := w.ring(gone)
	if len(known) != 1 || !bytes.Equal(known[0], w.ring(stays)[0]) {
		t.Fatal("two rings in one mesh")
	}
	w.everybodyReports()
	must(t, second2(w.Revoke(t.Context(), "admin/ana", &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE, Value: "web-1"})))
	w.eventually("a ring without the revoked node", func() bool { return !w.opens(gone, keyring.AudienceGossip) })
	install := w.eventuallyPhase(stays, keyring.RingInstall, 2, false)
	if !bytes.Equal(install[0], known[0]) || w.ring(gone) != nil {
		t.Error("install: the old key must go on encrypting, and the revoked node must not open the new one")
	}
	late := w.joined(w.boot, "web-3", "eu-west")
	if got := w.ring(late); len(got) != 2 || !bytes.Equal(got[0], install[0]) || !bytes.Equal(got[1], install[1]) {
		t.Error("a node that joins meanwhile has another ring")
	}
	use := w.eventuallyPhase(stays, keyring.RingUse, 2, true)
	if !bytes.Equal(use[0], install[1]) || !bytes.Equal(use[1], install[0]) {
		t.Error("use: want the new key to encrypt, and the old one behind it")
	}
	if steady := w.eventuallyPhase(stays, keyring.RingSteady, 1, true); !bytes.Equal(steady[0], install[1]) {
		t.Error("remove: want the new key alone")
	}
	for _, action := range []string{"gossip.use", "gossip.remove", "audience.expel"} {
		w.eventually("the record of "+action, func() bool { return len(w.trail.with(audit.KindRotation, "action", action)) > 0 })
	}
}

// Another node is revoked while some use the new key already, which it knows, too: what both of them know goes, and nobody is left behind.
func TestANodeIsRevokedWhileTheGossipKeyIsReplaced(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.clock.advance(time.Minute)
	gone, stays := w.joined(w.boot, "web-1", "eu-west"), w.joined(w.boot, "web-2", "us-east")
	w.everybodyReports()
	must(t, second(w.RotateGossipKey(t.Context(), "admin/ana")))
	install := w.eventuallyPhase(stays, keyring.RingInstall, 2, false)
	w.eventuallyPhase(stays, keyring.RingUse, 2, true)
	known := w.ring(gone)
	must(t, second2(w.Revoke(t.Context(), "admin/ana", &iapmeshv1.RevokeRequest{Target: iapmeshv1.RevokeTarget_REVOKE_TARGET_NODE, Value: "web-1"})))
	three := w.eventuallyPhase(stays, keyring.RingInstall, 3, false)
	if !bytes.Equal(three[0], install[1]) || !bytes.Equal(three[1], install[0]) || w.ring(gone) != nil {
		t.Error("install: want the key in use first, the one that some still use behind it, and none of it for the revoked node")
	}
	last := w.eventuallyPhase(stays, keyring.RingSteady, 1, true)
	if !bytes.Equal(last[0], three[2]) {
		t.Error("want the newest key alone")
	}
	for _, k := range known {
		if bytes.Equal(k, last[0]) {
			t.Error("the revoked node knows the key")
		}
	}
}

func TestAStepOfTheGossipRingWaitsForWhoeverIsLive(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.clock.advance(time.Minute)
	live, silent := w.joined(w.boot, "web-1", "eu-west"), w.joined(w.boot, "web-2", "us-east")
	before := w.view().Revision
	w.everybodyReports(silent)
	at, err := w.RotateGossipKey(t.Context(), "admin/ana")
	must(t, err)
	if !after(at, before) {
		t.Fatalf("at %s", at)
	}
	_, err = w.RotateGossipKey(t.Context(), "admin/ana")
	wantKind(t, "a second one meanwhile", err, fault.Conflict, "phase install")
	w.everybodyReports(live, silent) // the founder has it, web-1 is known to live and does not
	w.settled()
	if phase := w.view().Keyring.GossipRing.Phase; phase != keyring.RingInstall {
		t.Fatalf("phase %s, though a live node has not acknowledged", phase)
	}
	w.eventually("the end, without the silent node", func() bool {
		w.everybodyReports(silent)
		return w.view().Keyring.GossipRing.Phase == keyring.RingSteady
	})
}

func TestTheGossipKeyIsReplacedBySchedule(t *testing.T) {
	t.Parallel()
	w := start(t)
	first := w.ring(w.founder)[0]
	w.clock.advance(23 * time.Hour)
	w.settled()
	if got := w.ring(w.founder); len(got) != 1 {
		t.Fatalf("a ring of %d before its time", len(got))
	}
	w.clock.advance(time.Hour)
	w.eventually("another key", func() bool {
		w.everybodyReports()
		got := w.ring(w.founder)
		return len(got) == 1 && !bytes.Equal(got[0], first)
	})
}
