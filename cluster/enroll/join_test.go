package enroll_test

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/cluster/enroll"
	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func TestJoin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.request(w.serve(w.certificate(true), w.admit))
	e, err := enroll.Join(soon(t), r)
	must(t, err)
	if e.NodeID != keyring.NodeID(r.NodeKey.Public().(ed25519.PublicKey)) || e.MeshID != "m-1" || e.Revision.Index != 7 || len(e.Bundle) != 1 ||
		len(e.Certificate.Certificate) != 2 || e.Certificate.Leaf == nil {
		t.Errorf("enrollment: %+v", e)
	}
	if w.last.SourceAddress != "127.0.0.1" || len(w.last.ExportedKeyingMaterial) != 32 {
		t.Errorf("relayed: %+v", w.last)
	}
}

// A joiner has a secret to sign with; it signs for a control node under its pin, or not at all.
func TestAJoinerTalksToNobodyElse(t *testing.T) {
	t.Parallel()
	w, other := newWorld(t), newWorld(t)
	admin := w.certificate(true)
	admin.Certificate = admin.Certificate[:1]
	for name, tc := range map[string]struct {
		cert *tls.Certificate
		says string
	}{
		"another mesh":                 {other.certificate(true), "the root that the key pins"},
		"a server without the root":    {admin, "sent 1 certificates"},
		"the root of the pin, no more": {&tls.Certificate{Certificate: [][]byte{other.certificate(true).Certificate[0], w.authority.Certificate.Raw}, PrivateKey: nil}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cert := tc.cert
			if cert.PrivateKey == nil { // its leaf is another mesh's
				key := newKey(t)
				cert = &tls.Certificate{Certificate: [][]byte{other.issue(key, true).Raw, w.authority.Certificate.Raw}, PrivateKey: key}
			}
			addr := w.serve(cert, func(context.Context, *iapmeshv1.RelayJoinRequest) (*iapmeshv1.JoinResponse, error) {
				t.Error("it was asked")
				return nil, errors.New("no")
			})
			if _, err := enroll.Join(soon(t), w.request(addr)); !fault.Is(err, fault.Unauthenticated) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v, want unauthenticated, with %q", err, tc.says)
			}
		})
	}
}

// A node of the same mesh that is no control node is never asked to join by: it may say where control nodes are, and no more.
func TestAPlainNodeOnlyPointsTheWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	asked := func(context.Context, *iapmeshv1.RelayJoinRequest) (*iapmeshv1.JoinResponse, error) {
		t.Error("a plain node got a signature")
		return nil, errors.New("no")
	}
	control := w.serve(w.certificate(true), w.admit)
	plain := w.serve(w.certificate(false), asked, &iapmeshv1.ControlNode{Address: control})
	if _, err := enroll.Join(soon(t), w.request(plain)); err != nil {
		t.Errorf("by way of a plain node: %v", err)
	}
	// Where it points to has to prove itself like any other.
	other := newWorld(t)
	liar := w.serve(w.certificate(false), asked, &iapmeshv1.ControlNode{Address: other.serve(other.certificate(true), asked)})
	if _, err := enroll.Join(soon(t), w.request(liar)); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("by way of a liar: %v", err)
	}
}

// A man in the middle, even with a certificate of the mesh's own, cannot use what a joiner signed for him.
func TestSignaturesHoldOnOneConnectionOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.serve(w.certificate(true), w.admit)
	var stolen *iapmeshv1.JoinRequest
	thief := w.serve(w.certificate(true), func(_ context.Context, a *iapmeshv1.RelayJoinRequest) (*iapmeshv1.JoinResponse, error) {
		stolen = a.Join
		return nil, fault.New(fault.Denied, "thank you")
	})
	if _, err := enroll.Join(soon(t), w.request(thief)); !fault.Is(err, fault.Denied) {
		t.Fatal(err)
	}
	if err := w.call(t, addr, stolen); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("what was signed for another connection: %v", err)
	}
	if w.attempts.Load() != 1 || len(w.nodes) != 0 {
		t.Errorf("%d attempts, nodes %v", w.attempts.Load(), w.nodes)
	}
}

// call asks with a request as it is, on a connection of its own.
func (w *world) call(t *testing.T, addr string, req *iapmeshv1.JoinRequest) error {
	t.Helper()
	conn, err := (peer.Pinned{Pin: w.secret.Pin()}).Dial(soon(t), addr)
	must(t, err)
	defer conn.Close()
	return w.callOver(t, conn, req)
}

