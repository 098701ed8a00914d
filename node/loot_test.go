package node_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// content is what a file of a data directory holds, for whoever has not the seal.
type content int

const (
	sealed content = iota // nothing can be read
	public                // what any peer is told as well
	trail                 // the decisions of this node, or of those that ship to it
	empty                 // a lock
)

// dataDirectory is every file that a data directory may hold. SECURITY.md says the same in words. A file that is new belongs here,
// with a thought about what it gives away. What recover leaves of an engine is what the engine was.
func dataDirectory() map[string]content {
	out := map[string]content{
		"seal.json":                  public, // the keepers' URLs, and what only they open
		"node.json":                  public,
		"freshness.json":             public, // when the view was last known to be fresh
		"standing.json":              public, // that the node was put out while it was away, and why
		"keys.sealed":                sealed,
		"session-keys/*.key":         sealed,
		"rotate/*.sealed":            sealed, // but for its name: which key a secret is to succeed
		"raft/store.key":             sealed,
		"raft/applied":               sealed,
		"raft/wal/*.wal":             sealed,
		"raft/wal/wal-meta.db":       sealed,
		"raft/snapshots/*/state.bin": sealed,
		"raft/snapshots/*/meta.json": public, // index, term, and who is a member
		"raft/lock":                  empty,
		"replica/state":              sealed,
		"replica/lock":               empty,
		"spool/*.segment":            trail,
		"spool/acks":                 public, // how far it is shipped
		"spool/clean":                public,
		"spool/owner":                public,
		"spool/lock":                 empty,
		"audit/*/*/*.segment":        trail,
		"audit/.lock":                empty,
	}
	for pattern, kind := range maps.Clone(out) {
		if file, ok := strings.CutPrefix(pattern, "raft/"); ok {
			out["raft.before-recovery-*/"+file] = kind
		}
	}
	return out
}

// loot is a data directory as a thief has it: each file, without the zeros that it was made larger by.
type loot map[string][]byte

// preallocated is above the size of every file that is sealed as a whole, and below that of a log's.
const preallocated = 1 << 20

func steal(t *testing.T, dir string) loot {
	t.Helper()
	table, out := dataDirectory(), loot{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		kind, ok := kindOf(table, rel)
		if !ok {
			t.Errorf("%s: no file that is known: say in dataDirectory, and in SECURITY.md, what it holds", rel)
		}
		if kind == empty && len(data) > 0 {
			t.Errorf("%s: a lock holds %d bytes", rel, len(data))
		}
		if len(data) > preallocated { // a log's room; what is sealed may end in zeros
			data = bytes.TrimRight(data, "\x00")
		}
		out[rel] = data
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func kindOf(table map[string]content, name string) (content, bool) {
	for pattern, kind := range table {
		if ok, err := path.Match(pattern, name); ok && err == nil {
			return kind, true
		}
	}
	return 0, false
}

// of is all files of one kind.
func (l loot) of(kind content) []byte {
	var all []byte
	for name, data := range l {
		if k, _ := kindOf(dataDirectory(), name); k == kind {
			all = append(all, data...)
		}
	}
	return all
}

// holds reports in which encoding data holds a secret; empty: in none. base64 is looked for at each of the three places that the
// secret may begin at, so that it is found within a larger structure (PEM, JSON, DER in either), and across lines.
func holds(data, secret []byte) string {
	if bytes.Contains(data, secret) {
		return "raw"
	}
	lower := hex.EncodeToString(secret)
	if bytes.Contains(data, []byte(lower)) || bytes.Contains(data, []byte(strings.ToUpper(lower))) {
		return "hex"
	}
	joined := bytes.ReplaceAll(bytes.ReplaceAll(bytes.ReplaceAll(data, []byte("\r"), nil), []byte("\n"), nil), []byte(`\n`), nil)
	for name, encoding := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
		for before := range 3 {
			text := encoding.EncodeToString(append(make([]byte, before), secret...))
			// The characters that share bits with what comes before or after are left out.
			from, to := (before*8+5)/6, (before+len(secret))*8/6
			if part := []byte(text[from:to]); bytes.Contains(data, part) || bytes.Contains(joined, part) {
				return name
			}
		}
	}
	return ""
}

func TestASecretIsFoundInEachEncoding(t *testing.T) {
	t.Parallel()
	secret := []byte("\xfb\xff\x3f0123456789abcdef0123456789\xfb\xff\x3e")
	for before := range 4 {
		inside := slices.Concat([]byte("abcdefgh")[:before], secret, []byte("zyx"))
		for name, text := range map[string]string{
			"raw": string(inside), "hex": hex.EncodeToString(inside), "HEX": strings.ToUpper(hex.EncodeToString(inside)),
			"base64": base64.StdEncoding.EncodeToString(inside), "base64url": base64.URLEncoding.EncodeToString(inside),
			"PEM":         string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: bytes.Repeat(inside, 4)})),
			"PEM in JSON": strings.ReplaceAll(string(pem.EncodeToMemory(&pem.Block{Type: "X", Bytes: bytes.Repeat(inside, 4)})), "\n", `\n`),
		} {
			if holds([]byte("..."+text+"..."), secret) == "" {
				t.Errorf("%s after %d bytes: not found", name, before)
			}
			other := bytes.Clone(secret)
			other[len(other)/2] ^= 1
			if holds([]byte("..."+text+"..."), other) != "" {
				t.Errorf("%s after %d bytes: found what is not there", name, before)
			}
		}
	}
}
