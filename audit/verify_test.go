package audit_test

import (
	"crypto/ed25519"
	"fmt"
	"slices"
	"testing"

	"github.com/iapmesh/iapmesh/audit"
)

const run = audit.Run(5)

// trail is n records with a checkpoint, and the edge after it, every ten.
func trail(t testing.TB, r audit.Run, n int, first map[string]string) []audit.Frame {
	t.Helper()
	tree := audit.NewTree()
	out := []audit.Frame{audit.EdgeOf(r, tree)}
	for i := range n {
		rec := audit.Record{Kind: audit.KindDecision, Time: at(int64(i)), Path: fmt.Sprint(i)}
		if i == 0 && first != nil {
			rec = audit.Record{Kind: audit.KindRun, Time: at(0), Detail: first}
		}
		if i == 15 {
			rec = audit.Record{Kind: audit.KindGap, Time: at(15), Gap: &audit.Span{Count: 4}}
		}
		body := rec.AppendJSON(nil)
		tree.Append(audit.LeafHash(body))
		out = append(out, audit.Frame{Run: r, Seq: uint64(i), Body: body})
		if i%10 == 9 {
			out = append(out, noteOf(t, r, tree, 1), audit.EdgeOf(r, tree))
		}
	}
	return out
}

func noteOf(t testing.TB, r audit.Run, tree *audit.Tree, by byte) audit.Frame {
	c := audit.Checkpoint{Mesh: "m", Node: "n1", Run: r, Size: tree.Size(), Root: tree.Root(), Time: at(int64(tree.Size()))}
	return audit.Frame{Kind: audit.CheckpointFrame, Run: r, Seq: c.Size, Body: checkpoint(t, c, by)}
}

func verify(frames ...[]audit.Frame) audit.Report {
	v := audit.Verifier{NodeKey: func(string) (ed25519.PublicKey, error) { return public(1), nil }}
	for _, f := range slices.Concat(frames...) {
		v.Add("n1", f)
	}
	return v.Report()
}

func TestAWholeTrailIsProved(t *testing.T) {
	t.Parallel()
	r := verify(trail(t, run, 35, nil))
	got := r.Runs[0]
	if !r.OK() || got.Records != 35 || got.Proved != 30 || got.Size != 30 || got.Checkpoints != 3 || got.Gaps != 4 {
		t.Errorf("%+v", got)
	}
	want := audit.Finding{Node: "n1", Run: run.String(), Kind: audit.FindingUnproved, From: 30, To: 35, Text: "no checkpoint covers them"}
	if len(got.Findings) != 1 || got.Findings[0] != want {
		t.Errorf("findings %v", got.Findings)
	}
}

// at finds the frame of a record.
func find(frames []audit.Frame, kind audit.FrameKind, seq uint64) int {
	return slices.IndexFunc(frames, func(f audit.Frame) bool { return f.Kind == kind && f.Seq == seq })
}