func (w *world) callOver(t *testing.T, conn *peer.Conn, req *iapmeshv1.JoinRequest) error {
	t.Helper()
	client, err := grpc.NewClient("passthrough:///x", conn.DialOptions()...)
	must(t, err)
	defer client.Close()
	_, err = iapmeshv1.NewEnrollServiceClient(client).Join(soon(t), req)
	return fault.FromStatus(err)
}

// Whatever of a request is changed or exchanged on the way, a signature no longer holds.
func TestEverySignatureCoversAll(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.serve(w.certificate(true), w.admit)
	for name, change := range map[string]func(*iapmeshv1.JoinBody, *iapmeshv1.JoinRequest, *[32]byte, map[keyring.JoinSigner]ed25519.PrivateKey){
		"another request for a certificate": func(b *iapmeshv1.JoinBody, _ *iapmeshv1.JoinRequest, _ *[32]byte, _ map[keyring.JoinSigner]ed25519.PrivateKey) {
			b.Csr, _ = keyring.NewCSR(newKey(t))
		},
		"another session key": func(b *iapmeshv1.JoinBody, _ *iapmeshv1.JoinRequest, _ *[32]byte, _ map[keyring.JoinSigner]ed25519.PrivateKey) {
			b.SessionPublicKey = newKey(t).Public().(ed25519.PublicKey)
		},
		"a provisioning key of another": func(_ *iapmeshv1.JoinBody, _ *iapmeshv1.JoinRequest, _ *[32]byte, keys map[keyring.JoinSigner]ed25519.PrivateKey) {
			keys[keyring.SignerProvisioning] = newKey(t)
		},
		"another connection": func(_ *iapmeshv1.JoinBody, _ *iapmeshv1.JoinRequest, ekm *[32]byte, _ map[keyring.JoinSigner]ed25519.PrivateKey) {
			ekm[31]++
		},
		"signatures in each other's place": func(_ *iapmeshv1.JoinBody, r *iapmeshv1.JoinRequest, _ *[32]byte, keys map[keyring.JoinSigner]ed25519.PrivateKey) {
			keys[keyring.SignerNode], keys[keyring.SignerSession] = keys[keyring.SignerSession], keys[keyring.SignerNode]
		},
	} {
		r := w.request(addr)
		conn, err := (peer.Pinned{Pin: w.secret.Pin()}).Dial(soon(t), addr)
		must(t, err)
		csr, err := keyring.NewCSR(r.NodeKey)
		must(t, err)
		body := &iapmeshv1.JoinBody{Version: 1, JoinId: r.JoinID[:], KeyId: w.secret.ID(), Csr: csr, SessionPublicKey: r.SessionKey.Public().(ed25519.PublicKey), Region: "eu-west"}
		req := &iapmeshv1.JoinRequest{}
		keys := map[keyring.JoinSigner]ed25519.PrivateKey{
			keyring.SignerProvisioning: w.secret.PrivateKey(), keyring.SignerNode: r.NodeKey, keyring.SignerSession: r.SessionKey,
		}
		state := conn.ConnectionState()
		exported, err := state.ExportKeyingMaterial(enroll.ExporterLabel, nil, 32)
		must(t, err)
		ekm := [32]byte(exported)
		change(body, req, &ekm, keys)
		req.Body, err = proto.Marshal(body)
		must(t, err)
		for signer, into := range map[keyring.JoinSigner]*[]byte{
			keyring.SignerProvisioning: &req.ProvisioningSignature, keyring.SignerNode: &req.NodeSignature, keyring.SignerSession: &req.SessionSignature,
		} {
			*into, err = keyring.SignJoin(signer, keys[signer], ekm, req.Body)
			must(t, err)
		}
		if err := w.callOver(t, conn, req); !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("%s: %v, want unauthenticated", name, err)
		}
		conn.Close()
	}
}

func TestALostReplyIsAskedForAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	lost := 0
	w.answer = func(a *iapmeshv1.JoinResponse, err error) (*iapmeshv1.JoinResponse, error) {
		if lost++; lost <= 2 {
			return nil, fault.New(fault.Unavailable, "the leader was lost before it could answer")
		}
		return a, err
	}
	e, err := enroll.Join(soon(t), w.request(w.serve(w.certificate(true), w.admit)))
	must(t, err)
	if len(w.nodes) != 1 || e.NodeID == "" || w.attempts.Load() != 3 {
		t.Errorf("nodes %v after %d attempts", w.nodes, w.attempts.Load())
	}
}

