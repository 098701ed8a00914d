package node_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/cluster/raftstore"
	"github.com/iapmesh/iapmesh/cluster/replica"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node"
	"github.com/iapmesh/iapmesh/node/nodetest"
	"github.com/iapmesh/iapmesh/node/session"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// secrets are what a thief wants, by name, and the material in which each lies once the seal is open.
type secrets struct {
	t        *testing.T
	wanted   map[string][]byte
	material map[string][]byte
}

func (s *secrets) want(name string, secret, material []byte) {
	s.t.Helper()
	if len(secret) < 16 {
		s.t.Fatalf("%s: %d bytes: too few to be told from chance", name, len(secret))
	}
	s.wanted[name], s.material[name] = secret, material
}

// stolen is one node's directory, with what opens it.
type stolen struct {
	t      *testing.T
	config node.Config // of the original
	dir    string      // the thief's copy, without the key file
	loot   loot
	sealer *seal.Sealer
	public struct {
		NodeID      string   `json:"node_id"`
		MeshID      string   `json:"mesh_id"`
		Certificate []byte   `json:"certificate"`
		Bundle      [][]byte `json:"bundle"`
	}
	keys struct{ Node, Session, Sealing []byte }
	secrets
}

// rob takes the directory of a node that is stopped; its key file was kept elsewhere.
func rob(t *testing.T, r *nodetest.Region) *stolen {
	t.Helper()
	s := &stolen{t: t, config: r.Config(), dir: filepath.Join(t.TempDir(), "stolen"), secrets: secrets{t, map[string][]byte{}, map[string][]byte{}}}
	var err error
	if s.sealer, err = seal.Open(t.Context(), s.config.DataDir, nil); err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(s.config.DataDir, "seal.key")
	key, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	s.want("the key of the seal", key, key)
	if err := errFirst(os.Rename(keyFile, filepath.Join(t.TempDir(), "seal.key")), os.CopyFS(s.dir, os.DirFS(s.config.DataDir))); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s.loot = steal(t, s.dir)
	if err := json.Unmarshal(s.loot["node.json"], &s.public); err != nil {
		t.Fatal(err)
	}
	opened := s.open("keys.sealed", "iapmesh/node-keys/v1")
	if err := json.Unmarshal(opened, &s.keys); err != nil {
		t.Fatal(err)
	}
	s.want("node key", s.keys.Node, opened)
	s.want("first session key", s.keys.Session, opened)
	s.want("sealing key", s.keys.Sealing, opened)
	for name := range s.loot {
		kid, ok := strings.CutPrefix(strings.TrimSuffix(name, ".key"), "session-keys/")
		if !ok {
			continue
		}
		opened := s.open(name, "iapmesh/session-key/v1/"+s.public.NodeID+"/"+kid)
		var f struct{ Seed []byte }
		if err := json.Unmarshal(opened, &f); err != nil {
			t.Fatal(err)
		}
		s.want("session key "+kid, f.Seed, opened)
	}
	for name := range s.loot {
		if context, ok := s.rotateContext(name); ok {
			s.wantSecretOnItsWay(s.open(name, context))
		}
	}
	return s
}

// rotateContext is what the secret of a rotation under way is sealed for, if the file holds one.
func (s *stolen) rotateContext(file string) (string, bool) {
	predecessor, ok := strings.CutPrefix(strings.TrimSuffix(file, ".sealed"), "rotate/")
	return "iapmesh/rotate/v1/" + s.public.NodeID + "/" + predecessor, ok
}

func (s *stolen) wantSecretOnItsWay(opened []byte) {
	s.t.Helper()
	var e struct{ Secret string }
	if err := json.Unmarshal(opened, &e); err != nil {
		s.t.Fatal(err)
	}
	secret, err := keyring.ParseSecret(e.Secret)
	if err != nil {
		s.t.Fatal(err)
	}
	s.want("secret on its way", []byte(e.Secret)[len("iapk_")+17:], opened)
	s.want("seed of a secret on its way", secret.PrivateKey().Seed(), secret.PrivateKey().Seed()) // there it is base62
}

