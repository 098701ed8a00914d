package replica_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/iapmesh/iapmesh/cluster/replica"
	"github.com/iapmesh/iapmesh/cluster/store"
)

// From a commit's acknowledgement by the engine until the replica serves it, durably: both share one disk and one machine.
func BenchmarkVisible(b *testing.B) {
	s := newStore(b)
	r, _ := open(b, config(b.TempDir(), dial(b, serve(b, replica.ServerConfig{Reader: s}))))
	i := 0
	for b.Loop() {
		b.StopTimer()
		rev := mustCommit(b, s, put("k", fmt.Sprint(i)))
		b.StartTimer()
		mustWait(b, r, rev)
		i++
	}
}

// Commits of many writers, until the replica serves the last: what arrives during a write is written together.
func BenchmarkFollow(b *testing.B) {
	s := newStore(b)
	r, _ := open(b, config(b.TempDir(), dial(b, serve(b, replica.ServerConfig{Reader: s}))))
	var mu sync.Mutex
	var last store.Revision
	b.SetParallelism(64)
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			rev := mustCommit(b, s, put("k", "v"))
			mu.Lock()
			if last.Before(rev) {
				last = rev
			}
			mu.Unlock()
		}
	})
	mustWait(b, r, last)
}
