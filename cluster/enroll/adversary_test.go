package enroll_test

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/cluster/enroll"
	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// The suite of who wants in without a right to it: what stands between a joiner and its mesh, who replays, who mixes protocols, who
// holds doors open. TestAPlainNodeOnlyPointsTheWay, TestSignaturesHoldOnOneConnectionOnly, TestEverySignatureCoversAll and
// TestOlderTLSAndOtherProtocolsAreRefused belong to it.

// signed is a join as the joiner signs it for one connection.
func (w *world) signed(r enroll.Request, conn *peer.Conn) *iapmeshv1.JoinRequest {
	w.t.Helper()
	csr, err := keyring.NewCSR(r.NodeKey)
	must(w.t, err)
	body, err := proto.Marshal(&iapmeshv1.JoinBody{
		Version: 1, JoinId: r.JoinID[:], KeyId: w.secret.ID(), Csr: csr, SessionPublicKey: r.SessionKey.Public().(ed25519.PublicKey),
		SealingPublicKey: r.SealingKey, Name: r.Name, Region: r.Region, Roles: r.Roles,
	})
	must(w.t, err)
	req := &iapmeshv1.JoinRequest{Body: body}
	ekm := exported(w.t, conn)
	for signer, s := range map[keyring.JoinSigner]struct {
		key  ed25519.PrivateKey
		into *[]byte
	}{
		keyring.SignerProvisioning: {w.secret.PrivateKey(), &req.ProvisioningSignature},
		keyring.SignerNode:         {r.NodeKey, &req.NodeSignature},
		keyring.SignerSession:      {r.SessionKey, &req.SessionSignature},
	} {
		*s.into, err = keyring.SignJoin(signer, s.key, ekm, body)
		must(w.t, err)
	}
	return req
}

func exported(t testing.TB, conn *peer.Conn) [32]byte {
	t.Helper()
	state := conn.ConnectionState()
	ekm, err := state.ExportKeyingMaterial(enroll.ExporterLabel, nil, 32)
	must(t, err)
	return [32]byte(ekm)
}

// line is one connection on which somebody asks again and again.
type line struct {
	*peer.Conn
	client iapmeshv1.EnrollServiceClient
}

func (w *world) dial(addr string) *line {
	w.t.Helper()
	return w.dialFrom(addr, "127.0.0.1")
}

// dialFrom is dial from a loopback address.
func (w *world) dialFrom(addr, source string) *line {
	w.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	conn, err := (peer.Pinned{Pin: w.secret.Pin(), NetDial: d.DialContext}).Dial(soon(w.t), addr)
	must(w.t, err)
	client, err := grpc.NewClient("passthrough:///x", conn.DialOptions()...)
	must(w.t, err)
	w.t.Cleanup(func() { client.Close() })
	client.Connect() // the server gives up on who says nothing for joinTimeout
	return &line{conn, iapmeshv1.NewEnrollServiceClient(client)}
}

func (l *line) join(t testing.TB, req *iapmeshv1.JoinRequest) error {
	t.Helper()
	_, err := l.client.Join(soon(t), req)
	return fault.FromStatus(err)
}

// A man in the middle who holds a plain node's certificate of the very CA, and passes all through to a control node: the joiner
// turns away before it has signed anything. With a control node's certificate he gets signatures, and they hold for him alone.
func TestAManInTheMiddleGetsNothingThatCounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	genuine := w.serve(w.certificate(true), w.admit)
	var passed atomic.Int64
	relay := func(ctx context.Context, a *iapmeshv1.RelayJoinRequest) (*iapmeshv1.JoinResponse, error) {
		passed.Add(1)
		resp, err := w.dial(genuine).client.Join(ctx, a.Join)
		return resp, fault.FromStatus(err)
	}
	plain := w.serve(w.certificate(false), relay)
	if _, err := enroll.Join(within(t, 300*time.Millisecond), w.request(plain)); err == nil || passed.Load() != 0 {
		t.Errorf("behind a plain node: %v, after %d signatures passed", err, passed.Load())
	}
	stolen := w.serve(w.certificate(true), relay)
	if _, err := enroll.Join(soon(t), w.request(stolen)); !fault.Is(err, fault.Unauthenticated) || !strings.Contains(err.Error(), "terminates TLS in between") {
		t.Errorf("behind a stolen control node's certificate: %v, want what to do about it", err)
	}
	if passed.Load() != 1 || len(w.nodes) != 0 {
		t.Errorf("%d passed through, nodes %v", passed.Load(), w.nodes)
	}
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// A message that comes again is answered again, on its own connection; on another one, also of the same joiner, it is refused. In
// whatever order two joiners' messages arrive, each gets its own node.
func TestReplayedAndReorderedMessages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.serve(w.certificate(true), w.admit)
	a, b := w.request(addr), w.request(addr)
	first, second, third := w.dial(addr), w.dial(addr), w.dial(addr)
	ra, rb := w.signed(a, first.Conn), w.signed(b, second.Conn)
	for _, step := range []struct {
		name string
		conn *line
		req  *iapmeshv1.JoinRequest
		want fault.Kind // 0: admitted
	}{
		{"b before a, on a's connection", first, rb, fault.Unauthenticated},
		{"a on b's connection", second, ra, fault.Unauthenticated},
		{"b", second, rb, 0},
		{"a", first, ra, 0},
		{"a again", first, ra, 0},
		{"a on a third connection", third, ra, fault.Unauthenticated},
		{"a's body under b's signatures", first, &iapmeshv1.JoinRequest{
			Body: ra.Body, ProvisioningSignature: rb.ProvisioningSignature, NodeSignature: rb.NodeSignature, SessionSignature: rb.SessionSignature,
		}, fault.Unauthenticated},
		{"a cut off", first, &iapmeshv1.JoinRequest{
			Body: ra.Body[:len(ra.Body)-1], ProvisioningSignature: ra.ProvisioningSignature, NodeSignature: ra.NodeSignature, SessionSignature: ra.SessionSignature,
		}, fault.Unauthenticated},
	} {
		err := step.conn.join(t, step.req)
		switch {
		case step.want == 0 && err != nil:
			t.Errorf("%s: %v", step.name, err)
		case step.want != 0 && !fault.Is(err, step.want):
			t.Errorf("%s: %v, want %v", step.name, err, step.want)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.nodes) != 2 || w.nodes[string(a.JoinID[:])] != keyring.NodeID(a.NodeKey.Public().(ed25519.PublicKey)) {
		t.Errorf("nodes %v", w.nodes)
	}
}