func errFirst(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// open opens a file by the seal.
func (s *stolen) open(name, context string) []byte {
	s.t.Helper()
	opened, err := s.sealer.Open(s.loot[name], []byte(context))
	if err != nil {
		s.t.Fatalf("%s: with the seal: %v", name, err)
	}
	return opened
}

// noTransport is for an engine that never runs.
type noTransport struct{ raftstore.Transport }

// Close implements raftstore.Transport.
func (noTransport) Close() error { return nil }

// raftIn opens the engine in a data directory.
func (s *stolen) raftIn(dir string, sealer *seal.Sealer) (*raftstore.Store, error) {
	return s.engineIn(filepath.Join(dir, "raft"), sealer)
}

func (s *stolen) engineIn(dir string, sealer *seal.Sealer) (*raftstore.Store, error) {
	return raftstore.Open(raftstore.Config{Dir: dir, NodeID: s.public.NodeID, Seal: sealer, Transport: noTransport{}})
}

// replicaIn opens the replica in a data directory.
func (s *stolen) replicaIn(dir string, sealer *seal.Sealer) (*replica.Replica, error) {
	return replica.Open(replica.Config{
		Dir: filepath.Join(dir, "replica"), MeshID: s.public.MeshID, Seal: sealer,
		Dial: func(context.Context) (iapmeshv1.MeshServiceClient, string, error) {
			return nil, "", fault.New(fault.Unavailable, "it never runs")
		},
	})
}

// wantState takes every secret of the replicated state that this node opens with its seal.
func (s *stolen) wantState(reader store.Reader) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	source := state.NewSource(reader, slog.New(slog.DiscardHandler))
	ended := make(chan error, 1)
	go func() { ended <- source.Run(ctx) }()
	v, err := source.Wait(ctx, func(*state.View) bool { return true })
	cancel()
	<-ended
	if err != nil {
		s.t.Fatal(err)
	}
	key, err := seal.ParseSealingKey(s.keys.Sealing)
	if err != nil {
		s.t.Fatal(err)
	}
	member := seal.Member{Node: s.public.NodeID, Key: key}
	for name, secret := range v.Keyring.Secrets {
		plain, err := member.Open(v.Keyring, secret.Audience, secret.Name)
		if err != nil {
			s.t.Fatalf("secret %s: with the seal: %v", name, err)
		}
		s.want("secret "+name, plain, plain)
		for i, part := range keysIn(plain) {
			s.want(fmt.Sprintf("secret %s, key %d", name, i), part, plain)
		}
	}
}

// keysIn finds key material within a secret that is PKCS #8 or JSON.
func keysIn(plain []byte) (out [][]byte) {
	if key, err := x509.ParsePKCS8PrivateKey(plain); err == nil {
		if key, ok := key.(*ecdsa.PrivateKey); ok {
			if scalar, err := key.Bytes(); err == nil {
				out = append(out, scalar)
			}
		}
	}
	var v any
	if json.Unmarshal(plain, &v) != nil {
		return out
	}
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			for _, e := range v {
				walk(e)
			}
		case string:
			if key, err := base64.StdEncoding.DecodeString(v); err == nil && len(key) >= 16 {
				out = append(out, key)
			}
		}
	}
	walk(v)
	return out
}

// has holds that what is wanted includes these.
func (s *stolen) has(names ...string) {
	s.t.Helper()
	for _, name := range names {
		found := false
		for have := range s.wanted {
			found = found || strings.HasPrefix(have, name)
		}
		if !found {
			s.t.Errorf("%s: nothing of the kind was looked for", name)
		}
	}
}

// worthNothing holds that no file holds a secret, and that the search would have found it.
func (s *stolen) worthNothing() {
	s.t.Helper()
	for name, secret := range s.wanted {
		if holds(s.material[name], secret) == "" {
			s.t.Errorf("%s: is not found in what the seal opens: the search is worth nothing", name)
		}
		for file, data := range s.loot {
			if how := holds(data, secret); how != "" {
				s.t.Errorf("%s holds the %s (%s)", file, name, how)
			}
		}
	}
	table := dataDirectory()
	for file, data := range s.loot {
		for _, known := range []string{nodetest.EchoHost, nodetest.FinanceHost, "ana@example.com", "dev/finance"} {
			if kind, _ := kindOf(table, file); kind == sealed && bytes.Contains(data, []byte(known)) {
				s.t.Errorf("%s holds %q in the open", file, known)
			}
		}
	}
}

