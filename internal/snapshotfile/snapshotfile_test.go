package snapshotfile_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/internal/snapshotfile"
	"github.com/iapmesh/iapmesh/keyring/seal"
)

// by are the keepers of those URLs.
func by(urls ...string) seal.Directory { return seal.Directory{URLs: urls} }

func sample(entries, size int) *snapshotfile.Snapshot {
	s := &snapshotfile.Snapshot{Header: snapshotfile.Header{
		Mesh: "m-1", TrustDomain: "mesh.test", Revision: revision.Revision{Epoch: 1, Index: 42}, TakenAt: time.Unix(1_700_000_000, 0).UTC(), By: "admin/root",
		OpeningKey: bytes.Repeat([]byte{7}, 32), Audiences: []snapshotfile.AudienceWrap{{Name: "control", Version: 3, Wrapped: []byte("wrapped")}},
	}}
	for i := range entries {
		s.Entries = append(s.Entries, snapshotfile.Entry{
			Key: fmt.Sprintf("node/n-%06d", i), Value: bytes.Repeat([]byte{byte(i)}, size), Revision: revision.Revision{Epoch: 1, Index: uint64(i + 1)},
		})
	}
	return s
}

// written is a snapshot's file and the keeper that opens it.
func written(t testing.TB, s *snapshotfile.Snapshot) (path, keeper string) {
	t.Helper()
	dir := t.TempDir()
	path, keeper = filepath.Join(dir, "mesh.snapshot"), "file://"+filepath.Join(dir, "key")
	if err := snapshotfile.Create(t.Context(), path, by(keeper), s); err != nil {
		t.Fatal(err)
	}
	return path, keeper
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]*snapshotfile.Snapshot{
		"nothing": sample(0, 0), "a few": sample(3, 10), "many": sample(5000, 100), "large": sample(3, 1<<20), "empty values": sample(10, 0),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, keeper := written(t, s)
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
			for _, keepers := range [][]string{nil, {keeper}, {"base64key://" + strings.Repeat("A", 43) + "=", keeper}} {
				got, err := snapshotfile.Open(t.Context(), path, by(keepers...))
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(s, got, cmp.Comparer(func(a, b []byte) bool { return bytes.Equal(a, b) })); diff != "" {
					t.Errorf("-wrote +read:\n%.2000s", diff)
				}
			}
			if err := snapshotfile.Create(t.Context(), path, by(keeper), s); !fault.Is(err, fault.Conflict) {
				t.Errorf("written over: %v", err)
			}
		})
	}
}