// What a key signs for one purpose is worth nothing for another, also where the signer can be made to sign what an attacker chose:
// nodes sign certificate requests, checkpoints, announcements and TLS handshakes; whoever joins, each with three keys.
func TestASignatureOfOneProtocolIsNoneOfAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.serve(w.certificate(true), w.admit)
	r := w.request(addr)
	conn := w.dial(addr)
	good := w.signed(r, conn.Conn)
	digest := keyring.JoinDigest(exported(t, conn.Conn), good.Body)
	csr, err := keyring.ParseCSR(mustCSR(t, r.NodeKey))
	must(t, err)
	context13 := append([]byte(strings.Repeat(" ", 64)+"TLS 1.3, client CertificateVerify\x00"), digest[:]...)
	foreign := map[string][]byte{
		"the digest alone":             ed25519.Sign(r.NodeKey, digest[:]),
		"another version":              ed25519.Sign(r.NodeKey, append([]byte("iapmesh/join/v2/node"), digest[:]...)),
		"no signer":                    ed25519.Sign(r.NodeKey, append([]byte("iapmesh/join/v1/"), digest[:]...)),
		"the announcement of a key":    ed25519.Sign(r.NodeKey, keyring.AnnouncementMessage("/join/v1/node"+string(digest[:]))),
		"a checkpoint of the trail":    ed25519.Sign(r.NodeKey, []byte("iapmesh/audit/m-1/n-1/r-1\n1\n"+string(digest[:]))),
		"a TLS 1.3 handshake":          ed25519.Sign(r.NodeKey, context13),
		"a request for a certificate":  csr.Signature,
		"a session token":              ed25519.Sign(r.NodeKey, append([]byte("eyJhbGciOiJFZERTQSJ9."), digest[:]...)),
		"the same, as Ed25519ctx":      mustCtx(t, r.NodeKey, digest[:]),
		"the provisioning key's place": good.ProvisioningSignature,
		"the session key's place":      good.SessionSignature,
	}
	for name, signature := range foreign {
		bad := proto.CloneOf(good)
		bad.NodeSignature = signature
		if err := conn.join(t, bad); !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("%s as a node's signature of a join: %v", name, err)
		}
	}
	// The other way round: a join's signature is none of an announcement, whatever node an attacker names.
	pub := r.SessionKey.Public().(ed25519.PublicKey)
	for _, node := range []string{"", "n-1", "/join/v1/session", strings.TrimPrefix("iapmesh/join/v1/session"+string(digest[:]), "iapmesh/announce/v1")} {
		if ed25519.Verify(pub, keyring.AnnouncementMessage(node), good.SessionSignature) {
			t.Errorf("a join's signature announces a session key of node %q", node)
		}
	}
	if err := conn.join(t, good); err != nil {
		t.Errorf("the very join: %v", err)
	}
}

func mustCSR(t testing.TB, key ed25519.PrivateKey) []byte {
	t.Helper()
	der, err := keyring.NewCSR(key)
	must(t, err)
	return der
}

func mustCtx(t testing.TB, key ed25519.PrivateKey, message []byte) []byte {
	t.Helper()
	sig, err := key.Sign(nil, append([]byte("iapmesh/join/v1/node"), message...), &ed25519.Options{Context: "iapmesh"})
	must(t, err)
	return sig
}

