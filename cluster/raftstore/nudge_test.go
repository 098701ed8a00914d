package raftstore_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"

	"github.com/iapmesh/iapmesh/cluster/raftstore"
)

// sent is what a follower is told: that all up to commit is committed, once it has what goes before and the entries.
type sent struct{ prev, entries, commit uint64 }

type wire struct {
	raft.AppendPipeline
	got []sent
}

func (w *wire) AppendEntries(args *raft.AppendEntriesRequest, _ *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	w.got = append(w.got, sent{args.PrevLogEntry, uint64(len(args.Entries)), args.LeaderCommitIndex})
	return nil, nil
}

// A follower takes for committed whatever it has up to the index that it is told, and it may still have entries of a deposed leader.
func TestANudgeSaysNothingOfWhatWasNotSent(t *testing.T) {
	t.Parallel()
	w := &wire{}
	pipeline, nudge := raftstore.NudgedPipeline(w)
	send := func(commit, prev uint64, entries ...uint64) {
		t.Helper()
		args := &raft.AppendEntriesRequest{Term: 2, PrevLogEntry: prev, PrevLogTerm: 2, LeaderCommitIndex: commit}
		for _, index := range entries {
			args.Entries = append(args.Entries, &raft.Log{Index: index, Term: 2})
		}
		if _, err := pipeline.AppendEntries(args, new(raft.AppendEntriesResponse)); err != nil {
			t.Fatal(err)
		}
	}
	nudge(5, 2)
	send(4, 5)
	send(4, 5, 6)
	nudge(9, 2)
	nudge(9, 2)
	send(4, 6, 7, 8)
	send(4, 8, 9, 10)
	nudge(10, 2)
	nudge(12, 3) // by who leads in term 3: what was sent in term 2 may not be what stands there
	send(4, 10, 11, 12)
	want := []sent{{5, 0, 5}, {5, 1, 5}, {6, 0, 6}, {6, 2, 8}, {8, 2, 9}, {10, 0, 10}, {10, 2, 4}}
	if diff := cmp.Diff(want, w.got, cmp.AllowUnexported(sent{})); diff != "" {
		t.Error(diff)
	}
}
