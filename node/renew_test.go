package node

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/state"
)

// enrolled is a node's identity under an authority, on a disk of its own.
type enrolled struct {
	*identity
	own   *peer.Identity
	known map[string]*keyring.Authority
	keys  keyring.AuthorityKeys
	now   time.Time
}

func enrol(t *testing.T) *enrolled {
	t.Helper()
	e := &enrolled{known: map[string]*keyring.Authority{}, keys: keyring.AuthorityKeys{}, now: time.Now()}
	first, key, err := keyring.NewAuthority(nil, e.now, "mesh.test")
	check(t, err)
	e.known[first.Serial], e.keys[first.Serial] = &first, key
	dir := t.TempDir()
	e.identity, err = newIdentity(t.Context(), &Config{Name: "n", Region: "r", Roles: []string{"control"}, DataDir: dir, Seal: []string{seal.KeyFileURL(filepath.Join(dir, "seal.key"))}})
	check(t, err)
	e.public.NodeID, e.public.TrustDomain = "n-1", "mesh.test"
	leaf := e.issue(t, first.Serial)
	e.public.setCertificate(leaf.Raw, [][]byte{first.Certificate.Raw})
	check(t, e.save())
	cert, err := e.certificate()
	check(t, err)
	e.own, err = peer.NewIdentity(cert)
	check(t, err)
	return e
}

func (e *enrolled) issue(t *testing.T, serial string) *x509.Certificate {
	t.Helper()
	der, err := keyring.NewCSR(e.nodeKey())
	check(t, err)
	csr, err := keyring.ParseCSR(der)
	check(t, err)
	leaf, err := keyring.IssueNode(*e.known[serial], e.keys[serial], csr, keyring.NodeTemplate{TrustDomain: "mesh.test", Region: "r", NodeID: "n-1", Control: true, Now: e.now})
	check(t, err)
	return leaf
}

func (e *enrolled) view() *keyring.Snapshot {
	return keyring.NewSnapshot(revision.Revision{}, keyring.Contents{Authorities: e.known})
}

// prepare lets the mesh know another authority.
func (e *enrolled) prepare(t *testing.T) *keyring.Authority {
	t.Helper()
	next, key, err := keyring.NewAuthority(nil, e.now, "mesh.test")
	check(t, err)
	e.keys[next.Serial] = key
	changed, err := keyring.PrepareAuthority(e.known, e.keys, next, e.now)
	check(t, err)
	known := map[string]*keyring.Authority{}
	for _, a := range changed {
		known[a.Serial] = &a
	}
	e.known = known
	return known[next.Serial]
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// verifies reports whether what is presented leads a joiner to the root that he pinned.
func verifies(t *testing.T, cert *tls.Certificate, pin [32]byte) bool {
	t.Helper()
	var chain []*x509.Certificate
	for _, der := range cert.Certificate {
		c, err := x509.ParseCertificate(der)
		check(t, err)
		chain = append(chain, c)
	}
	_, err := keyring.VerifyPinned(chain, pin, time.Now())
	return err == nil
}

func TestACertificateIsRenewedAtTwoThirdsOfItsLifeGiveOrTake(t *testing.T) {
	t.Parallel()
	e := enrol(t)
	leaf := e.own.Certificate().Leaf
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	r := &renewer{cert: e.own, now: func() time.Time { return leaf.NotBefore }}
	seen := map[time.Duration]bool{}
	for range 1000 {
		due := r.due()
		if due < life*56/100 || due > life*77/100 {
			t.Fatalf("due after %v of %v", due, life)
		}
		seen[due.Truncate(time.Minute)] = true
	}
	if len(seen) < 100 {
		t.Errorf("nodes that joined together renew together: only %d times", len(seen))
	}
	r.now = func() time.Time { return leaf.NotAfter.Add(time.Hour) }
	if due := r.due(); due != 0 {
		t.Errorf("one that has expired is due in %v", due)
	}
}

// Its view is of before it lapsed, and nobody lets a lapsed node follow: only the answer to its reports tells it what to do.
func TestANodeThatHearsThatItHasLapsedRenews(t *testing.T) {
	t.Parallel()
	e := enrol(t)
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		began, logger := time.Now(), slog.New(slog.NewTextHandler(&log, nil))
		nobody := func() (id, address string) { return "", "" }
		r := &renewer{
			id: e.identity, cert: e.own, source: new(state.Source), logger: logger, told: make(chan struct{}, 1),
			link: &link{source: new(state.Source), hint: nobody, logger: logger}, now: func() time.Time { return e.now.Add(time.Since(began)) },
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.keep(ctx, time.Time{}) }()
		time.Sleep(time.Hour)
		synctest.Wait()
		if log.Len() > 0 {
			t.Errorf("it renews long before it is time: %s", &log)
		}
		r.hearLapsed()
		time.Sleep(2 * time.Minute)
		cancel()
		check(t, <-ended)
		if !strings.Contains(log.String(), "certificate not renewed") { // nobody answers here
			t.Error("it has not tried to renew")
		}
	})
}

func TestWhatANodePresentsFollowsTheMeshsAuthorities(t *testing.T) {
	t.Parallel()
	e := enrol(t)
	first := e.own.Certificate().Leaf
	before := e.own.Certificate()
	check(t, e.follow(e.own, e.view()))
	if e.own.Certificate() != before {
		t.Error("it presents something else, though nothing changed")
	}
	next := e.prepare(t)
	pin := keyring.Pin(next.Certificate)
	if verifies(t, e.own.Certificate(), pin) {
		t.Fatal("it verifies already")
	}
	check(t, e.follow(e.own, e.view()))
	if !verifies(t, e.own.Certificate(), pin) || !e.own.Certificate().Leaf.Equal(first) {
		t.Error("who pins the new root does not know a node with a certificate of the old one")
	}
	if roots, err := e.roots(); err != nil || !roots.Equal(e.view().Roots()) {
		t.Errorf("cross certificates are trusted, or roots are not: %v", err)
	}
	again, err := readIdentity(t.Context(), &Config{DataDir: e.dir, Seal: []string{seal.KeyFileURL(filepath.Join(e.dir, "seal.key"))}})
	check(t, err)
	if !slices.EqualFunc(again.public.Bundle, e.public.Bundle, slices.Equal) {
		t.Error("the chain is not on the disk")
	}

	leaf := e.issue(t, next.Serial)
	check(t, e.renewed(e.own, leaf.Raw, e.view().Chain(leaf), nil))
	for serial, a := range e.known {
		if !verifies(t, e.own.Certificate(), keyring.Pin(a.Certificate)) {
			t.Errorf("after the renewal the pin of %s does not verify", serial)
		}
	}
	// A view that has forgotten the issuer changes nothing: the renewal is due.
	stranger := enrol(t)
	check(t, e.follow(e.own, stranger.view()))
	if !e.own.Certificate().Leaf.Equal(leaf) || len(e.public.Bundle) != 3 {
		t.Error("it presents another mesh's roots")
	}
	for name, chain := range map[string][][]byte{"garbage": {[]byte("x")}, "too many": slices.Repeat([][]byte{leaf.Raw}, keyring.MaxChain)} {
		if err := e.renewed(e.own, leaf.Raw, chain, nil); err == nil {
			t.Errorf("%s is presented", name)
		}
	}
	if key, ok := e.own.Certificate().PrivateKey.(ed25519.PrivateKey); !ok || !key.Equal(e.nodeKey()) {
		t.Error("the key is another")
	}
}
