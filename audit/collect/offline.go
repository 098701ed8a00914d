package collect

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// ReadStore yields the records of a store that no process has open, as Aggregator.Records would, and changes nothing: what no checkpoint
// proves stays where it is, and is left out. Errors: Conflict if an aggregator has it open, Unavailable if it cannot be read.
func ReadStore(ctx context.Context, dir string, f Filter) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		unlock, err := lockClosed(dir)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		defer unlock()
		q := &query{filter: f, needles: f.needles(), trails: map[string]*trail{}}
		defer q.close()
		if err := q.stored(dir); err != nil {
			yield(Entry{}, err)
			return
		}
		q.pass(ctx, f.Newest && f.Limit > 0, yield)
	}
}

// lockClosed keeps aggregators out of a store while it is read. One that was never opened has no lock.
func lockClosed(dir string) (unlock func(), err error) {
	lock, err := os.Open(filepath.Join(dir, ".lock"))
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, fault.New(fault.Unavailable, "read audit store: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fault.New(fault.Conflict, "audit store %s is in use by another process: %w", dir, err), lock.Close())
	}
	return func() { _, _ = unix.Flock(int(lock.Fd()), unix.LOCK_UN), lock.Close() }, nil // it was only read
}

// stored finds what is stored of all nodes.
func (q *query) stored(dir string) error {
	names, err := nodes(dir)
	if err != nil {
		return err
	}
	for _, node := range names {
		if q.filter.Node != "" && node != q.filter.Node {
			continue
		}
		runs, err := runsOf(dir, node)
		if err != nil {
			return err
		}
		t := &trail{node: node}
		for _, run := range runs {
			segments, _, _, err := proved(filepath.Join(dir, node, run.String()), run)
			if err != nil {
				return fault.New(fault.Unavailable, "read run %s of %s: %w", run, node, err)
			}
			t.cursors = append(t.cursors, &cursor{run: run, segments: segments})
		}
		q.trails[node] = t
	}
	return nil
}
