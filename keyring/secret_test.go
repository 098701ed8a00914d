package keyring_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// vector is the test vector of PROTOCOLS.md.
const vector = "iapk_kzdvvj2umnduyauf_003xQ7xWKNOY14pFaYCAx5XGzSaWZKQFo2yih8X4q8FInNnxLvcjLd9aoDMYFEWx0IEKat8fRAFCZzg8bl7xNGu09n4HP7Vl"

func vectorSecret(t testing.TB) keyring.ProvisioningSecret {
	t.Helper()
	seed := make([]byte, 32)
	for i := range seed {
		seed[i] = byte(i)
	}
	s, err := keyring.GenerateKey(sha256.Sum256([]byte("iapmesh test root")), bytes.NewReader(seed))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTheVectorOfTheProtocol(t *testing.T) {
	t.Parallel()
	s := vectorSecret(t)
	if s.String() != vector {
		t.Errorf("wrote %s", s.String())
	}
	read, err := keyring.ParseSecret("  " + vector + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if read.ID() != "kzdvvj2umnduyauf" || read.Pin() != s.Pin() || !read.PublicKey().Equal(s.PublicKey()) || !read.PrivateKey().Equal(s.PrivateKey()) {
		t.Errorf("read %v with pin %x", read, read.Pin())
	}
	if !regexp.MustCompile(`^iapk_[a-z2-7]{16}_[0-9A-Za-z]{96}$`).MatchString(vector) {
		t.Error("secret scanners miss the vector")
	}
}

func TestParseSecretNamesTheRule(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		in   string
		want keyring.KeyFormatError
	}{
		"empty":                  {"", keyring.ErrKeyPrefix},
		"huge":                   {strings.Repeat(" ", 2000) + vector, keyring.ErrKeyTooLong},
		"other prefix":           {"ghp_" + vector[5:], keyring.ErrKeyPrefix},
		"cut off":                {vector[:len(vector)-1], keyring.ErrKeyLength},
		"longer":                 {vector + "a", keyring.ErrKeyLength},
		"upper-case id":          {strings.Replace(vector, "kzdv", "KZDV", 1), keyring.ErrKeyID},
		"no second underscore":   {strings.Replace(vector, "f_0", "f00", 1), keyring.ErrKeyID},
		"foreign character":      {strings.Replace(vector, "xQ7", "x-7", 1), keyring.ErrKeyAlphabet},
		"one character mistyped": {strings.Replace(vector, "xQ7", "xQ8", 1), keyring.ErrKeyChecksum},
		"checksum mistyped":      {vector[:len(vector)-1] + "m", keyring.ErrKeyChecksum},
		"overflow":               {resum(vector[:22] + strings.Repeat("z", 90)), keyring.ErrKeyOverflow},
		"another id":             {resum("iapk_" + strings.Repeat("a", 16) + vector[21:112]), keyring.ErrKeyMismatch},
		"version 2":              {resum(vector[:22] + body(2, 0)), keyring.ErrKeyVersion},
		"version 0":              {resum(vector[:22] + body(0, 0)), keyring.ErrKeyVersion},
		"flags":                  {resum(vector[:22] + body(1, 0x80)), keyring.ErrKeyFlags},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := keyring.ParseSecret(tc.in)
			if !errors.Is(err, tc.want) || !fault.Is(err, fault.Invalid) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if len(tc.in) > 40 && strings.Contains(err.Error(), tc.in[30:40]) {
				t.Errorf("the error quotes the key: %v", err)
			}
		})
	}
}

func TestASecretDoesNotPrintItself(t *testing.T) {
	t.Parallel()
	s := vectorSecret(t)
	held := struct{ s keyring.ProvisioningSecret }{s}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("m", "key", s, "held", held)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "key", s, "held", held)
	out := log.String()
	for _, verb := range []string{"%s", "%v", "%+v", "%#v", "%q", "%x", "%d"} {
		out += fmt.Sprintf(verb+" "+verb+" "+verb+"\n", s, &s, held)
	}
	out += fmt.Sprint(s, held, []any{s})
	seed := s.PrivateKey().Seed()
	for what, leak := range map[string]string{
		"body": vector[30:50], "seed in hex": fmt.Sprintf("%x", seed[:8]), "seed in decimal": "4 5 6 7", "seed in Go": "0x4, 0x5, 0x6",
	} {
		if strings.Contains(out, leak) {
			t.Errorf("the %s leaks: %s", what, out)
		}
	}
	if !strings.Contains(out, "iapk_kzdvvj2umnduyauf_[redacted]") {
		t.Errorf("the id is missing: %s", out)
	}
	if _, err := s.MarshalText(); err == nil {
		t.Error("it marshals")
	}
}

func TestTheZeroSecretIsNoKey(t *testing.T) {
	t.Parallel()
	var s keyring.ProvisioningSecret
	if !s.IsZero() || s.String() != "" || s.ID() != "" || s.PublicKey() != nil || s.PrivateKey() != nil || s.Pin() != [32]byte{} {
		t.Errorf("the zero secret is %q", s.String())
	}
}

func TestGeneratedKeysDiffer(t *testing.T) {
	t.Parallel()
	a, errA := keyring.GenerateKey([32]byte{1}, nil)
	b, errB := keyring.GenerateKey([32]byte{1}, nil)
	if err := errors.Join(errA, errB); err != nil || a.ID() == b.ID() {
		t.Errorf("%v and %v: %v", a, b, err)
	}
	if _, err := keyring.GenerateKey([32]byte{1}, strings.NewReader("short")); err == nil {
		t.Error("a key of too little randomness")
	}
}

func FuzzParseSecret(f *testing.F) {
	f.Add(vector)
	f.Add(vector + "\n")
	f.Add(strings.Repeat("z", 118))
	f.Add(resum(vector[:22] + body(1, 1)))
	f.Add("iapk_")
	f.Fuzz(func(t *testing.T, in string) {
		s, err := keyring.ParseSecret(in)
		if err != nil {
			var rule keyring.KeyFormatError
			if !errors.As(err, &rule) || !fault.Is(err, fault.Invalid) {
				t.Fatalf("an error without a rule: %v", err)
			}
			return
		}
		if s.String() != strings.TrimSpace(in) {
			t.Fatalf("two spellings of one key: %q", in)
		}
	})
}
