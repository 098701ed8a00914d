package state

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/revision"
	"github.com/iapmesh/iapmesh/keyring"
)

// watcher is what a Source needs of the store.
type watcher interface {
	Watch(ctx context.Context, after store.Revision) iter.Seq2[store.Change, error]
}

// Source follows a store and publishes a View for each change. Run must run; Load, Wait and Changed are for everybody.
type Source struct {
	store   watcher
	logger  *slog.Logger
	onView  []func(*View)
	view    atomic.Pointer[View]
	served  atomic.Pointer[revision.Revision]
	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each view; guarded by mu
	problem atomic.Pointer[string]

	publishing sync.Mutex           // held while a view is published
	followed   *View                // the newest, as the store has it; guarded by publishing
	announced  *keyring.Restoration // of a later epoch than the views that are followed; guarded by publishing
	told       *Standing            // what became of this node, which follows nobody; guarded by publishing
}

// Standing is what became of a node.
type Standing struct {
	Node   string // its id
	State  keyring.NodeState
	Reason string
	Since  time.Time
	Epoch  uint64 // that the node followed when it was told: a state that was restored since counts for itself. 0: that of the first view
}

// NewSource makes a Source. onView are called in order, one at a time, with each view just after Load returns it.
func NewSource(s watcher, logger *slog.Logger, onView ...func(*View)) *Source {
	return &Source{store: s, logger: logger, onView: onView, changed: make(chan struct{})}
}

// Load returns the newest view; nil before the first.
func (s *Source) Load() *View { return s.view.Load() }

// Revision is the newest view's; zero before the first.
func (s *Source) Revision() revision.Revision {
	if v := s.Load(); v != nil {
		return v.Revision
	}
	return revision.Revision{}
}

// Served is the revision by which this node decides everything, what is open included: onView has returned for it. It is what a
// node acknowledges.
func (s *Source) Served() revision.Revision {
	if r := s.served.Load(); r != nil {
		return *r
	}
	return revision.Revision{}
}

// Changed returns a channel that closes when the next view is served. Take it before Load.
func (s *Source) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Wait returns the first view for which ok holds.
func (s *Source) Wait(ctx context.Context, ok func(*View) bool) (*View, error) {
	for {
		changed := s.Changed()
		if v := s.Load(); v != nil && ok(v) {
			return v, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for a view: %w", context.Cause(ctx))
		}
	}
}

// WaitRevision returns a view that includes at.
func (s *Source) WaitRevision(ctx context.Context, at revision.Revision) (*View, error) {
	return s.Wait(ctx, func(v *View) bool { return !v.Revision.Before(at) })
}

// Problem says why the newest manifest is not in force; empty while it is.
func (s *Source) Problem() string {
	if p := s.problem.Load(); p != nil {
		return *p
	}
	return ""
}

// Run follows the store until ctx ends or the store closes.
func (s *Source) Run(ctx context.Context) error {
	var b builder
	for change, err := range s.store.Watch(ctx, store.Revision{}) {
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("follow the state: %w", err)
		}
		v, configErr := b.apply(change)
		for _, err := range b.takeProblems() {
			s.logger.Error("record not understood", "revision", change.Revision.String(), "error", err)
		}
		if v.Keyring.Mesh.ID == "" {
			continue // an engine that has just been opened and follows nobody yet: no view is not an empty mesh
		}
		s.report(configErr, change)
		s.publish(v)
	}
	return nil
}

func (s *Source) report(err error, c store.Change) {
	if err == nil {
		s.problem.Store(nil)
		return
	}
	text := err.Error()
	if old := s.problem.Swap(&text); old == nil || *old != text {
		s.logger.Error("configuration not in force", "revision", c.Revision.String(), "error", err)
	}
}

// Announce takes a restoration that was proved to this node before it could follow it: until a view of its epoch comes, every view is
// shut by it, the present one at once.
func (s *Source) Announce(r *keyring.Restoration) {
	s.publishing.Lock()
	defer s.publishing.Unlock()
	if s.announced != nil && s.announced.Statement.NewEpoch >= r.Statement.NewEpoch {
		return
	}
	s.announced = r
	if v := s.followed; v != nil && v.Revision.Epoch < r.Statement.NewEpoch {
		s.show()
	}
}

// Tell takes that this node was put out from a control node which says so, where it can follow nobody and so cannot read it in its record.
// The present view shows it at once, and every later one until the record that is followed is as new, or Untell. That the node was not put
// out is not taken from anybody: a control node may be behind.
func (s *Source) Tell(st Standing) {
	s.publishing.Lock()
	defer s.publishing.Unlock()
	if !st.PutOut() || (s.told != nil && !st.Since.After(s.told.Since)) {
		return
	}
	if s.followed == nil {
		s.told = &st
		return
	}
	if st.Epoch == 0 {
		st.Epoch = s.followed.Revision.Epoch
	}
	if st.overtakes(s.followed) {
		s.told = &st
		s.show()
	}
}

// Untell forgets what was told: a leader trusts this node, so that it was taken back, or was a lie.
func (s *Source) Untell() {
	s.publishing.Lock()
	defer s.publishing.Unlock()
	t := s.told
	if s.told = nil; t != nil && s.followed != nil && t.overtakes(s.followed) {
		s.show()
	}
}

func (s *Standing) overtakes(v *View) bool {
	n := v.Keyring.Nodes[s.Node]
	return n != nil && n.StateSince.Before(s.Since) && s.Epoch == v.Revision.Epoch
}

// PutOut reports whether the mesh trusts the node no more.
func (s Standing) PutOut() bool { return !(&keyring.Node{State: s.State}).Trusted() }

func (s *Source) publish(v *View) {
	s.publishing.Lock()
	defer s.publishing.Unlock()
	if s.told != nil && s.told.Epoch == 0 {
		s.told.Epoch = v.Revision.Epoch
	}
	s.followed = v
	s.show()
}

// show publishes the view that is followed, with what this node knows better; publishing is held.
func (s *Source) show() {
	v := s.followed
	if r := s.announced; r != nil && v.Revision.Epoch < r.Statement.NewEpoch {
		v = v.amended(func(c *keyring.Contents) { c.Restoration = r })
	}
	if t := s.told; t != nil && t.overtakes(v) {
		v = v.amended(func(c *keyring.Contents) {
			n := *c.Nodes[t.Node]
			n.State, n.Reason, n.StateSince = t.State, t.Reason, t.Since
			c.Nodes = maps.Clone(c.Nodes)
			c.Nodes[n.ID] = &n
		})
	}
	s.view.Store(v)
	for _, f := range s.onView {
		f(v)
	}
	s.served.Store(&v.Revision)
	s.mu.Lock()
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
}

// amended is the view with contents that this node knows better.
func (v *View) amended(change func(*keyring.Contents)) *View {
	contents := v.Keyring.Contents
	change(&contents)
	return &View{Revision: v.Revision, Keyring: keyring.NewSnapshot(v.Revision, contents), Config: v.Config, ManifestRevision: v.ManifestRevision}
}
