package keyring_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
)

// ringKey is a key by a letter.
func ringKey(letter byte) []byte { return bytes.Repeat([]byte{letter}, 32) }

func ringOf(letters string) (keys [][]byte) {
	for _, l := range []byte(letters) {
		keys = append(keys, ringKey(l))
	}
	return keys
}

func lettersOf(keys [][]byte) string {
	var out strings.Builder
	for _, k := range keys {
		out.WriteByte(k[0])
	}
	return out.String()
}

func TestTheGossipRingsSteps(t *testing.T) {
	t.Parallel()
	begin := func(r keyring.GossipRing, keys [][]byte) (keyring.GossipRing, [][]byte, error) {
		return keyring.BeginRing(r, keys, ringKey('z'), now)
	}
	advance := func(r keyring.GossipRing, keys [][]byte) (keyring.GossipRing, [][]byte, error) {
		return keyring.AdvanceRing(r, keys, now)
	}
	for name, tc := range map[string]struct {
		step  func(keyring.GossipRing, [][]byte) (keyring.GossipRing, [][]byte, error)
		phase keyring.RingPhase
		keys  string
		want  keyring.RingPhase
		ring  string
	}{
		"begin":                                {begin, keyring.RingSteady, "a", keyring.RingInstall, "az"},
		"begin, of a mesh without a record":    {begin, "", "a", keyring.RingInstall, "az"},
		"use":                                  {advance, keyring.RingInstall, "ab", keyring.RingUse, "ba"},
		"remove":                               {advance, keyring.RingUse, "ba", keyring.RingSteady, "b"},
		"another during install":               {begin, keyring.RingInstall, "ab", keyring.RingInstall, "az"},
		"another during use":                   {begin, keyring.RingUse, "ba", keyring.RingInstall, "baz"},
		"use of three":                         {advance, keyring.RingInstall, "bac", keyring.RingUse, "cba"},
		"another during install of three":      {begin, keyring.RingInstall, "bac", keyring.RingInstall, "baz"},
		"another during use of three":          {begin, keyring.RingUse, "cba", keyring.RingInstall, "cbz"},
		"remove of three":                      {advance, keyring.RingUse, "cba", keyring.RingSteady, "c"},
		"begin from a ring that lost its keys": {begin, keyring.RingUse, "b", keyring.RingInstall, "bz"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, keys, err := tc.step(keyring.GossipRing{Phase: tc.phase}, ringOf(tc.keys))
			if err != nil || r.Phase != tc.want || lettersOf(keys) != tc.ring || r.Since != now {
				t.Errorf("%+v with %q: %v", r, lettersOf(keys), err)
			}
			if again, err := keyring.ParseRing(slices.Concat(keys...)); err != nil || lettersOf(again) != tc.ring {
				t.Errorf("read back: %q, %v", lettersOf(again), err)
			}
		})
	}
	for name, err := range map[string]error{
		"nothing to advance":    third(advance(keyring.GossipRing{Phase: keyring.RingSteady}, ringOf("a"))),
		"no record":             third(advance(keyring.GossipRing{}, ringOf("a"))),
		"nothing was installed": third(advance(keyring.GossipRing{Phase: keyring.RingInstall}, ringOf("a"))),
		"no keys":               third(begin(keyring.GossipRing{}, nil)),
		"a key that is there":   third(begin(keyring.GossipRing{}, ringOf("z"))),
		"a short key":           third(keyring.BeginRing(keyring.GossipRing{}, ringOf("a"), []byte("short"), now)),
	} {
		if err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
	for _, n := range []int{0, 1, 31, 33, 4 * 32} {
		if _, err := keyring.ParseRing(make([]byte, n)); !fault.Is(err, fault.Internal) {
			t.Errorf("a ring of %d bytes: %v", n, err)
		}
	}
}

func third[A, B any](_ A, _ B, err error) error { return err }

