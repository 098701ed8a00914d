package audit_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
)

func key(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
}

func public(n byte) ed25519.PublicKey { return key(n).Public().(ed25519.PublicKey) }

func checkpoint(t testing.TB, c audit.Checkpoint, by byte) []byte {
	t.Helper()
	signed, err := c.Sign(audit.SignWith(key(by)))
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func TestACheckpointIsAStandardNote(t *testing.T) {
	t.Parallel()
	c := audit.Checkpoint{Mesh: "m", Node: "n1", Run: 0xabc, Size: 3, Root: audit.Hash{1}, Time: at(9)}
	signed := checkpoint(t, c, 1)
	got, err := audit.OpenCheckpoint(signed, "n1", public(1))
	if err != nil || got != c {
		t.Fatalf("%+v, %v", got, err)
	}
	// Anybody's tool can check it: the verifier key is C2SP's.
	vkey, err := note.NewEd25519VerifierKey("iapmesh/audit/v1/m/n1/0000000000000abc", public(1))
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := note.Open(signed, note.VerifierList(verifier)); err != nil {
		t.Error(err)
	}
}

func TestOpenCheckpointRefuses(t *testing.T) {
	t.Parallel()
	good := audit.Checkpoint{Mesh: "m", Node: "n1", Run: 1, Size: 3, Time: at(9)}
	signed := string(checkpoint(t, good, 1))
	for name, tc := range map[string]struct {
		note string
		node string
		key  byte
		kind fault.Kind
	}{
		"another key":        {signed, "n1", 2, fault.Denied},
		"another node":       {signed, "n2", 1, fault.Denied},
		"a changed size":     {strings.Replace(signed, "\n3\n", "\n4\n", 1), "n1", 1, fault.Denied},
		"a changed time":     {strings.Replace(signed, "09.123", "09.124", 1), "n1", 1, fault.Denied},
		"a size with a zero": {strings.Replace(signed, "\n3\n", "\n03\n", 1), "n1", 1, fault.Invalid},
		"no signature":       {signed[:strings.Index(signed, "—")], "n1", 1, fault.Denied},
		"another line":       {strings.Replace(signed, "\ntime", "\nx\ntime", 1), "n1", 1, fault.Invalid},
		"too long":           {signed + strings.Repeat("x", audit.MaxNote), "n1", 1, fault.Invalid},
		"nothing":            {"", "n1", 1, fault.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := audit.OpenCheckpoint([]byte(tc.note), tc.node, public(tc.key)); !fault.Is(err, tc.kind) {
				t.Errorf("%v, want kind %v", err, tc.kind)
			}
		})
	}
	for _, name := range []string{"", "a b", "a/b", "a+b", "a\nb", strings.Repeat("x", 254)} {
		c := good
		c.Node = name
		if _, err := c.Sign(audit.SignWith(key(1))); !fault.Is(err, fault.Invalid) {
			t.Errorf("signed for node %q: %v", name, err)
		}
	}
}

func TestACountersignatureKeepsTheNodes(t *testing.T) {
	t.Parallel()
	c := audit.Checkpoint{Mesh: "m", Node: "n1", Run: 1, Size: 3, Time: at(9)}
	signed, err := audit.Countersign(checkpoint(t, c, 1), "agg", audit.SignWith(key(3)), at(10))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := audit.OpenCheckpoint(signed, "n1", public(1)); err != nil {
		t.Error(err)
	}
	when, err := audit.VerifyCountersignature(signed, "agg", public(3))
	if err != nil || when.Unix() != 10 {
		t.Errorf("%v, %v", when, err)
	}
	if _, err := audit.VerifyCountersignature(signed, "agg", public(1)); !fault.Is(err, fault.Denied) {
		t.Errorf("another aggregator's key: %v", err)
	}
	if _, err := audit.VerifyCountersignature(signed, "agg2", public(3)); !fault.Is(err, fault.Denied) {
		t.Errorf("another aggregator: %v", err)
	}
	later, err := audit.Countersign(signed, "agg", audit.SignWith(key(3)), at(11))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(later, []byte("— ")); n != 2 {
		t.Errorf("%d signatures after countersigning twice", n)
	}
}

// naive is RFC 6962's definition of the root, word for word.
func naive(leaves [][]byte) [32]byte {
	switch n := len(leaves); n {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return sha256.Sum256(append([]byte{0}, leaves[0]...))
	default:
		k := 1
		for k*2 < n {
			k *= 2
		}
		l, r := naive(leaves[:k]), naive(leaves[k:])
		return sha256.Sum256(append(append([]byte{1}, l[:]...), r[:]...))
	}
}

func TestTheTreeIsThatOfRFC6962AndGoesOnFromItsEdge(t *testing.T) {
	t.Parallel()
	tree := audit.NewTree()
	var leaves [][]byte
	for i := range 70 {
		if tree.Root() != naive(leaves) {
			t.Fatalf("root at %d", i)
		}
		restored, err := audit.EdgeOf(7, tree).Tree()
		if err != nil || restored.Root() != tree.Root() || restored.Size() != uint64(i) {
			t.Fatalf("from the edge at %d: %v", i, err)
		}
		leaf := fmt.Append(nil, "leaf", i)
		leaves = append(leaves, leaf)
		if i%2 == 0 {
			tree = restored
		}
		tree.Append(audit.LeafHash(leaf))
	}
	if _, err := audit.RestoreTree(3, make([]audit.Hash, 1)); !fault.Is(err, fault.Invalid) {
		t.Errorf("an edge of the wrong length: %v", err)
	}
}

func FuzzOpenCheckpoint(f *testing.F) {
	c := audit.Checkpoint{Mesh: "m", Node: "n1", Run: 1, Size: 3, Time: at(9)}
	signed, err := c.Sign(audit.SignWith(key(1)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Add([]byte("iapmesh/audit/v1/m/n1/0000000000000001\n3\n\ntime\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := audit.OpenCheckpoint(b, "n1", public(1))
		if err == nil && got != c {
			t.Errorf("%q was taken for %+v", b, got)
		}
		_, _ = audit.VerifyCountersignature(b, "agg", public(3))
		_, _ = audit.Countersign(b, "agg", audit.SignWith(key(3)), at(1))
	})
}
