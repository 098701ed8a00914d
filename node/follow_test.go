package node

import (
	"context"
	"iter"
	"log/slog"
	"testing"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
)

// oneChange is a store that holds one state.
type oneChange store.Change

func (c oneChange) Watch(context.Context, store.Revision) iter.Seq2[store.Change, error] {
	return func(yield func(store.Change, error) bool) { yield(store.Change(c), nil) }
}

// A receipt is for leaders, and many they are: no plain follower carries them.
func TestWhatAFollowerMayHold(t *testing.T) {
	t.Parallel()
	audience := keyring.Audience{Name: "assert/eu-west/_", Wraps: []keyring.Wrap{{Node: "n-member"}}}
	change := oneChange{Revision: store.Revision{Epoch: 1, Index: 7}, Reset: true, Entries: []store.Entry{state.PutMesh(keyring.Mesh{ID: "m-1"}), state.PutAudience(&audience)}}
	a := &assembly{source: state.NewSource(change, slog.New(slog.DiscardHandler))}
	if err := a.source.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	member := map[string]bool{
		state.NodePath("n-1"): true, state.RevocationPath(keyring.RevokeSession, "s"): true, state.ReceiptPath("r-1"): false,
		state.AudiencePath("assert/eu-west/_"): true, state.SecretPath("assert/eu-west/_", "kid"): true, state.AudiencePath("control"): false, "secret/x": false,
	}
	for node, want := range map[string]func(key string) bool{
		"n-member": func(key string) bool { return member[key] },
		"n-other": func(key string) bool {
			return member[key] && key != state.AudiencePath("assert/eu-west/_") && key != state.SecretPath("assert/eu-west/_", "kid")
		},
	} {
		_, admit, err := a.scope(t.Context(), node, store.Revision{Epoch: 1, Index: 7})
		if err != nil {
			t.Fatal(err)
		}
		for key := range member {
			if admit(key) != want(key) {
				t.Errorf("%s may hold %s: %v", node, key, admit(key))
			}
		}
	}
}
