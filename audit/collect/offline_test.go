package collect_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/collect"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// Who has lost the aggregator's node reads what it has acknowledged, no more, and leaves the store as it was.
func TestAStoreIsReadWithoutItsAggregator(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	agg := serve(t, store)
	for _, name := range []string{"n1", "n2"} {
		n := start(t, name, t.TempDir(), func() *server { return agg })
		n.append(t, decisions(0, 500)...)
		n.append(t, audit.Record{Kind: audit.KindRevocation, Detail: map[string]string{"action": "revoke.node"}})
		if err := n.shipper.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		n.stop()
	}
	read := func(f collect.Filter) (ids []string, err error) {
		for e, err := range collect.ReadStore(t.Context(), store, f) {
			if err != nil {
				return nil, err
			}
			ids = append(ids, e.ID.String())
		}
		return ids, nil
	}
	if _, err := read(collect.Filter{}); !fault.Is(err, fault.Conflict) {
		t.Errorf("while the aggregator runs: %v, want Conflict", err)
	}
	filters := []collect.Filter{{}, {Kind: audit.KindRevocation}, {Node: "n2"}, {Limit: 7}, {Limit: 7, Newest: true}, {From: audit.Run(1).Started().AddDate(1000, 0, 0)}}
	answers := make([][]string, len(filters))
	for i, f := range filters {
		for e, err := range agg.Records(t.Context(), f) {
			if err != nil {
				t.Fatal(err)
			}
			answers[i] = append(answers[i], e.ID.String())
		}
	}
	agg.stop()
	files := segmentsOf(t, store, "n1") // the aggregator died while it wrote
	run, err := audit.ParseRun(filepath.Base(filepath.Dir(files[0])))
	if err != nil {
		t.Fatal(err)
	}
	torn := files[len(files)-1]
	data, err := os.ReadFile(torn)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(2) {
		data = audit.AppendFrame(data, audit.Frame{Run: run, Seq: 502 + i, Body: []byte(`{"kind":"revocation","time":"2026-11-24T10:00:00Z"}`)})
	}
	begun := filepath.Join(filepath.Dir(torn), "00000000000000009999.segment")
	for file, data := range map[string][]byte{torn: data[:len(data)-5], begun: nil} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i, f := range filters {
		if got, err := read(f); err != nil || !slices.Equal(got, answers[i]) {
			t.Errorf("%+v: %d records, %v; the aggregator told %d", f, len(got), err, len(answers[i]))
		}
	}
	if _, err := os.Stat(begun); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(torn); err != nil || info.Size() != int64(len(data)-5) {
		t.Errorf("the file was changed: %v, %v", info, err)
	}
}