// doesNotOpen holds that neither the node nor any part of it opens the thief's copy, by no seal, or one of his own.
func (s *stolen) doesNotOpen(part func(dir string, sealer *seal.Sealer) error) {
	s.t.Helper()
	c := s.config
	c.DataDir = s.dir
	if _, err := node.NewIn(s.t.Context(), c, node.Env{}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "no key opens it") {
		s.t.Errorf("the node opens without the key: %v", err)
	}
	own := filepath.Join(s.t.TempDir(), "own")
	thief := thiefIn(s.t, own)
	if err := part(s.dir, thief); err == nil {
		s.t.Error("the state opens by another seal")
	}
	keys, err := session.OpenKeys(session.KeysConfig{Node: s.public.NodeID, Dir: filepath.Join(s.dir, "session-keys"), Sealer: thief})
	if err == nil {
		s.t.Errorf("the session keys open by another seal: %v", keys)
	}
	for name, data := range s.loot {
		if kind, _ := kindOf(dataDirectory(), name); kind != sealed {
			continue
		}
		rotate, _ := s.rotateContext(name)
		for _, context := range []string{"", "iapmesh/node-keys/v1", "iapmesh/session-key/v1/" + s.public.NodeID, rotate} {
			if opened, err := thief.Open(data, []byte(context)); err == nil {
				s.t.Errorf("%s opens by another seal: %x", name, opened)
			}
		}
	}
	// His own seal in place of the true one: what lies under that is still closed.
	stored, err := os.ReadFile(filepath.Join(own, seal.FileName))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, seal.FileName), stored, 0o600); err != nil {
		s.t.Fatal(err)
	}
	if _, err := node.NewIn(s.t.Context(), c, node.Env{}); err == nil || !strings.Contains(err.Error(), "sealed by another key") {
		s.t.Errorf("the node opens under a seal of the thief's: %v", err)
	}
}

// thiefIn makes a seal of the thief's own.
func thiefIn(t *testing.T, dir string) *seal.Sealer {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	thief, err := seal.Create(t.Context(), dir, []string{seal.KeyFileURL(filepath.Join(dir, "seal.key"))})
	if err != nil {
		t.Fatal(err)
	}
	return thief
}

// greet comes to a control node with the stolen node's certificate and a key, and reports whether the node speaks to it.
func (s *stolen) greet(address string, key ed25519.PrivateKey) error {
	s.t.Helper()
	cert := &tls.Certificate{Certificate: append([][]byte{s.public.Certificate}, s.public.Bundle...), PrivateKey: key}
	dialer := &tls.Dialer{Config: &tls.Config{
		InsecureSkipVerify:   true, // a thief trusts whom he likes
		NextProtos:           []string{peer.ProtoMesh},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil },
	}}
	conn, err := dialer.DialContext(s.t.Context(), "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(nodetest.Patience)); err != nil {
		s.t.Fatal(err)
	}
	_, err = conn.Read(make([]byte, 1)) // the server's first frame, or its alert
	return err
}