// Ten thousand who open the door and stand in it, at every stage and from two hundred addresses: whoever means it gets in meanwhile.
func TestTenThousandHalfOpenJoins(t *testing.T) {
	t.Parallel()
	const strangers, sources = 10_000, 200
	w := newWorld(t)
	addr := w.serve(w.certificate(true), w.admit)
	hello := clientHello(t)
	flood, stop := context.WithCancel(t.Context())
	var opened, failed atomic.Int64
	var standing sync.WaitGroup
	for source := range sources {
		standing.Go(func() {
			from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(source>>8), byte(source))}, Timeout: patience}
			for i := range strangers / sources {
				c, err := from.DialContext(flood, "tcp", addr)
				if err != nil {
					failed.Add(1)
					continue
				}
				defer c.Close() // at the end: all stand there together
				opened.Add(1)
				switch i % 4 {
				case 0: // says nothing
				case 1: // begins to speak
					_, _ = c.Write(hello[:len(hello)/2])
				case 2: // says all, and does not go on
					_, _ = c.Write(hello)
				case 3: // something else altogether
					_, _ = c.Write([]byte("GET / HTTP/1.1\r\n"))
				}
			}
			<-flood.Done()
		})
	}
	for i := range 10 {
		began := time.Now()
		if _, err := enroll.Join(soon(t), w.request(addr)); err != nil {
			t.Errorf("join %d, with %d strangers in the door: %v", i, opened.Load(), err)
		}
		t.Logf("join %d, with %d strangers in the door: %v", i, opened.Load(), time.Since(began).Round(time.Millisecond))
		for opened.Load()+failed.Load() < int64(i+1)*strangers/10 && flood.Err() == nil {
			select {
			case <-time.After(5 * time.Millisecond):
			case <-t.Context().Done():
				t.Fatal("the flood does not come")
			}
		}
	}
	if opened.Load() < strangers*9/10 {
		t.Errorf("%d of %d connections were opened: no flood", opened.Load(), strangers)
	}
	stop()
	standing.Wait()
}

// clientHello is what a real client says first.
func clientHello(t testing.TB) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		defer client.Close()
		_ = tls.Client(client, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{peer.ProtoJoin}}).Handshake()
	}()
	head := make([]byte, 5)
	_, err := io.ReadFull(server, head)
	must(t, err)
	rest := make([]byte, int(head[3])<<8|int(head[4]))
	_, err = io.ReadFull(server, rest)
	must(t, err)
	return append(head, rest...)
}

// FuzzFrames sends arbitrary bytes where gRPC's frames belong, with and without HTTP/2's preface: the server outlives them, and the
// next who joins is admitted.
func FuzzFrames(f *testing.F) {
	w := newWorld(f)
	addr := w.serve(w.certificate(true), w.admit)
	settings := []byte{0, 0, 0, 4, 0, 0, 0, 0, 0}
	headers := append([]byte{0, 0, 4, 1, 4, 0, 0, 0, 1}, "abcd"...)
	data := append([]byte{0, 0, 5, 0, 1, 0, 0, 0, 1}, 0, 0xff, 0xff, 0xff, 0xff)
	f.Add(true, settings)
	f.Add(true, append(append(append([]byte{}, settings...), headers...), data...))
	f.Add(true, []byte{0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1})
	f.Add(true, append(append([]byte{}, settings...), 0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0))
	f.Add(false, []byte("GET / HTTP/1.1\r\n\r\n"))
	n := 0
	f.Fuzz(func(t *testing.T, preface bool, frames []byte) {
		if len(frames) > 1<<16 {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		conn, err := (peer.Pinned{Pin: w.secret.Pin()}).Dial(ctx, addr)
		if err != nil {
			t.Fatalf("the server no longer answers: %v", err)
		}
		defer conn.Close()
		if preface {
			_, _ = conn.Write([]byte(http2.ClientPreface))
		}
		_, _ = conn.Write(frames)
		if n++; n <= 8 || n%256 == 0 { // every seed; then now and again, as a whole join costs more than the frames
			if err := w.joinsStill(ctx, t, addr); err != nil {
				t.Fatalf("after %d bytes of frames: %v", len(frames), err)
			}
		}
	})
}

// joinsStill has a new node join, from an address of its own: the frames, and the joins before it, count for other rates.
func (w *world) joinsStill(ctx context.Context, t testing.TB, addr string) error {
	t.Helper()
	r := w.requestOf(t, addr)
	r.Pinned = func(pin [32]byte) peer.Pinned {
		return peer.Pinned{Pin: pin, NetDial: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, 1+r.JoinID[0]%250)}}).DialContext}
	}
	got, err := enroll.Join(ctx, r)
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if id := keyring.NodeID(r.NodeKey.Public().(ed25519.PublicKey)); got.NodeID != id || w.nodes[string(r.JoinID[:])] != id {
		return fmt.Errorf("admitted as %s, the leader knows %s, want %s", got.NodeID, w.nodes[string(r.JoinID[:])], id)
	}
	return nil
}