func TestAnyByteThatWasChangedIsFound(t *testing.T) {
	t.Parallel()
	path, _ := written(t, sample(3, 10))
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(filepath.Dir(path), "bad.snapshot")
	refused := func(what string, content []byte) {
		t.Helper()
		if err := os.WriteFile(bad, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := snapshotfile.Open(t.Context(), bad, by()); err == nil {
			t.Errorf("%s: taken: %v", what, s.Header)
		}
	}
	for i := range good {
		for _, mask := range []byte{1, 0x80} {
			content := bytes.Clone(good)
			content[i] ^= mask
			refused(fmt.Sprintf("byte %d ^ %#x", i, mask), content)
		}
	}
	for n := range good {
		refused(fmt.Sprintf("cut off at %d", n), good[:n])
	}
	refused("a byte more", append(bytes.Clone(good), 0))
	refused("twice", append(bytes.Clone(good), good...))
}

func TestChunksStayInTheirPlace(t *testing.T) {
	t.Parallel()
	path, keeper := written(t, sample(40, 10_000))
	other := filepath.Join(filepath.Dir(path), "other.snapshot")
	if err := snapshotfile.Create(t.Context(), other, by(keeper), sample(40, 10_000)); err != nil {
		t.Fatal(err)
	}
	head, chunks := split(t, path)
	_, others := split(t, other)
	if len(chunks) < 4 {
		t.Fatalf("%d chunks: too few to exchange", len(chunks))
	}
	n := len(chunks)
	for name, order := range map[string][][]byte{
		"exchanged":        append([][]byte{chunks[1], chunks[0]}, chunks[2:]...),
		"left out":         append([][]byte{chunks[0]}, chunks[2:]...),
		"the last missing": chunks[:n-1],
		"the last first":   append([][]byte{chunks[n-1]}, chunks...),
		"twice":            append([][]byte{chunks[0], chunks[0]}, chunks[1:]...),
		"another file's":   append([][]byte{others[0]}, chunks[1:]...),
		"all another's":    others,
	} {
		content := bytes.Clone(head)
		for _, c := range order {
			content = append(content, c...)
		}
		bad := filepath.Join(t.TempDir(), "bad")
		if err := os.WriteFile(bad, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := snapshotfile.Open(t.Context(), bad, by(keeper)); !fault.Is(err, fault.Invalid) {
			t.Errorf("chunks %s: %v, want Invalid", name, err)
		}
	}
}

// split takes a file apart.
func split(t *testing.T, path string) (head []byte, chunks [][]byte) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	size := func(b []byte) int { return 4 + int(b[0])<<24 + int(b[1])<<16 + int(b[2])<<8 + int(b[3]) }
	const magic = 17
	n := magic + size(content[magic:])
	head, content = content[:n], content[n:]
	for len(content) > 0 {
		n := size(content)
		chunks, content = append(chunks, content[:n]), content[n:]
	}
	return head, chunks
}

func TestWithoutItsKeyItStaysShut(t *testing.T) {
	t.Parallel()
	path, keeper := written(t, sample(3, 10))
	secret, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(secret, []byte("n-000001")) || bytes.Contains(secret, bytes.Repeat([]byte{7}, 32)) {
		t.Error("the file shows what it holds")
	}
	key := strings.TrimPrefix(keeper, "file://")
	if err := os.Rename(key, key+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := snapshotfile.Open(t.Context(), path, by()); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "not there") {
		t.Errorf("without its key: %v", err)
	}
	if _, err := snapshotfile.Open(t.Context(), path, by("base64key://"+strings.Repeat("A", 43)+"=")); !fault.Is(err, fault.Unavailable) {
		t.Errorf("with another key: %v", err)
	}
	if _, err := snapshotfile.Open(t.Context(), path, by(keeper+".away")); err != nil {
		t.Errorf("with its key elsewhere: %v", err)
	}
	if _, err := snapshotfile.Open(t.Context(), key+".away", by()); !fault.Is(err, fault.Invalid) {
		t.Errorf("a file that is no snapshot: %v", err)
	}
}

// What lies behind the seal is decoded as if it came from anybody: it ends in an error or in what encodes to the same bytes.
func FuzzDecode(f *testing.F) {
	for _, s := range []*snapshotfile.Snapshot{sample(0, 0), sample(2, 5), sample(3, 200)} {
		var body bytes.Buffer
		if err := snapshotfile.Encode(&body, s); err != nil {
			f.Fatal(err)
		}
		f.Add(body.Bytes())
		f.Add(body.Bytes()[:body.Len()/2])
		f.Add(append(body.Bytes(), 0))
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, body []byte) {
		s, err := snapshotfile.Decode(bytes.NewReader(body))
		if err != nil {
			if fault.KindOf(err) != fault.Invalid {
				t.Errorf("kind %v: %v", fault.KindOf(err), err)
			}
			return
		}
		var again bytes.Buffer
		if err := snapshotfile.Encode(&again, s); err != nil {
			t.Errorf("read, and not written: %v", err)
		}
	})
}

// A whole file from anybody: whatever its envelope and chunks say, it opens only if it was written by this key.
func FuzzOpen(f *testing.F) {
	path, _ := written(f, sample(2, 5))
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:40])
	f.Add([]byte("IAPMESH SNAPSHOT\x01\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, content []byte) {
		file := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := snapshotfile.Open(t.Context(), file, by("base64key://"+strings.Repeat("A", 43)+"=")); err == nil && !bytes.Equal(content, good) {
			t.Error("a file that nobody wrote opens")
		}
	})
}
