package session_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/session"
)

// minted writes what a node would report: "key-of-eu/eu 2: s2 s1".
func minted(m *mesh, live *session.Live, v *session.Verifier) string {
	var lines []string
	for _, by := range live.Minted(m.view, v.Sessions(5*time.Minute)) {
		var ids []string
		for _, s := range by.Newest {
			ids = append(ids, s.ID)
		}
		lines = append(lines, fmt.Sprintf("%s/%s %d: %s", by.Key, by.Node, by.Sessions, strings.Join(ids, " ")))
	}
	return strings.Join(lines, "\n")
}

func TestLiveSessionsAreCountedByWhoMintedThem(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	live := session.NewLive(session.LiveConfig{Node: "bill", Now: m.clock})
	v := m.verifier()
	grant := func(node, id, host string) (string, *session.Session) {
		t.Helper()
		token, s, err := m.minter(node).Mint(m.view, session.Grant{Identity: ana(), ID: id, Host: host})
		if err != nil {
			t.Fatal(err)
		}
		return token, s
	}
	use := func(token string) {
		t.Helper()
		if _, err := v.Verify(m.view, m.route("billing"), token); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when, want string) {
		t.Helper()
		if diff := cmp.Diff(want, minted(m, live, v)); diff != "" {
			t.Errorf("%s: %s", when, diff)
		}
	}
	want("at first", "")
	first, _ := grant("eu", "s1", "")
	use(first)
	other, _ := grant("eu", "s1", "billing.example.com") // the same sign-in, on a host
	use(other)
	_, open := grant("bill", "b1", "")
	_, release := live.Register(context.Background(), session.Entry{View: m.view, Session: open, Route: m.route("billing")})
	want("one session of two tokens, one that is open", "key-of-bill/bill 1: b1\nkey-of-eu/eu 1: s1")

	for i := range 8 {
		m.now = m.now.Add(time.Second)
		token, _ := grant("eu", fmt.Sprint("n", i), "")
		use(token)
	}
	want("the newest are named", "key-of-eu/eu 9: n7 n6 n5 n4 n3\nkey-of-bill/bill 1: b1")
	m.revoke(keyring.RevokeSession, "n7", false)
	want("a revoked session counts no more, also before it is used again", "key-of-eu/eu 8: n6 n5 n4 n3 n2\nkey-of-bill/bill 1: b1")
	release()
	m.now = m.now.Add(5*time.Minute - time.Second)
	want("after minutes those that were not seen again are gone", "key-of-eu/eu 1: n6")
	m.editKey(m.kid("eu"), func(k *keyring.SigningKey) { k.State = keyring.SigningRevoked })
	want("what a revoked key signed counts no more", "")
}

// What a report costs on a node that holds 10,000 sessions.
func BenchmarkMinted10000(b *testing.B) {
	m := newMesh(b)
	v, route := m.verifier(), m.route("billing")
	for range 10_000 {
		token, _ := m.signIn("eu")
		if _, err := v.Verify(m.view, route, token); err != nil {
			b.Fatal(err)
		}
	}
	live := session.NewLive(session.LiveConfig{Node: "eu", Now: m.clock})
	b.ReportAllocs()
	defer cpu(b)()
	for b.Loop() {
		if got := live.Minted(m.view, v.Sessions(5*time.Minute)); len(got) != 1 || got[0].Sessions < 9000 {
			b.Fatalf("%+v", got)
		}
	}
}