// Nodes take up each ring when they come to it, the next step waits for all, and another change may begin at any moment: whatever
// happens, any two nodes understand each other, and of what was known before a change nothing counts once it is done.
func TestNodesAlwaysUnderstandEachOther(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const nodes = 4
		ring, keys := keyring.NewRing(now), ringOf("a")
		held := make([][][]byte, nodes)
		for i := range held {
			held[i] = keys
		}
		behind := make([]bool, nodes)
		next := byte('a')
		known := map[string]bool{} // to somebody who was there at the last beginning
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			node := rapid.IntRange(0, nodes-1).Draw(t, "node")
			switch rapid.SampledFrom([]string{"view", "view", "view", "advance", "begin"}).Draw(t, "step") {
			case "view":
				held[node], behind[node] = keys, false
			case "advance":
				if ring.Phase == keyring.RingSteady || slices.Contains(behind, true) {
					continue
				}
				var err error
				if ring, keys, err = keyring.AdvanceRing(ring, keys, now); err != nil {
					t.Fatal(err)
				}
				behind = []bool{true, true, true, true}
			case "begin":
				if next++; next > 'z' {
					return
				}
				for _, k := range keys {
					known[lettersOf([][]byte{k})] = true
				}
				var err error
				if ring, keys, err = keyring.BeginRing(ring, keys, ringKey(next), now); err != nil {
					t.Fatal(err)
				}
				behind = []bool{true, true, true, true}
			}
			for i := range held {
				for j := range held {
					if !slices.ContainsFunc(held[j], func(k []byte) bool { return bytes.Equal(k, held[i][0]) }) {
						t.Fatalf("in %s node %d encrypts by %q, which node %d with %q does not know", ring.Phase, i, lettersOf(held[i][:1]), j, lettersOf(held[j]))
					}
				}
			}
			if ring.Phase == keyring.RingSteady && len(keys) == 1 && known[lettersOf(keys)] {
				t.Fatalf("steady by %q, which was known before", lettersOf(keys))
			}
		}
	})
}

func TestReadyToAdvance(t *testing.T) {
	t.Parallel()
	at := revision.Revision{Epoch: 1, Index: 9}
	acks := []keyring.Ack{{Node: "a", Revision: at, ReportedAt: now}, {Node: "b", Revision: revision.Revision{Epoch: 1, Index: 8}, ReportedAt: now.Add(-time.Minute)}}
	for phase, ready := range map[keyring.RingPhase]bool{keyring.RingInstall: true, keyring.RingUse: true, keyring.RingSteady: false, "": false, "else": false} {
		got := keyring.ReadyToAdvance(keyring.GossipRing{Phase: phase, Revision: at}, keyring.PromoteFacts{Now: now, ListeningSince: now.Add(-time.Hour), Acks: acks})
		if got.Ready != ready || !slices.Equal(got.Lagging, []string{"b"}) {
			t.Errorf("%s: %+v", phase, got)
		}
	}
	acks[1].ReportedAt = now
	if got := keyring.ReadyToAdvance(keyring.GossipRing{Phase: keyring.RingUse, Revision: at}, keyring.PromoteFacts{Now: now, ListeningSince: now.Add(-time.Hour), Acks: acks}); got.Ready || !slices.Equal(got.Waiting, []string{"b"}) {
		t.Errorf("a live node behind: %+v", got)
	}
}

func FuzzParseRing(f *testing.F) {
	f.Add([]byte{})
	f.Add(ringKey('a'))
	f.Add(slices.Concat(ringOf("abc")...))
	f.Add(ringKey('a')[:31])
	f.Fuzz(func(t *testing.T, secret []byte) {
		keys, err := keyring.ParseRing(secret)
		if err != nil {
			return
		}
		if len(keys) == 0 || len(keys) > 3 || !bytes.Equal(slices.Concat(keys...), secret) {
			t.Errorf("%d keys of %d bytes", len(keys), len(secret))
		}
	})
}
