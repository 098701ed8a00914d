package enroll_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/iapmesh/iapmesh/cluster/enroll"
	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// revoke is the leader: it verifies what it is handed as the real one does.
func (w *world) revoke(_ context.Context, r *iapmeshv1.RelayRevokeByHolderRequest) (*iapmeshv1.RevokeByHolderResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.revocations = append(w.revocations, r)
	if w.revoked != nil {
		return w.revoked(r)
	}
	if err := keyring.VerifyRevocation(w.secret.PublicKey(), [32]byte(r.ExportedKeyingMaterial), r.Revocation.Body, r.Revocation.Signature); err != nil {
		return nil, err
	}
	return &iapmeshv1.RevokeByHolderResponse{KeyId: w.secret.ID(), RevokedAt: timestamppb.Now(), Revision: &iapmeshv1.Revision{Epoch: 1, Index: 8}}, nil
}

func (w *world) inHand(addresses ...string) enroll.Revocation {
	return enroll.Revocation{Addresses: addresses, Secret: w.secret, Reason: "leaked", Logger: slog.New(slog.DiscardHandler), RetryEvery: 10 * time.Millisecond}
}

func TestAHolderRevokesByAnyNode(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	control := w.serve(w.certificate(true), w.admit)
	plain := w.serve(w.certificate(false), nil, &iapmeshv1.ControlNode{Address: control})
	for name, addr := range map[string]string{"a control node": control, "another": plain} {
		resp, err := enroll.Revoke(soon(t), w.inHand(addr))
		if err != nil || resp.KeyId != w.secret.ID() || resp.Revision.Index != 8 {
			t.Errorf("by %s: %v, %v", name, resp, err)
		}
	}
	for _, r := range w.revocations {
		asked, err := keyring.ParseHolderRevocation(r.Revocation.Body)
		if err != nil || asked != (keyring.HolderRevocation{Key: w.secret.ID(), Reason: "leaked"}) || r.SourceAddress != "127.0.0.1" {
			t.Errorf("relayed %+v from %s, %v", asked, r.SourceAddress, err)
		}
	}
	if len(w.revocations) != 2 || w.attempts.Load() != 0 {
		t.Errorf("%d revocations, %d joins", len(w.revocations), w.attempts.Load())
	}
	if _, err := enroll.Revoke(soon(t), w.inHand()); !fault.Is(err, fault.Invalid) {
		t.Errorf("by nobody: %v", err)
	}
}

// Who holds a key signs for a control node under its pin, or for nobody.
func TestAHolderTalksToNobodyElse(t *testing.T) {
	t.Parallel()
	w, other := newWorld(t), newWorld(t)
	foreign := other.serve(other.certificate(true), other.admit)
	liar := w.serve(w.certificate(false), w.admit, &iapmeshv1.ControlNode{Address: foreign})
	for name, addr := range map[string]string{"another mesh": foreign, "a plain node that points to one": liar} {
		if _, err := enroll.Revoke(soon(t), w.inHand(addr)); !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(w.revocations)+len(other.revocations) != 0 {
		t.Error("somebody got a signature")
	}
}

// A man in the middle with a certificate of the mesh's own cannot use what a holder signed for him, neither to revoke nor to join.
func TestAHoldersSignatureHoldsOnOneConnectionOnly(t *testing.T) {
	t.Parallel()
	w, thief := newWorld(t), newWorld(t)
	thief.authority, thief.caKey, thief.secret = w.authority, w.caKey, w.secret
	var stolen *iapmeshv1.RevokeByHolderRequest
	thief.revoked = func(r *iapmeshv1.RelayRevokeByHolderRequest) (*iapmeshv1.RevokeByHolderResponse, error) {
		stolen = r.Revocation
		return nil, fault.New(fault.Denied, "thank you")
	}
	if _, err := enroll.Revoke(soon(t), w.inHand(thief.serve(thief.certificate(true), thief.admit))); !fault.Is(err, fault.Denied) {
		t.Fatal(err)
	}
	addr := w.serve(w.certificate(true), w.admit)
	if err := w.ask(t, addr, stolen); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("what was signed for another connection: %v", err)
	}
	if err := w.call(t, addr, &iapmeshv1.JoinRequest{Body: stolen.Body, ProvisioningSignature: stolen.Signature}); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("as a join: %v", err)
	}
}

// ask makes a request as it is, on a connection of its own.
func (w *world) ask(t *testing.T, addr string, req *iapmeshv1.RevokeByHolderRequest) error {
	t.Helper()
	conn, err := (peer.Pinned{Pin: w.secret.Pin(), AnyNode: true}).Dial(soon(t), addr)
	must(t, err)
	defer conn.Close()
	client, err := grpc.NewClient("passthrough:///x", conn.DialOptions()...)
	must(t, err)
	defer client.Close()
	_, err = iapmeshv1.NewEnrollServiceClient(client).RevokeByHolder(soon(t), req)
	return fault.FromStatus(err)
}

func TestALeaderThatIsLostIsAskedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.revoked = func(*iapmeshv1.RelayRevokeByHolderRequest) (*iapmeshv1.RevokeByHolderResponse, error) {
		if len(w.revocations) < 3 {
			return nil, fault.New(fault.Unavailable, "no leader")
		}
		return &iapmeshv1.RevokeByHolderResponse{KeyId: w.secret.ID(), Already: true}, nil
	}
	addr := w.serve(w.certificate(true), w.admit)
	if resp, err := enroll.Revoke(soon(t), w.inHand(addr)); err != nil || !resp.Already {
		t.Errorf("%v, %v", resp, err)
	}
	w.revoked = func(*iapmeshv1.RelayRevokeByHolderRequest) (*iapmeshv1.RevokeByHolderResponse, error) {
		return &iapmeshv1.RevokeByHolderResponse{KeyId: "another"}, nil
	}
	if _, err := enroll.Revoke(soon(t), w.inHand(addr)); !fault.Is(err, fault.Internal) {
		t.Errorf("an answer for another key: %v", err)
	}
	ctx, cancel := context.WithTimeout(soon(t), 100*time.Millisecond)
	defer cancel()
	if _, err := enroll.Revoke(ctx, w.inHand(w.serve(w.certificate(false), nil))); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "revoke: gave up") {
		t.Errorf("where nobody knows a control node: %v", err)
	}
}

// Whoever knows a key's id alone, at however many addresses, keeps nobody who holds it from joining or from making it worthless.
func TestWhoHoldsAKeyDoesNotWaitForWhoNamesIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.serve(w.certificate(true), w.admit)
	body, err := keyring.HolderRevocation{Key: w.secret.ID()}.Body()
	must(t, err)
	named, err := proto.Marshal(&iapmeshv1.JoinBody{Version: 1, KeyId: w.secret.ID()})
	must(t, err)
	alike, err := proto.Marshal(&iapmeshv1.JoinBody{Version: 1, KeyId: w.secret.ID() + " proved"})
	must(t, err)
	// The key's own limit: each address is far below its own.
	flood := func(what string, call func(iapmeshv1.EnrollServiceClient) error) {
		for source := 2; source < 250; source++ {
			client := w.dialFrom(addr, fmt.Sprintf("127.0.0.%d", source)).client
			for range 10 {
				if err := fault.FromStatus(call(client)); fault.Is(err, fault.Unavailable) && strings.Contains(err.Error(), "too many attempts") {
					return
				}
			}
		}
		t.Errorf("a flood of %s is none too many", what)
	}
	holder := w.dial(addr)
	signature, err := keyring.SignRevocation(w.secret.PrivateKey(), exported(t, holder.Conn), body)
	must(t, err)
	flood("revocations", func(c iapmeshv1.EnrollServiceClient) error {
		_, err := c.RevokeByHolder(soon(t), &iapmeshv1.RevokeByHolderRequest{Body: body, Signature: make([]byte, ed25519.SignatureSize)})
		return err
	})
	if _, err := holder.client.RevokeByHolder(soon(t), &iapmeshv1.RevokeByHolderRequest{Body: body, Signature: signature}); err != nil {
		t.Errorf("who holds the key cannot revoke it: %v", err)
	}
	flood("joins", func(c iapmeshv1.EnrollServiceClient) error {
		_, err := c.Join(soon(t), &iapmeshv1.JoinRequest{Body: named})
		return err
	})
	flood("joins by another name", func(c iapmeshv1.EnrollServiceClient) error {
		_, err := c.Join(soon(t), &iapmeshv1.JoinRequest{Body: alike})
		return err
	})
	if _, err := holder.client.Join(soon(t), w.signed(w.request(addr), holder.Conn)); err != nil {
		t.Errorf("who holds the key cannot join by it: %v", err)
	}
}

// What is no such request never reaches the leader, nor does a flood.
func TestRevocationsAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.serve(w.certificate(true), w.admit)
	for name, body := range map[string][]byte{
		"nothing": nil, "a version to come": []byte("\x02" + w.secret.ID()), "too much": make([]byte, keyring.MaxHolderBody+1), "no id": make([]byte, 17),
	} {
		if err := w.ask(t, addr, &iapmeshv1.RevokeByHolderRequest{Body: body}); !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(w.revocations) != 0 {
		t.Errorf("the leader heard of %d", len(w.revocations))
	}
	if err := w.ask(t, w.serve(w.certificate(false), nil), &iapmeshv1.RevokeByHolderRequest{}); !fault.Is(err, fault.Denied) {
		t.Errorf("a plain node: %v", err)
	}
	refused, line := false, w.dial(addr)
	for deadline := time.Now().Add(patience); !refused && time.Now().Before(deadline); { // faster than two a second, however slow the machine
		_, err := line.client.RevokeByHolder(soon(t), &iapmeshv1.RevokeByHolderRequest{})
		err = fault.FromStatus(err)
		refused = fault.Is(err, fault.Unavailable) && strings.Contains(err.Error(), "too many attempts")
	}
	if !refused {
		t.Error("attempts without a pause are none too many")
	}
	if _, err := enroll.Revoke(soon(t), w.inHand(addr)); err != nil {
		t.Errorf("who waits: %v", err)
	}
}
