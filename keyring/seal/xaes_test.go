package seal

import (
	"bytes"
	"encoding/hex"
	"testing"
)

// The vectors of c2sp.org/XAES-256-GCM: the two halves of the subkey derivation (MSB of L clear and set) are both among them.
func TestXAESFollowsItsSpecification(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		key  byte
		aad  string
		want string
	}{
		"MSB clear": {0x01, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
		"MSB set":   {0x03, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x, err := newXAES(bytes.Repeat([]byte{tc.key}, keySize))
			if err != nil {
				t.Fatal(err)
			}
			nonce := []byte("ABCDEFGHIJKLMNOPQRSTUVWX")
			got := x.sealTo(nil, nonce, []byte("XAES-256-GCM"), []byte(tc.aad))
			if hex.EncodeToString(got) != tc.want {
				t.Errorf("sealed to %x, want %s", got, tc.want)
			}
			back, err := x.openTo(nil, nonce, got, []byte(tc.aad))
			if err != nil || string(back) != "XAES-256-GCM" {
				t.Errorf("opened %q: %v", back, err)
			}
		})
	}
}
