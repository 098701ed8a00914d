package gossip_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/cluster/gossip"
)

// BenchmarkBroadcastAcrossRegions is the time from a plain node of one region to one of another, through both control nodes,
// with the production intervals, on loopback.
func BenchmarkBroadcastAcrossRegions(b *testing.B) {
	w := newWorld(b)
	arrived := make(chan string, 16)
	production := func(wan bool) func(*gossip.Config) {
		return func(c *gossip.Config) { c.WAN, c.ProbeInterval = wan, 0 }
	}
	a1 := w.start("a1", "r1", production(true))
	a2 := w.start("a2", "r1", production(false))
	b1 := w.start("b1", "r2", production(true))
	b2 := w.start("b2", "r2", func(c *gossip.Config) {
		c.ProbeInterval = 0
		c.Receive = func(msg []byte) bool {
			arrived <- string(msg)
			return true
		}
	})
	a1.sees(b, "region/a1 alive", "region/a2 alive", "wan/a1 alive", "wan/b1 alive")
	b1.sees(b, "region/b1 alive", "region/b2 alive", "wan/a1 alive", "wan/b1 alive")
	a2.sees(b, "region/a1 alive", "region/a2 alive")
	b2.sees(b, "region/b1 alive", "region/b2 alive")
	for i := 0; b.Loop(); i++ {
		msg := fmt.Sprintf("deny %d", i)
		if err := a2.Broadcast([]byte(msg)); err != nil {
			b.Fatal(err)
		}
		timeout := time.After(10 * time.Second)
		for got := ""; got != msg; {
			select {
			case got = <-arrived:
			case <-timeout:
				b.Fatal("it never arrived")
			}
		}
	}
}
