package replica

import (
	"time"

	"github.com/iapmesh/iapmesh/cluster/statemap"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// step is a state to publish, and the commits that lead to it from the state before; none for a reset.
type step struct {
	state   *statemap.State
	changes []store.Change
	scope   string // of a reset
}

// plan works out what updates make of now. On an error, the steps are those of the updates before it.
func plan(now *statemap.State, updates []update) ([]step, error) {
	var steps []step
	var txn *statemap.Txn // of the last step, while it is made of commits
	at := now.Revision()
	finish := func() {
		if txn != nil {
			last := &steps[len(steps)-1]
			last.state = txn.Commit(at)
			now, txn = last.state, nil
		}
	}
	for _, u := range updates {
		switch {
		case u.Revision.Before(at), !u.Reset && u.Revision == at:
			finish()
			return steps, fault.New(fault.Unavailable, "the source is behind: it sent %v, we have %v", u.Revision, at)
		case !u.Reset && u.Revision.Epoch != at.Epoch:
			finish()
			return steps, fault.New(fault.Invalid, "change %v cannot follow %v without a reset", u.Revision, at)
		case u.Reset:
			finish()
			whole := statemap.NewTxn()
			whole.Apply(u.Entries)
			now = whole.Commit(u.Revision)
			steps = append(steps, step{state: now, scope: u.scope})
		default:
			if txn == nil {
				txn = now.Edit()
				steps = append(steps, step{})
			}
			txn.Apply(u.Entries)
			last := &steps[len(steps)-1]
			last.changes = append(last.changes, u.Change)
		}
		at = u.Revision
	}
	finish()
	return steps, nil
}

// publish lets readers see the steps.
func (r *Replica) publish(steps []step) {
	for _, s := range steps {
		if s.changes == nil {
			r.scope = s.scope
		}
		r.state.Publish(s.state, s.changes)
	}
}

// retryDisk is how long a disk that refused is left alone.
const retryDisk = time.Second

// apply persists updates, then publishes them.
func (r *Replica) apply(updates []update) error {
	steps, err := plan(r.state.Current(), updates)
	if len(steps) == 0 {
		return err
	}
	r.persist(updates, steps)
	r.publish(steps)
	for _, s := range steps {
		if s.changes == nil {
			r.metrics.resets.Inc()
		}
		r.metrics.commits.Add(float64(len(s.changes)))
	}
	return err
}

// persist makes the steps durable. A reset, or too long a tail, makes a new file.
func (r *Replica) persist(updates []update, steps []step) {
	if r.cfg.Now().Before(r.retryAt) {
		return
	}
	last, scope, reset, commits := steps[len(steps)-1].state, r.scope, false, 0
	for _, s := range steps {
		if s.changes == nil {
			scope, reset = s.scope, true
		}
		commits += len(s.changes)
	}
	var err error
	if reset || r.disk.tail > r.cfg.CompactBytes || !r.disk.writable() {
		err = r.disk.rewrite(last, scope)
	} else {
		err = r.disk.append(updates[:commits])
	}
	if err != nil {
		r.metrics.diskErrors.Inc()
		r.retryAt = r.cfg.Now().Add(retryDisk)
		r.cfg.Logger.Error("replica not persisted, serving from memory", "revision", last.Revision().String(), "error", err)
	}
}

// persistAgain tries to catch up with a disk that had refused.
func (r *Replica) persistAgain() {
	now := r.state.Current()
	if r.disk.writable() || now.Revision().IsZero() || r.cfg.Now().Before(r.retryAt) {
		return
	}
	r.persist(nil, []step{{state: now, scope: r.scope}})
}
