package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/nodetest"
)

// An answer may be lost, and the same asked again is refused: who then loses the file has lost a key that admits nodes.
func TestAKeysFileIsKeptWhereTheMeshHasTheKey(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west")
	line := newCommandLine(t, mesh)
	c := newCLI(strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{})
	c.profileRef, c.timeout = line.profile, nodetest.Patience
	defer c.close()
	for name, kept := range map[string]bool{"taken": true, "refused": false} {
		path := filepath.Join(t.TempDir(), name+".key")
		secret, file, err := c.newKey(path)
		if err != nil {
			t.Fatal(err)
		}
		if kept {
			if out, status := line.run("key", "issue", "--name", name, "--grant", "proxy", "--public-key", keyring.PublicKeyText(secret.PublicKey())); status != 0 {
				t.Fatal(out)
			}
		}
		err = c.keyRefused(t.Context(), file, secret, fault.New(fault.Conflict, "it has a successor"))
		if !fault.Is(err, fault.Conflict) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(path); (err == nil) != kept {
			t.Errorf("%s: its file: %v", name, err)
		}
	}
}