func TestAStolenDataDirectoryIsWorthNothing(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west")
	edge := mesh.AddNode("edge", "proxy")
	mesh.AwaitVoters()
	edge.Rotates("spare", filepath.Join(t.TempDir(), "none", "spare.key")) // which cannot be written: the secret waits
	mesh.IssueScheduled("spare", mesh.NewSecret().PublicKey(), 4*time.Second, edge)
	ana := edge.SignIn("ana@example.com")
	edge.Serves(ana, http.StatusOK)
	mesh.In("eu-west").Serves(ana, http.StatusOK)
	mesh.Eventually("the aggregator holds decisions of both", func() bool {
		nodes := map[string]bool{}
		for _, r := range mesh.Records(&iapmeshv1.QueryRequest{User: ana.Subject, Kind: "decision", Route: "echo"}) {
			node, _, _ := cut(r.Id)
			nodes[node] = true
		}
		return len(nodes) == 2
	})
	others := map[string][]byte{"administrator's key": pemBytes(t, mesh.Profile().Key)}
	provisioning, err := keyring.ParseSecret(strings.TrimSpace(mesh.BootstrapKey()))
	if err != nil {
		t.Fatal(err)
	}
	others["provisioning key"] = []byte(provisioning.String())[len("iapk_")+17:]
	others["provisioning key's seed"] = provisioning.PrivateKey().Seed()

	mesh.Eventually("a secret waits at the rotator", func() bool {
		waiting, err := filepath.Glob(filepath.Join(edge.DataDir(), "rotate", "*.sealed"))
		return err == nil && len(waiting) > 0
	})
	edge.Stop()
	proxy := rob(t, edge)
	r, err := proxy.replicaIn(proxy.config.DataDir, proxy.sealer)
	if err != nil {
		t.Fatal(err)
	}
	proxy.wantState(r)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := proxy.greet(mesh.In("eu-west").API(), ed25519.NewKeyFromSeed(proxy.keys.Node)); err != nil {
		t.Fatalf("with its true key, the node is not spoken to: this test shows nothing: %v", err)
	}
	_, other, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := proxy.greet(mesh.In("eu-west").API(), other); err == nil || !strings.Contains(err.Error(), "tls:") {
		t.Errorf("the certificate alone is enough: %v", err)
	}

	// One that was put out while it was away keeps that it was told.
	away := mesh.AddNode("away", "proxy")
	away.Stop()
	away.Quarantine()
	away.Start()
	mesh.Eventually("it is told", func() bool {
		_, err := os.Stat(filepath.Join(away.DataDir(), "standing.json"))
		return err == nil
	})
	away.Stop()
	told := rob(t, away)

	// One that was recovered holds the engine of before, too.
	mesh.In("eu-west").Stop()
	if _, err := mesh.In("eu-west").Recover(); err != nil {
		t.Fatal(err)
	}
	control := rob(t, mesh.In("eu-west"))
	before, err := filepath.Glob(filepath.Join(control.config.DataDir, "raft.before-recovery-*"))
	if err != nil || len(before) != 1 {
		t.Fatalf("what recover left: %v, %v", before, err)
	}
	for _, dir := range []string{before[0], filepath.Join(control.config.DataDir, "raft")} {
		engine, err := control.engineIn(dir, control.sealer)
		if err != nil {
			t.Fatal(err)
		}
		control.wantState(engine)
		if err := engine.Close(); err != nil {
			t.Error(err)
		}
	}

	common := []string{"node key", "first session key", "sealing key", "session key s-", "secret assert/edge/_/", "secret gossip/ring", "secret proxies/handoff", "secret proxies/user-dev-client"}
	proxy.has(append(common, "secret on its way", "seed of a secret on its way")...)
	control.has(append(common, "secret control/ca-")...)
	for _, s := range []*stolen{proxy, control, told} {
		for name, secret := range others {
			s.want(name, secret, secret)
		}
		for name, secret := range control.wanted { // neither holds the other's
			if s != control {
				s.want("the control node's "+name, secret, control.material[name])
			}
		}
		s.worthNothing()
	}
	proxy.doesNotOpen(func(dir string, sealer *seal.Sealer) error { _, err := proxy.replicaIn(dir, sealer); return err })
	control.doesNotOpen(func(dir string, sealer *seal.Sealer) error { _, err := control.raftIn(dir, sealer); return err })
	if _, err := control.engineIn(filepath.Join(control.dir, filepath.Base(before[0])), thiefIn(t, filepath.Join(t.TempDir(), "own"))); err == nil {
		t.Error("the state of before the recovery opens by another seal")
	}
	for _, want := range []struct {
		of   *stolen
		file string
	}{{proxy, "rotate/*.sealed"}, {told, "standing.json"}, {control, "raft.before-recovery-*/wal/*.wal"}, {control, "raft/wal/*.wal"}} {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(want.of.loot)), func(name string) bool { ok, err := path.Match(want.file, name); return ok && err == nil }) {
			t.Errorf("%s was not searched: none was there", want.file)
		}
	}

	// What is said to lie in the open does: the trail of decisions, and who the node is.
	for _, s := range []*stolen{proxy, control} {
		if !bytes.Contains(s.loot.of(trail), []byte(ana.Subject)) {
			t.Error("the trail does not hold who asked: SECURITY.md says that it does, and this search proves nothing")
		}
		if !bytes.Contains(s.loot.of(public), []byte(s.public.NodeID)) {
			t.Error("node.json does not hold the node's id")
		}
	}
}

func pemBytes(t *testing.T, text string) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatal("no PEM")
	}
	return block.Bytes[len(block.Bytes)-ed25519.SeedSize:] // PKCS #8 ends with the seed
}
