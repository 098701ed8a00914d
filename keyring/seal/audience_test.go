package seal_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func sealingKey(t *testing.T) seal.SealingKey {
	t.Helper()
	k, err := seal.GenerateSealingKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// trio is an audience with members a and b, and c, who is none.
func trio(t *testing.T) (aud keyring.Audience, key seal.AudienceKey, keys map[string]seal.SealingKey) {
	t.Helper()
	keys = map[string]seal.SealingKey{"a": sealingKey(t), "b": sealingKey(t), "c": sealingKey(t)}
	aud, key, err := seal.NewAudience(keyring.AudienceProxies, map[string][]byte{"a": keys["a"].PublicKey(), "b": keys["b"].PublicKey()}, now)
	if err != nil {
		t.Fatal(err)
	}
	return aud, key, keys
}

func mustSeal(t *testing.T, key seal.AudienceKey, name, value string) keyring.Secret {
	t.Helper()
	s, err := seal.NewSecret(key, name, []byte(value), now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustOpenAudience(t *testing.T, a keyring.Audience, node string, priv seal.SealingKey) seal.AudienceKey {
	t.Helper()
	key, err := seal.OpenAudience(a, node, priv)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestMembersOpenAndOthersDoNot(t *testing.T) {
	t.Parallel()
	aud, key, keys := trio(t)
	secret := mustSeal(t, key, "okta-client", "hunter2")
	for _, member := range []string{"a", "b"} {
		opened := mustOpenAudience(t, aud, member, keys[member])
		if got, err := seal.OpenSecret(opened, secret); err != nil || string(got) != "hunter2" {
			t.Errorf("%s opens %q: %v", member, got, err)
		}
	}
	for name, try := range map[string]func() (seal.AudienceKey, error){
		"no member":                      func() (seal.AudienceKey, error) { return seal.OpenAudience(aud, "c", keys["c"]) },
		"a member's name, another's key": func() (seal.AudienceKey, error) { return seal.OpenAudience(aud, "a", keys["b"]) },
		"a member's name, no key":        func() (seal.AudienceKey, error) { return seal.OpenAudience(aud, "a", seal.SealingKey{}) },
		"a wrap moved to another member": func() (seal.AudienceKey, error) { return seal.OpenAudience(renamed(aud, "a", "b"), "b", keys["a"]) },
		"a wrap under another version":   func() (seal.AudienceKey, error) { b := aud; b.Version++; return seal.OpenAudience(b, "a", keys["a"]) },
		"a wrap under another audience": func() (seal.AudienceKey, error) {
			b := aud
			b.Name = "control"
			return seal.OpenAudience(b, "a", keys["a"])
		},
		"a wrap without encapsulated key": func() (seal.AudienceKey, error) {
			b := aud
			b.Wraps = []keyring.Wrap{{Node: "a"}}
			return seal.OpenAudience(b, "a", keys["a"])
		},
	} {
		if _, err := try(); err == nil {
			t.Errorf("%s: it opens", name)
		}
	}
}

// renamed keeps from's wrap only, as if it were to's.
func renamed(a keyring.Audience, from, to string) keyring.Audience {
	for _, w := range a.Wraps {
		if w.Node == from {
			w.Node = to
			a.Wraps = []keyring.Wrap{w}
			break
		}
	}
	return a
}

func TestAMemberIsAdded(t *testing.T) {
	t.Parallel()
	aud, key, keys := trio(t)
	before := aud
	more, err := seal.AddMember(aud, mustOpenAudience(t, aud, "b", keys["b"]), "c", keys["c"].PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	secret := mustSeal(t, key, "x", "v")
	if got, err := seal.OpenSecret(mustOpenAudience(t, more, "c", keys["c"]), secret); err != nil || string(got) != "v" {
		t.Errorf("c opens %q: %v", got, err)
	}
	if len(more.Wraps) != 3 || more.Version != 1 || !seal.IsMember(more, "c") {
		t.Errorf("%d wraps, version %d", len(more.Wraps), more.Version)
	}
	if diff := cmp.Diff(before, aud); diff != "" {
		t.Errorf("the audience that came in changed: %s", diff)
	}
	renewed := sealingKey(t)
	again, err := seal.AddMember(more, key, "c", renewed.PublicKey())
	if err != nil || len(again.Wraps) != 3 {
		t.Fatalf("%d wraps: %v", len(again.Wraps), err)
	}
	mustOpenAudience(t, again, "c", renewed)
	if _, err := seal.OpenAudience(again, "c", keys["c"]); err == nil {
		t.Error("c's old sealing key still opens it")
	}
}

func TestAfterARotationWhoIsLeftOutOpensNothingNew(t *testing.T) {
	t.Parallel()
	aud, key, keys := trio(t)
	old := mustSeal(t, key, "x", "v")
	next, nextKey, err := seal.Rotate(aud, map[string][]byte{"a": keys["a"].PublicKey()}, now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	resealed, err := seal.Reseal(key, nextKey, old, now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if next.Version != 2 || resealed.Version != 2 {
		t.Errorf("audience %d, secret %d, want 2", next.Version, resealed.Version)
	}
	if got, err := seal.OpenSecret(mustOpenAudience(t, next, "a", keys["a"]), resealed); err != nil || string(got) != "v" {
		t.Errorf("a opens %q: %v", got, err)
	}
	if _, err := seal.OpenAudience(next, "b", keys["b"]); !fault.Is(err, fault.Denied) {
		t.Errorf("b: %v", err)
	}
	if _, err := seal.OpenSecret(key, resealed); !fault.Is(err, fault.Conflict) {
		t.Errorf("the old key: %v", err)
	}
	forged := resealed
	forged.Version = 1
	if _, err := seal.OpenSecret(key, forged); err == nil {
		t.Error("the old key opens the new secret under the old version")
	}
	if _, err := seal.AddMember(next, key, "c", keys["c"].PublicKey()); !fault.Is(err, fault.Conflict) {
		t.Errorf("the old key was wrapped into the new version: %v", err)
	}
}

func TestASecretIsBoundToItsPlace(t *testing.T) {
	t.Parallel()
	_, key, _ := trio(t)
	_, otherKey, _ := trio(t)
	good := mustSeal(t, key, "x", "v")
	for name, change := range map[string]func(s *keyring.Secret){
		"name":       func(s *keyring.Secret) { s.Name = "y" },
		"audience":   func(s *keyring.Secret) { s.Audience = "control" },
		"version":    func(s *keyring.Secret) { s.Version = 2 },
		"ciphertext": func(s *keyring.Secret) { s.Ciphertext = bytes.Clone(s.Ciphertext); s.Ciphertext[30] ^= 1 },
		"cut":        func(s *keyring.Secret) { s.Ciphertext = s.Ciphertext[:10] },
		"grown":      func(s *keyring.Secret) { s.Ciphertext = make([]byte, 1<<20) },
	} {
		s := good
		change(&s)
		if _, err := seal.OpenSecret(key, s); err == nil {
			t.Errorf("%s changed: it opens", name)
		}
	}
	if _, err := seal.OpenSecret(otherKey, good); err == nil {
		t.Error("another mesh's key opens it")
	}
	if _, err := seal.OpenSecret(seal.AudienceKey{}, keyring.Secret{}); err == nil {
		t.Error("no key opens it")
	}
}

func TestSealingRefuses(t *testing.T) {
	t.Parallel()
	aud, key, keys := trio(t)
	other, otherKey, err := seal.NewAudience("control", map[string][]byte{"a": keys["a"].PublicKey()}, now)
	if err != nil {
		t.Fatal(err)
	}
	for name, try := range map[string]func() error{
		"an audience without members": func() error { _, _, err := seal.NewAudience("x", nil, now); return err },
		"an audience without a name": func() error {
			_, _, err := seal.NewAudience("", map[string][]byte{"a": keys["a"].PublicKey()}, now)
			return err
		},
		"a member without a key": func() error { _, _, err := seal.NewAudience("x", map[string][]byte{"a": nil}, now); return err },
		"a point of small order": func() error {
			_, _, err := seal.NewAudience("x", map[string][]byte{"a": make([]byte, 32)}, now)
			return err
		},
		"a rotation to nobody": func() error { _, _, err := seal.Rotate(aud, nil, now); return err },
		"a rotation of nothing": func() error {
			_, _, err := seal.Rotate(keyring.Audience{}, map[string][]byte{"a": keys["a"].PublicKey()}, now)
			return err
		},
		"a member by a foreign key": func() error { _, err := seal.AddMember(other, key, "b", keys["b"].PublicKey()); return err },
		"a secret without a name":   func() error { _, err := seal.NewSecret(key, "", nil, now); return err },
		"a secret too large":        func() error { _, err := seal.NewSecret(key, "x", make([]byte, seal.MaxSecret+1), now); return err },
		"a move between audiences":  func() error { _, err := seal.Reseal(key, otherKey, mustSeal(t, key, "x", "v"), now); return err },
		"a wrap too large":          func() error { _, err := seal.WrapTo(keys["a"].PublicKey(), nil, make([]byte, 1<<20)); return err },
	} {
		if err := try(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestAWrapOpensForItsPurposeOnly(t *testing.T) {
	t.Parallel()
	k := sealingKey(t)
	wrapped, err := seal.WrapTo(k.PublicKey(), []byte("gossip keys"), []byte("v"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := seal.UnwrapFrom(k, []byte("gossip keys"), wrapped); err != nil || string(got) != "v" {
		t.Errorf("opened %q: %v", got, err)
	}
	if _, err := seal.UnwrapFrom(k, []byte("audience key"), wrapped); !fault.Is(err, fault.Denied) {
		t.Errorf("another purpose: %v", err)
	}
	stored, err := k.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	back, err := seal.ParseSealingKey(stored)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := seal.UnwrapFrom(back, []byte("gossip keys"), wrapped); err != nil || string(got) != "v" {
		t.Errorf("after a restart: %q: %v", got, err)
	}
	if _, err := seal.ParseSealingKey(stored[:31]); !fault.Is(err, fault.Invalid) {
		t.Errorf("a cut key: %v", err)
	}
}

func TestKeysDoNotPrintThemselves(t *testing.T) {
	t.Parallel()
	_, key, keys := trio(t)
	priv, err := keys["a"].Bytes()
	if err != nil {
		t.Fatal(err)
	}
	held := struct {
		k seal.AudienceKey
		s seal.SealingKey
	}{key, keys["a"]}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("m", "k", key, "s", keys["a"], "held", held)
	out := log.String()
	for _, verb := range []string{"%s", "%v", "%+v", "%#v", "%q", "%x", "%d"} {
		out += fmt.Sprintf(verb+verb+verb+"\n", key, keys["a"], held)
	}
	for _, leak := range []string{fmt.Sprintf("%x", priv[:6]), strings.Trim(fmt.Sprint(priv[:6]), "[]"), "[]byte"} {
		if strings.Contains(out, leak) {
			t.Errorf("%q leaks: %s", leak, out)
		}
	}
}

func FuzzUnwrapFrom(f *testing.F) {
	k, err := seal.ParseSealingKey(bytes.Repeat([]byte{5}, 32))
	if err != nil {
		f.Fatal(err)
	}
	good, err := seal.WrapTo(k.PublicKey(), []byte("i"), []byte("v"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:32])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		if _, err := seal.UnwrapFrom(k, []byte("j"), in); err == nil {
			t.Fatal("it opens for another purpose")
		}
	})
}
