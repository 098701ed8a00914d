package keyring_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// now is when every scenario happens.
var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// private is a key that a name stands for.
func private(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func public(name string) ed25519.PublicKey { return private(name).Public().(ed25519.PublicKey) }

func ptr[T any](v T) *T { return &v }

// issued is a key for one proxy, changed as the test wants.
func issued(t testing.TB, change func(r *keyring.KeyRequest)) keyring.Key {
	t.Helper()
	r := keyring.KeyRequest{PublicKey: public("key"), Name: "edge", Grants: []keyring.Role{keyring.RoleProxy}, By: "ana", Now: now}
	if change != nil {
		change(&r)
	}
	k, err := keyring.IssueKey(r)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// enrolled is a node that joined under a key.
func enrolled(t testing.TB, k keyring.Key, name string, roles ...keyring.Role) keyring.Node {
	t.Helper()
	if len(roles) == 0 {
		roles = []keyring.Role{keyring.RoleProxy}
	}
	n, err := keyring.EnrolNode(k, enrolRequest(name, roles...))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func enrolRequest(name string, roles ...keyring.Role) keyring.EnrolRequest {
	return keyring.EnrolRequest{
		JoinID: fmt.Sprintf("%x", sha256.Sum256([]byte("join "+name)))[:32], Name: name, Region: "eu-west", Roles: roles,
		PublicKey: public("node " + name), SealingPublicKey: make([]byte, 32), SessionPublicKey: public("session " + name),
		CertExpiresAt: now.Add(24 * time.Hour), Now: now,
	}
}

func in(n keyring.Node, s keyring.NodeState) keyring.Node {
	n.State = s
	return n
}

// wantRefusal checks an error's kind and that it names the rule.
func wantRefusal(t *testing.T, err error, kind fault.Kind, says string) {
	t.Helper()
	if !fault.Is(err, kind) || !strings.Contains(err.Error(), says) {
		t.Errorf("got %v %v, want %v with %q", fault.KindOf(err), err, kind, says)
	}
}