func TestARefusalIsFinal(t *testing.T) {
	t.Parallel()
	for _, kind := range fault.Kinds() {
		if kind == fault.Unavailable {
			continue
		}
		w := newWorld(t)
		w.answer = func(*iapmeshv1.JoinResponse, error) (*iapmeshv1.JoinResponse, error) {
			return nil, fault.New(kind, "no")
		}
		if _, err := enroll.Join(soon(t), w.request(w.serve(w.certificate(true), w.admit))); !fault.Is(err, kind) || w.attempts.Load() != 1 {
			t.Errorf("%v: %v after %d attempts", kind, err, w.attempts.Load())
		}
	}
}

// After a rotation of the CA the answer holds cross certificates beside the roots: they are presented, and none is trusted.
func TestCrossCertificatesAreNoRoots(t *testing.T) {
	t.Parallel()
	w, next := newWorld(t), newWorld(t)
	cross, err := keyring.CrossSign(next.authority, next.caKey, w.authority, time.Now())
	must(t, err)
	w.answer = func(a *iapmeshv1.JoinResponse, err error) (*iapmeshv1.JoinResponse, error) {
		a.Bundle = [][]byte{cross.Raw, w.authority.Certificate.Raw, next.authority.Certificate.Raw}
		return a, err
	}
	e, err := enroll.Join(soon(t), w.request(w.serve(w.certificate(true), w.admit)))
	must(t, err)
	if len(e.Bundle) != 2 || !e.Bundle[0].Equal(w.authority.Certificate) || !e.Bundle[1].Equal(next.authority.Certificate) || len(e.Certificate.Certificate) != 4 {
		t.Errorf("%d roots, a chain of %d", len(e.Bundle), len(e.Certificate.Certificate))
	}
}