func TestWhatWasDoneToATrailIsFound(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(t *testing.T, f []audit.Frame) []audit.Frame
		kind   audit.FindingKind
		from   uint64
		to     uint64
		proved uint64
	}{
		"a record changed": {func(t *testing.T, f []audit.Frame) []audit.Frame {
			f[find(f, audit.RecordFrame, 13)].Body = []byte(`{"kind":"decision"}`)
			return f
		}, audit.FindingChanged, 10, 20, 20},
		"two records exchanged": {func(t *testing.T, f []audit.Frame) []audit.Frame {
			i, j := find(f, audit.RecordFrame, 11), find(f, audit.RecordFrame, 12)
			f[i].Body, f[j].Body = f[j].Body, f[i].Body
			return f
		}, audit.FindingChanged, 10, 20, 20},
		"a record dropped": {func(t *testing.T, f []audit.Frame) []audit.Frame {
			i := find(f, audit.RecordFrame, 13)
			return slices.Delete(f, i, i+1)
		}, audit.FindingMissing, 13, 14, 20},
		"a record dropped and the rest renumbered": {func(t *testing.T, f []audit.Frame) []audit.Frame {
			i := find(f, audit.RecordFrame, 13)
			for j := i + 1; f[j].Kind == audit.RecordFrame; j++ {
				f[j].Seq--
			}
			return slices.Delete(f, i, i+1)
		}, audit.FindingMissing, 19, 20, 20},
		"a record twice": {func(t *testing.T, f []audit.Frame) []audit.Frame {
			i := find(f, audit.RecordFrame, 13)
			return slices.Insert(f, i, f[i])
		}, audit.FindingChanged, 13, 14, 30},
		"the end cut off, a later checkpoint kept": {func(t *testing.T, f []audit.Frame) []audit.Frame {
			i := find(f, audit.RecordFrame, 25)
			return append(slices.Clone(f[:i]), f[find(f, audit.CheckpointFrame, 30)])
		}, audit.FindingMissing, 25, 30, 20},
		"a middle cut out": {func(t *testing.T, f []audit.Frame) []audit.Frame {
			return slices.Delete(f, find(f, audit.RecordFrame, 5), find(f, audit.EdgeFrame, 20))
		}, audit.FindingMissing, 5, 20, 10},
		"a checkpoint by another key": {func(t *testing.T, f []audit.Frame) []audit.Frame {
			tree, err := f[find(f, audit.EdgeFrame, 20)].Tree()
			if err != nil {
				t.Fatal(err)
			}
			f[find(f, audit.CheckpointFrame, 20)] = noteOf(t, run, tree, 2)
			return f
		}, audit.FindingUnsigned, 10, 20, 30},
		"an edge forged along with a record": {func(t *testing.T, f []audit.Frame) []audit.Frame {
			f[find(f, audit.RecordFrame, 13)].Body = []byte(`{"kind":"decision"}`)
			tree := audit.NewTree()
			for _, fr := range f[:find(f, audit.EdgeFrame, 20)] {
				if fr.Kind == audit.RecordFrame {
					tree.Append(audit.LeafHash(fr.Body))
				}
			}
			f[find(f, audit.EdgeFrame, 20)] = audit.EdgeOf(run, tree)
			return f
		}, audit.FindingChanged, 20, 30, 10},
		"two trees signed": {func(t *testing.T, f []audit.Frame) []audit.Frame {
			tree := audit.NewTree()
			for i := range 30 {
				tree.Append(audit.Hash{byte(i)})
			}
			return append(f, noteOf(t, run, tree, 1))
		}, audit.FindingFork, 30, 30, 30},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := verify(tc.change(t, trail(t, run, 30, nil)))
			if r.OK() {
				t.Errorf("nothing was found: %+v", r.Runs)
			}
			if r.Runs[0].Proved != tc.proved {
				t.Errorf("%d records proved, want %d; %v", r.Runs[0].Proved, tc.proved, r.Findings())
			}
			if !slices.ContainsFunc(r.Findings(), func(f audit.Finding) bool { return f.Kind == tc.kind && f.From == tc.from && f.To == tc.to }) {
				t.Errorf("want %s %d-%d, found %v", tc.kind, tc.from, tc.to, r.Findings())
			}
		})
	}
}

func TestARunThatIsGoneIsFound(t *testing.T) {
	t.Parallel()
	first := trail(t, run, 20, nil)
	root := verify(first).Runs[0].Root
	next := func(size string) []audit.Frame {
		return trail(t, run+1, 10, map[string]string{"previous_run": run.String(), "previous_size": size, "previous_root": root})
	}
	if r := verify(first, next("20")); !r.OK() {
		t.Errorf("both runs: %v", r.Findings())
	}
	for name, r := range map[string]audit.Report{
		"dropped":   verify(next("20")),
		"shortened": verify(first[:find(first, audit.RecordFrame, 10)], next("20")),
		"longer":    verify(first, next("21")),
	} {
		if !slices.ContainsFunc(r.Findings(), func(f audit.Finding) bool { return f.Kind == audit.FindingNoRun && f.Run == (run+1).String() }) {
			t.Errorf("%s: %v", name, r.Findings())
		}
	}
}

func FuzzVerifier(f *testing.F) {
	good := trail(f, run, 30, nil)
	f.Add(stream(good))
	f.Add(stream(good[:7]))
	f.Fuzz(func(t *testing.T, data []byte) {
		var got []audit.Frame
		for at := 0; ; {
			fr, n, err := audit.DecodeFrame(data[at:])
			if err != nil || n == 0 {
				break
			}
			at += n
			got = append(got, fr)
		}
		r := verify(got)
		for _, rr := range r.Runs {
			if rr.Proved > rr.Records {
				t.Errorf("%d records, %d proved", rr.Records, rr.Proved)
			}
		}
	})
}
