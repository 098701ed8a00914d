package session_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"syscall"
	"testing"

	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/session"
	"github.com/iapmesh/iapmesh/node/state"
)

// cpu reports the process's time, which a busy machine does not stretch as it does the wall's.
func cpu(b *testing.B) func() {
	used := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}

// What Ed25519 alone costs here, to compare VerifyCold with.
func BenchmarkSignatureAlone(b *testing.B) {
	m := newMesh(b)
	message := make([]byte, 700)
	signature := ed25519.Sign(m.private["eu"], message)
	public := m.private["eu"].Public().(ed25519.PublicKey)
	defer cpu(b)()
	for b.Loop() {
		if !ed25519.Verify(public, message, signature) {
			b.Fatal("refused")
		}
	}
}

// Budget: at most 1 µs.
func BenchmarkVerifyCached(b *testing.B) {
	m := newMesh(b)
	for range 1000 { // as many records as a real mesh has
		m.records.Revocations[keyring.RevokeSession][fmt.Sprint(len(m.records.Revocations[keyring.RevokeSession]))] = &keyring.Revocation{}
	}
	token, _ := m.signIn("eu")
	v, view, route := m.verifier(), m.view, m.route("billing")
	b.ReportAllocs()
	defer cpu(b)()
	for b.Loop() {
		if _, err := v.Verify(view, route, token); err != nil {
			b.Fatal(err)
		}
	}
}

// The first verification of a token in each new view.
func BenchmarkVerifyCachedNewView(b *testing.B) {
	m := newMesh(b)
	token, _ := m.signIn("eu")
	v, route := m.verifier(), m.route("billing")
	views := []*state.View{m.view}
	views = append(views, m.commit(func(*keyring.Contents) {}))
	b.ReportAllocs()
	defer cpu(b)()
	for i := 0; b.Loop(); i++ {
		if _, err := v.Verify(views[i%2], route, token); err != nil {
			b.Fatal(err)
		}
	}
}

// Budget: at most 60 µs.
func BenchmarkVerifyCold(b *testing.B) {
	m := newMesh(b)
	tokens := make([]string, 4096)
	for i := range tokens {
		tokens[i], _ = m.signIn("eu")
	}
	v, view, route := session.NewVerifier(session.Config{Now: m.clock, CacheSize: 8}), m.view, m.route("billing")
	b.ReportAllocs()
	defer cpu(b)()
	for i := 0; b.Loop(); i++ {
		if _, err := v.Verify(view, route, tokens[i%len(tokens)]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMint(b *testing.B) {
	m := newMesh(b)
	minter := m.minter("eu")
	defer cpu(b)()
	for b.Loop() {
		if _, _, err := minter.Mint(m.view, session.Grant{Identity: ana()}); err != nil {
			b.Fatal(err)
		}
	}
}

// Budget: 10,000 entries well below 5 ms.
func BenchmarkRecheck10000(b *testing.B) {
	m := newMesh(b)
	live := session.NewLive(session.LiveConfig{Node: "eu", Now: m.clock})
	for range 10_000 {
		_, s := m.signIn("eu")
		_, release := live.Register(context.Background(), session.Entry{
			View: m.view, Session: s, Route: m.route("billing"), Decide: func(*state.View) error { return nil },
		})
		defer release()
	}
	b.Run("keyring", func(b *testing.B) {
		views := []*state.View{m.view}
		views = append(views, m.commit(func(*keyring.Contents) {}))
		defer cpu(b)()
		for i := 0; b.Loop(); i++ {
			live.Recheck(views[i%2])
		}
	})
	b.Run("configuration", func(b *testing.B) {
		views := []*state.View{m.apply(settingsYAML + routesYAML)}
		views = append(views, m.apply(settingsYAML+routesYAML))
		defer cpu(b)()
		for i := 0; b.Loop(); i++ {
			live.Recheck(views[i%2])
		}
	})
}

func BenchmarkRegister(b *testing.B) {
	m := newMesh(b)
	live := session.NewLive(session.LiveConfig{Now: m.clock})
	_, s := m.signIn("eu")
	e := session.Entry{View: m.view, Session: s, Route: m.route("billing")}
	b.ReportAllocs()
	defer cpu(b)()
	for b.Loop() {
		_, release := live.Register(context.Background(), e)
		release()
	}
}
