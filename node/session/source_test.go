package session_test

import (
	"context"
	"iter"
	"log/slog"
	"maps"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/resource"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// feed is a store that yields what tests commit.
type feed chan store.Change

func (f feed) Watch(ctx context.Context, _ store.Revision) iter.Seq2[store.Change, error] {
	return func(yield func(store.Change, error) bool) {
		for {
			select {
			case <-ctx.Done():
				yield(store.Change{}, ctx.Err())
				return
			case c := <-f:
				if !yield(c, nil) {
					return
				}
			}
		}
	}
}

// source is a real Source that has reached a view; commit brings it to another, and returns once it is there.
func (m *mesh) source(first *state.View) (*state.Source, func(*state.View)) {
	m.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := make(feed)
	s := state.NewSource(f, slog.New(slog.DiscardHandler))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx); err != nil {
			m.t.Errorf("source: %v", err)
		}
	}()
	m.t.Cleanup(func() { cancel(); <-done })
	commit := func(v *state.View) {
		f <- store.Change{Revision: v.Revision, Reset: true, Entries: m.entries(v)}
		if _, err := s.WaitRevision(ctx, v.Revision); err != nil {
			m.t.Errorf("source: %v", err)
		}
	}
	commit(first)
	return s, commit
}

// entries writes a view as the store holds it.
func (m *mesh) entries(v *state.View) []store.Entry {
	var entries []store.Entry
	add := func(e store.Entry, at store.Revision) {
		e.Revision = at
		entries = append(entries, e)
	}
	add(state.PutMesh(keyring.Mesh{ID: "m", TrustDomain: "mesh.example.com", FoundedAt: m.now}), v.Revision) // without it, a Source has no view
	for _, n := range v.Keyring.Nodes {
		add(state.PutNode(n), v.Revision)
	}
	for _, k := range v.Keyring.SigningKeys {
		add(state.PutSigningKey(k), k.Revision)
	}
	for _, values := range v.Keyring.Revocations {
		for r := range maps.Values(values) {
			add(state.PutRevocation(r), r.Revision)
		}
	}
	docs, err := resource.Parse("mesh.yaml", []byte(settingsYAML+routesYAML))
	if err != nil {
		m.t.Error(err)
	}
	manifest := &iapmeshv1.Manifest{}
	for _, d := range docs {
		add(state.PutBlob(d.Hash, &iapmeshv1.Resource{Kind: d.Ref().Kind, Name: d.Ref().Name, Spec: d.JSON, Source: d.Source}), v.Revision)
		manifest.Entries = append(manifest.Entries, &iapmeshv1.ManifestEntry{Kind: d.Ref().Kind, Name: d.Ref().Name, Hash: d.Hash[:]})
	}
	add(state.PutManifest(manifest), v.Revision)
	return entries
}
