package spool_test

import (
	"context"
	"net/netip"
	"testing"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/spool"
)

func TestRefusalsAreCountedPerSource(t *testing.T) {
	t.Parallel()
	s, _ := running(t, config(t.TempDir()))
	r := spool.NewRefusals(s)
	for range 1000 {
		r.Count(netip.MustParseAddr("203.0.113.7"), "billing", "no session")
		r.Count(netip.MustParseAddr("::ffff:203.0.113.7"), "billing", "no session")
	}
	r.Count(netip.MustParseAddr("2001:db8::1"), "billing", "no session")
	r.Count(netip.MustParseAddr("2001:db8::2%eth0"), "billing", "no session")
	r.Count(netip.Addr{}, "", "no session")
	ended, end := context.WithCancel(t.Context())
	end()
	if err := r.Run(ended); err != nil { // which flushes at its end
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, rec := range read(t, s, nil, s.RunName(), 4)[s.RunName()].records[1:] {
		if rec.Kind != audit.KindRefusals || rec.Refusals.Reason != "no session" || rec.Refusals.From.After(rec.Refusals.To) {
			t.Errorf("%+v", rec)
		}
		got[rec.SourceIP] = rec.Refusals.Count
	}
	if len(got) != 3 || got["203.0.113.7"] != 2000 || got["2001:db8::/64"] != 2 || got[""] != 1 {
		t.Errorf("%v", got)
	}
}

func TestAFloodOfSourcesIsBounded(t *testing.T) {
	t.Parallel()
	s, _ := running(t, config(t.TempDir()))
	r := spool.NewRefusals(s)
	for i := range 50_000 {
		r.Count(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), "billing", "no session")
	}
	ended, end := context.WithCancel(t.Context())
	end()
	_ = r.Run(ended)
	records := read(t, s, nil, s.RunName(), 1026)[s.RunName()].records[1:]
	var total uint64
	for _, rec := range records {
		total += rec.Refusals.Count
	}
	if len(records) != 1025 || total != 50_000 {
		t.Errorf("%d records for %d refusals", len(records), total)
	}
}
