package keyring_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/keyring"
)

// gives reports which part of the vector's body a text gives away: 16 characters in a row of it.
func gives(text string) string {
	body := vector[len("iapk_")+17:]
	for i := range len(body) - 15 {
		if strings.Contains(text, body[i:i+16]) {
			return body[i : i+16]
		}
	}
	return ""
}

func TestRedactHidesAKeyAndKeepsItsID(t *testing.T) {
	t.Parallel()
	const hidden = "iapk_kzdvvj2umnduyauf_[redacted]"
	for name, tc := range map[string]struct{ in, want string }{
		"alone":             {vector, hidden},
		"in a sentence":     {"unexpected argument \"" + vector + "\": did you mean --file " + vector + "?", "unexpected argument \"" + hidden + "\": did you mean --file " + hidden + "?"},
		"before a colon":    {"open " + vector + ": no such file", "open " + hidden + ": no such file"},
		"in a path":         {"open /etc/" + vector + "/x: no such file", "open /etc/" + hidden + "/x: no such file"},
		"a flag":            {"unknown flag: --" + vector, "unknown flag: --" + hidden},
		"cut off":           {fmt.Sprintf("key %.40q: unknown", vector), `key "` + hidden + `": unknown`},
		"hidden":            {hidden, hidden},
		"without its id":    {"iapk_" + vector[22:], "iapk_[redacted]"},
		"its id damaged":    {"iapk_KZDVVJ2umnduyau1" + vector[21:], "iapk_[redacted]"},
		"torn":              {"| " + vector[:60] + "\n   4 | " + vector[60:], "| " + hidden + "\n   4 | [redacted]"},
		"torn after the id": {vector[:21] + " " + vector[21:], "iapk_kzdvvj2umnduyauf _[redacted]"},
		"the id alone":      {"iapk_kzdvvj2umnduyauf", "iapk_kzdvvj2umnduyauf"},
		"names of files":    {"iapk_us-east-proxies.key iapk_kzdvvj2umnduyauf.key /etc/iapk_bootstrap.key", "iapk_us-east-proxies.key iapk_kzdvvj2umnduyauf.key /etc/iapk_bootstrap.key"},
		"the format":        {"A key is iapk_<16 characters>_<96 characters>, whole", "A key is iapk_<16 characters>_<96 characters>, whole"},
		"no key":            {"of CVLST7KBq0123456789abcdef", "of CVLST7KBq0123456789abcdef"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := keyring.Redact(tc.in); got != tc.want {
				t.Errorf("%s", got)
			}
			id, found := keyring.FindSecret(tc.in)
			if found != (tc.want != tc.in) {
				t.Errorf("found: %v", found)
			}
			if wantID := strings.Contains(tc.want, "kzdvvj2umnduyauf"); found && (id == "kzdvvj2umnduyauf") != wantID {
				t.Errorf("found by the id %q", id)
			}
		})
	}
}

// Whatever one mistake makes of a key behind its prefix, and however it is quoted, no part of the secret is shown.
func TestRedactHidesADamagedKey(t *testing.T) {
	t.Parallel()
	for at := len("iapk_"); at < len(vector); at++ {
		damaged := []string{vector[:at], vector[:at] + vector[at+1:]}
		for _, c := range "-_ \n\t.,;:/\\\"'`=+é\x00" {
			damaged = append(damaged, vector[:at]+string(c)+vector[at:], vector[:at]+string(c)+vector[at+1:])
		}
		for _, in := range damaged {
			for _, quoted := range []string{in, fmt.Sprintf("key %q: unknown", in), fmt.Sprintf("key=%s", in), "   3 |   key: \"" + in + "\"\n              ^"} {
				shown := keyring.Redact(quoted)
				if part := gives(shown); part != "" {
					t.Fatalf("%q shows %s of the secret", shown, part)
				}
				if again := keyring.Redact(shown); again != shown {
					t.Fatalf("%q is hidden twice, as %q", shown, again)
				}
			}
		}
	}
}

func FuzzRedact(f *testing.F) {
	f.Add("open ", ": no such file")
	f.Add("iapk_", "_")
	f.Fuzz(func(t *testing.T, before, after string) {
		if gives(before) != "" || gives(after) != "" {
			return
		}
		shown := keyring.Redact(before + vector + after)
		if part := gives(shown); part != "" {
			t.Errorf("%q shows %s of the secret", shown, part)
		}
		if again := keyring.Redact(shown); again != shown {
			t.Errorf("%q is hidden twice, as %q", shown, again)
		}
	})
}
