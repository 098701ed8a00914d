package gossip

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	keepGone   = time.Hour // how long the dead and departed are listed
	maxMembers = 4096      // listed, both pools together
)

// members is what the pools' events add up to. memberlist's own list names the living only, and shares memory that it changes.
type members struct {
	metrics *metrics

	mu    sync.Mutex
	byKey map[memberKey]*record
	next  chan struct{} // closes with the next change
}

type memberKey struct{ pool, node string }

type record struct {
	Member
	goodbye bool      // it announced that it leaves
	gone    time.Time // when it died or left
}

func newMembers(m *metrics) *members {
	return &members{metrics: m, byKey: make(map[memberKey]*record), next: make(chan struct{})}
}

// seen notes a member that is alive.
func (ms *members) seen(m Member) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	ms.prune()
	key := memberKey{m.Pool, m.NodeID}
	if ms.byKey[key] == nil && len(ms.byKey) >= maxMembers {
		return
	}
	m.State = Alive
	ms.byKey[key] = &record{Member: m}
	ms.notify()
}

// lost notes that a member is dead or has left.
func (ms *members) lost(pool, node string) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	r := ms.byKey[memberKey{pool, node}]
	if r == nil {
		return
	}
	r.State, r.gone = Dead, time.Now()
	if r.goodbye {
		r.State = Left
	}
	ms.notify()
}

// leaving notes a member's good-bye, which may come before or after memberlist's own.
func (ms *members) leaving(node string) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, pool := range []string{PoolRegion, PoolWAN} {
		r := ms.byKey[memberKey{pool, node}]
		if r == nil {
			continue
		}
		r.goodbye = true
		if r.State == Dead {
			r.State = Left
			ms.notify()
		}
	}
}

func (ms *members) list() []Member {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	ms.prune()
	out := make([]Member, 0, len(ms.byKey))
	for _, r := range ms.byKey {
		m := r.Member
		m.Roles = slices.Clone(m.Roles)
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.NodeID, b.NodeID))
	})
	return out
}

// get is what a member says of itself.
func (ms *members) get(pool, node string) (Self, bool) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	r := ms.byKey[memberKey{pool, node}]
	if r == nil {
		return Self{}, false
	}
	return r.Self, true
}

// alive are a pool's living members: gossip address → node id.
func (ms *members) alive(pool string) map[string]string {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	out := make(map[string]string)
	for key, r := range ms.byKey {
		if key.pool == pool && r.State == Alive {
			out[r.Addr.String()] = key.node
		}
	}
	return out
}

func (ms *members) changed() <-chan struct{} {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	return ms.next
}

func (ms *members) prune() {
	maps.DeleteFunc(ms.byKey, func(_ memberKey, r *record) bool {
		return r.State != Alive && time.Since(r.gone) > keepGone
	})
}

func (ms *members) notify() {
	close(ms.next)
	ms.next = make(chan struct{})
	counts := make(map[[2]string]int)
	for key, r := range ms.byKey {
		counts[[2]string{key.pool, string(r.State)}]++
	}
	for _, pool := range []string{PoolRegion, PoolWAN} {
		for _, state := range []State{Alive, Dead, Left} {
			ms.metrics.members.WithLabelValues(pool, string(state)).Set(float64(counts[[2]string{pool, string(state)}]))
		}
	}
}
