package spool_test

import (
	"context"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/audit"
)

// neverDone is a context without end for loops that a process's death ends.
type neverDone struct{}

func (neverDone) Deadline() (time.Time, bool) { return time.Time{}, false }
func (neverDone) Done() <-chan struct{}       { return nil }
func (neverDone) Err() error                  { return nil }
func (neverDone) Value(any) any               { return nil }

// typical is a decision as the proxy writes it: 900 bytes.
func typical() audit.Record {
	return audit.Record{
		Kind: audit.KindDecision, Time: time.Now(), RequestID: "01JD6Z6J7Q8R9S0T1U2V3W4X5Y", TraceID: "4bf92f3577b34da6a3ce929d0e0e4736",
		Route: "billing", Method: "GET", Host: "billing.example.com", Path: "/api/v1/invoices/2026/11/4711", SourceIP: "203.0.113.77",
		Destination: "http://10.0.0.5:8080", Decision: audit.Allow, Policies: []string{"route.billing.allow.0"},
		Actor: audit.Actor{Subject: "okta/00u1a2b3c4d5", Email: "ana@example.com", SessionID: "s_8f4b1c2d3e4f5a6b",
			ProvisioningKey: "kzdvvj2umnduyauf", MintingProvisioningKey: "kzdvvj2umnduyauf", MintingNode: "eu-west-1", SigningKID: "eu-west-1.3"},
		Manifest: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
		Revision: audit.Revision{Epoch: 1, Index: 4711}, ViewAgeMS: 120, Node: "eu-west-1", Region: "eu-west",
	}
}

// BenchmarkAppendDurable64 is the budget "durable decisions per node, before_answer, 64 producers": each waits until its record is on disk.
// An acknowledging reader runs beside, as the shipper does, so that segments are recycled.
func BenchmarkAppendDurable64(b *testing.B) {
	const producers = 64
	cfg := config(b.TempDir())
	cfg.SegmentBytes = 64 << 20
	s, _ := running(b, cfg)
	ctx, cancel := context.WithCancel(b.Context())
	var shipper sync.WaitGroup
	shipper.Go(func() {
		r := s.Reader(nil)
		for {
			item, err := r.Next(ctx)
			if err != nil {
				return
			}
			if item.Checkpoint != nil {
				c, err := audit.OpenCheckpoint(item.Checkpoint, "n1", audit.SignWith(nodeKey()).Public())
				if err == nil {
					err = s.Acknowledge(item.Run, c.Size, c.Root, nil)
				}
				if err != nil {
					b.Error(err)
				}
			}
		}
	})
	latencies := make([][]time.Duration, producers)
	b.ReportAllocs()
	b.ResetTimer()
	start, before := time.Now(), cpu(b)
	var wg sync.WaitGroup
	for p := range producers {
		n := b.N / producers
		if p < b.N%producers {
			n++
		}
		latencies[p] = make([]time.Duration, 0, n)
		wg.Go(func() {
			rec := typical()
			for range n {
				t0 := time.Now()
				ticket, err := s.Append(&rec)
				if err == nil {
					err = ticket.Wait(ctx)
				}
				if err != nil {
					b.Error(err)
					return
				}
				latencies[p] = append(latencies[p], time.Since(t0))
			}
		})
	}
	wg.Wait()
	elapsed, spent := time.Since(start), cpu(b)-before
	b.StopTimer()
	cancel()
	shipper.Wait()
	all := slices.Sorted(slices.Values(slices.Concat(latencies...)))
	b.ReportMetric(float64(b.N)/elapsed.Seconds(), "records/s")
	b.ReportMetric(float64(spent)/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(all[len(all)*99/100])/1e6, "p99-ms")
	b.ReportMetric(float64(all[len(all)/2])/1e6, "p50-ms")
}

// cpu is what the process has used, shipper included: a busy machine does not stretch it as it does the wall's time.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkAppend is what Append itself costs a request: encoding, hashing, the place. The disk works beside.
func BenchmarkAppend(b *testing.B) {
	cfg := config(b.TempDir())
	cfg.SegmentBytes, cfg.MaxBytes = 64<<20, 4<<30
	s, _ := running(b, cfg)
	rec := typical()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		ticket, err := s.Append(&rec)
		if err != nil {
			b.Fatal(err)
		}
		if i%512 == 0 {
			b.StopTimer()
			if err := ticket.Wait(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	}
}
