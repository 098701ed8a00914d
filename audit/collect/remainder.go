package collect

import (
	"os"
	"path/filepath"
	"sync"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// A node that was put out may hand in what it did before it heard of that, and no more than it can have: else whoever stole it could go on
// filling this disk and this memory, where to revoke a node has to be the end of it. This is counted from the start of the process.
const (
	maxRemainder        = 1 << 30 // bytes of frames: a spool's default
	maxRemainderRuns    = 32      // that are not known yet
	maxRemainderPending = 8 << 20 // bytes of a run that wait for a checkpoint; a node signs one each second
)

// remainders counts what nodes have handed in since they were put out.
type remainders struct {
	mu    sync.Mutex
	taken map[string]*remainder // by node; guarded by mu
}

type remainder struct{ bytes, runs int }

// admit takes note of frames, nil for a checkpoint, or refuses them.
func (a *Aggregator) admit(node string, run audit.Run, frames []byte) error {
	if a.cfg.Trusted == nil {
		return nil
	}
	trusted, fresh, pending := a.cfg.Trusted(node), false, 0
	if !trusted {
		// Before the lock: the run may be waiting for the disk, and no other node is to wait with it.
		fresh, pending = a.progress(node, run)
	}
	r := &a.remainders
	r.mu.Lock()
	defer r.mu.Unlock()
	if trusted {
		delete(r.taken, node)
		return nil
	}
	if r.taken == nil {
		r.taken = map[string]*remainder{}
	}
	t := r.taken[node]
	if t == nil {
		t = &remainder{}
		r.taken[node] = t
	}
	switch {
	case t.bytes+len(frames) > maxRemainder:
		return fault.New(fault.Exhausted, "node %s was put out, and has handed in %d bytes since: no more is taken", node, t.bytes)
	case fresh && t.runs == maxRemainderRuns:
		return fault.New(fault.Exhausted, "node %s was put out, and has begun %d runs since: no more are taken", node, t.runs)
	case pending+len(frames) > maxRemainderPending:
		return fault.New(fault.Exhausted, "node %s was put out: %d bytes of its run %s wait for a checkpoint, and no more are taken before it", node, pending, run)
	}
	t.bytes += len(frames)
	if fresh {
		t.runs++
	}
	return nil
}

// progress says whether a run is one that is not known yet, and how much of it waits for a checkpoint. It may wait for the disk.
func (a *Aggregator) progress(node string, run audit.Run) (fresh bool, pending int) {
	a.mu.Lock()
	l := a.runs[runKey{node, run}]
	a.mu.Unlock()
	if l == nil {
		_, err := os.Stat(filepath.Join(a.cfg.Dir, node, run.String()))
		return err != nil, 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return false, l.bytes
}
