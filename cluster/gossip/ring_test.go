package gossip_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/cluster/gossip"
)

// watch notes whom a node takes for anything but alive, among those that are.
func (n *node) watch(t *testing.T, alive ...string) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			changed := n.Changed()
			for _, m := range n.Members() {
				if m.State != gossip.Alive && slices.Contains(alive, m.NodeID) {
					t.Errorf("%s takes %s for %s", n.id, m.NodeID, m.State)
				}
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(func() {
		stop()
		watching.Wait()
	})
}

// A node was revoked while a change of the key was under way: the ring holds three keys for a moment. At each step, with only some of
// the nodes at it, every two understand each other; at the end the revoked node's keys say nothing to anybody.
func TestMembershipHoldsWhileTheKeyIsReplacedStepByStep(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	calm := func(c *gossip.Config) { c.ProbeInterval = 2 * time.Second } // a machine that stands still for a moment kills nobody
	a, b, x := w.start("a", "r1", calm), w.start("b", "r1", calm), w.start("x", "r1", calm)
	a.sees(t, "region/a alive", "region/b alive", "region/x alive")
	b.sees(t, "region/a alive", "region/b alive", "region/x alive")
	a.watch(t, "a", "b")
	b.watch(t, "a", "b")
	sent := 0
	understand := func() {
		t.Helper()
		for _, pair := range [][2]*node{{a, b}, {b, a}} {
			sent++
			pair[0].tell(t, fmt.Sprintf("message %d", sent), pair[1])
		}
	}
	first, second, third := w.key, newKey(), newKey()
	for step, ring := range [][][]byte{
		{first, second}, {second, first}, // a change that x still hears of
		{second, first, third}, {third, second, first}, {third}, // it is revoked
	} {
		for _, n := range []*node{a, b} {
			if err := n.SetKeys(ring); err != nil {
				t.Fatal(err)
			}
			understand()
		}
		if step < 2 {
			if err := x.SetKeys(ring); err != nil {
				t.Fatal(err)
			}
			understand()
		}
	}
	heard := len(a.received())
	if err := x.Broadcast([]byte("from beyond")); err != nil {
		t.Fatal(err)
	}
	a.sees(t, "region/a alive", "region/b alive", "region/x dead")
	understand()
	for _, n := range []*node{a, b} {
		if slices.Contains(n.received()[heard:], "from beyond") {
			t.Errorf("%s has understood what the revoked node said", n.id)
		}
	}
}
