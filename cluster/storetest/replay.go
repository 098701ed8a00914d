package storetest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/cluster/store"
)

// render shows entries as key=value@revision, deletions as -key@revision.
func render(entries []store.Entry) string {
	var parts []string
	for _, e := range entries {
		if e.Deleted {
			parts = append(parts, fmt.Sprintf("-%s@%v", e.Key, e.Revision))
			continue
		}
		parts = append(parts, fmt.Sprintf("%s=%s@%v", e.Key, e.Value, e.Revision))
	}
	return strings.Join(parts, " ")
}

// watcher is a Watch in progress, on a goroutine of its own.
type watcher struct {
	changes chan store.Change
	failed  chan error // one error, or closed if the sequence ended without
}

func follow(ctx context.Context, r store.Reader, after store.Revision) *watcher {
	w := &watcher{changes: make(chan store.Change), failed: make(chan error, 1)}
	go func() {
		defer close(w.failed)
		for c, err := range r.Watch(ctx, after) {
			if err != nil {
				w.failed <- err
				return
			}
			select {
			case w.changes <- c:
			case <-ctx.Done():
				w.failed <- ctx.Err()
				return
			}
		}
	}()
	return w
}

func (w *watcher) next(t *testing.T) store.Change {
	t.Helper()
	select {
	case c := <-w.changes:
		return c
	case err := <-w.failed:
		t.Fatalf("watch ended: %v", err)
	case <-testContext(t).Done():
		t.Fatal("watch yielded nothing")
	}
	return store.Change{}
}

// end returns the error with which the watch ended, and skips changes before it.
func (w *watcher) end(t *testing.T) error {
	t.Helper()
	for {
		select {
		case <-w.changes:
		case err, ok := <-w.failed:
			if !ok {
				t.Fatal("watch ended without an error")
			}
			return err
		case <-testContext(t).Done():
			t.Fatal("watch did not end")
		}
	}
}

// replayed is the state that a consumer of Watch builds up, with the checks that every change must pass.
type replayed struct {
	at     store.Revision
	state  map[string]store.Entry
	resets int
}

func (r *replayed) apply(c store.Change) error {
	switch {
	case c.Revision.Before(r.at):
		return fmt.Errorf("change %v after %v: it goes back", c.Revision, r.at)
	case c.Revision == r.at && !c.Reset:
		return fmt.Errorf("change %v came twice", c.Revision)
	case r.state == nil && !c.Reset:
		return fmt.Errorf("change %v: the first is not a reset", c.Revision)
	}
	if c.Reset {
		r.state = map[string]store.Entry{}
		r.resets++
	}
	for i, e := range c.Entries {
		switch {
		case i > 0 && c.Entries[i-1].Key >= e.Key:
			return fmt.Errorf("change %v: %q is followed by %q", c.Revision, c.Entries[i-1].Key, e.Key)
		case c.Reset && (e.Deleted || c.Revision.Before(e.Revision)):
			return fmt.Errorf("reset %v holds %s", c.Revision, render(c.Entries[i:i+1]))
		case !c.Reset && e.Revision != c.Revision:
			return fmt.Errorf("change %v: %q was written at %v", c.Revision, e.Key, e.Revision)
		}
		if e.Deleted {
			delete(r.state, e.Key)
		} else {
			r.state[e.Key] = e
		}
	}
	r.at = c.Revision
	return nil
}

// differs says how the replayed state differs from what List returned; empty: not at all.
func (r *replayed) differs(entries []store.Entry) string {
	mine := make([]store.Entry, 0, len(r.state))
	for _, key := range slices.Sorted(maps.Keys(r.state)) {
		mine = append(mine, r.state[key])
	}
	same := slices.EqualFunc(mine, entries, func(a, b store.Entry) bool {
		return a.Key == b.Key && a.Revision == b.Revision && bytes.Equal(a.Value, b.Value)
	})
	if same {
		return ""
	}
	return fmt.Sprintf("replayed %.400q, listed %.400q", render(mine), render(entries))
}