// What comes back is checked: a certificate for another key, or under another root, would make this node somebody else's.
func TestAWrongAnswerIsRefused(t *testing.T) {
	t.Parallel()
	other := newWorld(t)
	for name, change := range map[string]func(w *world, a *iapmeshv1.JoinResponse){
		"another key": func(w *world, a *iapmeshv1.JoinResponse) {
			key := newKey(t)
			a.Certificate, a.NodeId = w.issue(key, false).Raw, keyring.NodeID(key.Public().(ed25519.PublicKey))
		},
		"another root":   func(_ *world, a *iapmeshv1.JoinResponse) { a.Bundle = [][]byte{other.authority.Certificate.Raw} },
		"no roots":       func(_ *world, a *iapmeshv1.JoinResponse) { a.Bundle = nil },
		"garbage":        func(_ *world, a *iapmeshv1.JoinResponse) { a.Certificate = []byte("x") },
		"a garbage root": func(_ *world, a *iapmeshv1.JoinResponse) { a.Bundle = append(a.Bundle, []byte("x")) },
		"too many": func(w *world, a *iapmeshv1.JoinResponse) {
			for range keyring.MaxChain {
				a.Bundle = append(a.Bundle, w.authority.Certificate.Raw)
			}
		},
		"the pinned key, cross-signed, in place of its root": func(w *world, a *iapmeshv1.JoinResponse) {
			cross, err := keyring.CrossSign(other.authority, other.caKey, w.authority, time.Now())
			must(w.t, err)
			a.Bundle = [][]byte{cross.Raw, other.authority.Certificate.Raw}
		},
		"another node's id": func(_ *world, a *iapmeshv1.JoinResponse) { a.NodeId = "n-other" },
		"another domain":    func(_ *world, a *iapmeshv1.JoinResponse) { a.TrustDomain = "other.test" },
	} {
		w := newWorld(t)
		w.answer = func(a *iapmeshv1.JoinResponse, err error) (*iapmeshv1.JoinResponse, error) {
			change(w, a)
			return a, err
		}
		if e, err := enroll.Join(soon(t), w.request(w.serve(w.certificate(true), w.admit))); err == nil {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func TestJoinEndsWithItsContext(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := enroll.Join(ctx, w.request("127.0.0.1:1")); !fault.Is(err, fault.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if _, err := enroll.Join(t.Context(), w.request()); !fault.Is(err, fault.Invalid) {
		t.Errorf("no address: %v", err)
	}
}

func TestOlderTLSAndOtherProtocolsAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.serve(w.certificate(true), w.admit)
	pool := x509.NewCertPool()
	pool.AddCert(w.authority.Certificate)
	for name, c := range map[string]*tls.Config{
		"TLS 1.2":  {MaxVersion: tls.VersionTLS12, NextProtos: []string{peer.ProtoJoin}},
		"no ALPN":  {},
		"HTTP/2":   {NextProtos: []string{"h2"}},
		"HTTP/1.1": {NextProtos: []string{"http/1.1"}},
	} {
		c.InsecureSkipVerify = true // what is tested is what the server refuses
		conn, err := tls.Dial("tcp", addr, c)
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
			conn.Close()
		}
		if err == nil || errors.Is(err, io.EOF) && name == "TLS 1.2" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTooLargeIsRefusedBeforeItIsRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.serve(w.certificate(true), w.admit)
	for size, kind := range map[int]fault.Kind{0: fault.Unauthenticated, keyring.MaxJoinBody + 1: fault.Unauthenticated, 1 << 20: fault.Exhausted} {
		if err := w.call(t, addr, &iapmeshv1.JoinRequest{Body: make([]byte, size)}); !fault.Is(err, kind) {
			t.Errorf("%d bytes: %v, want %v", size, err, kind)
		}
	}
	if w.attempts.Load() != 0 {
		t.Errorf("the leader was asked %d times", w.attempts.Load())
	}
}

// Two hundred that stall, at every stage, keep a real one waiting for nothing.
func TestStalledJoinersBlockNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.serve(w.certificate(true), w.admit)
	var stalled sync.WaitGroup
	for i := range 200 {
		stalled.Go(func() {
			if i%2 == 0 { // says nothing at all
				if c, err := net.Dial("tcp", addr); err == nil {
					t.Cleanup(func() { c.Close() })
				}
				return
			}
			if c, err := (peer.Pinned{Pin: w.secret.Pin()}).Dial(t.Context(), addr); err == nil { // says nothing after the handshake
				t.Cleanup(func() { c.Close() })
			}
		})
	}
	stalled.Wait()
	if _, err := enroll.Join(soon(t), w.request(addr)); err != nil {
		t.Errorf("a real one: %v", err)
	}
}

// Who asks too often is told to wait, and is admitted when it has waited; the leader hears little of it.
func TestAFloodWaits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.serve(w.certificate(true), w.admit)
	refused, line := false, w.dial(addr)
	for deadline := time.Now().Add(patience); !refused && time.Now().Before(deadline); { // faster than two a second, however slow the machine
		err := line.join(t, &iapmeshv1.JoinRequest{Body: []byte{0x08, 0x01}})
		refused = fault.Is(err, fault.Unavailable) && strings.Contains(err.Error(), "too many attempts")
	}
	if !refused {
		t.Errorf("%d attempts without a pause are none too many", w.attempts.Load())
	}
	if _, err := enroll.Join(soon(t), w.request(addr)); err != nil {
		t.Errorf("who waits: %v", err)
	}
}

func FuzzJoin(f *testing.F) {
	w := newWorld(f)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(f, err)
	id, err := peer.NewIdentity(w.certificate(true))
	must(f, err)
	port, err := peer.NewPort(peer.Config{Listener: l, Identity: id, Trust: w, AnonymousLifetime: time.Hour})
	must(f, err)
	joins, err := port.Listen(peer.ProtoJoin, peer.Nobody)
	must(f, err)
	w.run(port.Run)
	client, err := (peer.Pinned{Pin: w.secret.Pin()}).Dial(context.Background(), l.Addr().String())
	must(f, err)
	f.Cleanup(func() { client.Close() })
	accepted, err := joins.Accept()
	must(f, err)
	conn, err := peer.Of(accepted)
	must(f, err)
	ctx := grpcpeer.NewContext(context.Background(), &grpcpeer.Peer{Addr: conn.RemoteAddr(), AuthInfo: peer.AuthInfo{Conn: conn}})

	good, err := proto.Marshal(&iapmeshv1.JoinBody{Version: 1, KeyId: w.secret.ID(), JoinId: make([]byte, 16)})
	must(f, err)
	f.Add(good, []byte("signature"))
	f.Add([]byte{0xff}, []byte{})
	f.Add([]byte(strings.Repeat("x", keyring.MaxJoinBody+1)), []byte{})
	f.Fuzz(func(t *testing.T, body, signature []byte) {
		server := enroll.NewServer(w.admit, nil, slog.New(slog.DiscardHandler), nil)
		resp, err := server.Join(ctx, &iapmeshv1.JoinRequest{Body: body, ProvisioningSignature: signature, NodeSignature: signature, SessionSignature: signature})
		if err == nil {
			t.Fatalf("admitted: %v", resp)
		}
		if kind := fault.KindOf(err); kind != fault.Unauthenticated && kind != fault.Invalid {
			t.Fatal(fmt.Errorf("%v: %w", kind, err))
		}
	})
}
