package collect

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Aggregator stores the trails of all nodes. It serves AuditIngestService to nodes and AuditService to administrators; who may call is
// decided before it. It runs no goroutine of its own; Close ends it.
type Aggregator struct {
	iapmeshv1.UnimplementedAuditIngestServiceServer
	iapmeshv1.UnimplementedAuditServiceServer

	cfg     Config
	metrics *metrics
	lock    *os.File

	mu         sync.Mutex
	runs       map[runKey]*runLog
	changed    chan struct{} // closed and replaced when records were stored
	remainders remainders
}

type runKey struct {
	node string
	run  audit.Run
}

// Open opens an aggregator's store, or begins one. Errors: Invalid for the configuration, Conflict if another process has it open.
func Open(cfg Config) (*Aggregator, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.fill()
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fault.New(fault.Unavailable, "open audit store: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(cfg.Dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "open audit store: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fault.New(fault.Conflict, "audit store %s is in use by another process: %w", cfg.Dir, err), lock.Close())
	}
	return &Aggregator{cfg: cfg, metrics: newMetrics(cfg.Registerer), lock: lock, runs: map[runKey]*runLog{}, changed: make(chan struct{})}, nil
}

// Close closes the files. A stream that has not ended yet is told Unavailable and writes no more: the directory may be open elsewhere by then.
func (a *Aggregator) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for _, l := range a.runs {
		errs = append(errs, l.close())
	}
	a.runs = map[runKey]*runLog{}
	if a.lock != nil {
		// In so many words: a process that is being forked at this moment holds the file open, too.
		errs = append(errs, unix.Flock(int(a.lock.Fd()), unix.LOCK_UN), a.lock.Close())
		a.lock = nil
	}
	return errors.Join(errs...)
}

// log returns the run's log, opening it first if need be.
func (a *Aggregator) log(node string, run audit.Run) (*runLog, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lock == nil {
		return nil, fault.New(fault.Unavailable, "open run %s of %s: the audit store is closed", run, node)
	}
	k := runKey{node, run}
	if l := a.runs[k]; l != nil {
		return l, nil
	}
	l, err := openRun(filepath.Join(a.cfg.Dir, node, run.String()), node, run, a.cfg.SegmentBytes, a.cfg.MaxPending)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "open run %s of %s: %w", run, node, err)
	}
	a.runs[k] = l
	return l, nil
}

// forget makes the next use read the run anew from the disk: after a write that failed, memory is not what counts.
func (a *Aggregator) forget(l *runLog) {
	_ = l.close() // first, so that nobody writes any more when it is read anew; its content is what counts
	a.mu.Lock()
	defer a.mu.Unlock()
	if k := (runKey{l.node, l.run}); a.runs[k] == l { // another stream may have had it read anew already
		delete(a.runs, k)
	}
}

// stored wakes those who follow.
func (a *Aggregator) stored(records int) {
	a.metrics.records.Add(float64(records))
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.changed)
	a.changed = make(chan struct{})
}

// nodes lists whose trails are stored, in order of name.
func nodes(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "list audit store: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && audit.CheckName(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// runsOf lists the stored runs of a node, oldest first.
func runsOf(dir, node string) ([]audit.Run, error) {
	entries, err := os.ReadDir(filepath.Join(dir, node))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.New(fault.Unavailable, "list audit store: %w", err)
	}
	var runs []audit.Run
	for _, e := range entries {
		if run, err := audit.ParseRun(e.Name()); err == nil && e.IsDir() {
			runs = append(runs, run)
		}
	}
	slices.Sort(runs)
	return runs, nil
}

// forkEvidence is the file "forked" in a run's directory.
type forkEvidence struct {
	Time time.Time `json:"time"`
	Node string    `json:"node"`
	Run  string    `json:"run"`
	Seq  uint64    `json:"seq"`
	Text string    `json:"text"`
	// Shown is what contradicts what is stored: the frames or the signed checkpoint, verbatim.
	Shown []byte `json:"shown"`
}

// alarm keeps the evidence and refuses the run from now on.
func (a *Aggregator) alarm(l *runLog, fork *errFork, shown []byte) {
	a.metrics.forks.Inc()
	a.cfg.Logger.Error("audit fork: a node shows two histories", "node", l.node, "run", l.run.String(), "seq", fork.seq, "reason", fork.text)
	l.mu.Lock()
	l.forked = true
	l.mu.Unlock()
	data, err := json.Marshal(forkEvidence{a.cfg.Now().UTC(), l.node, l.run.String(), fork.seq, fork.text, shown})
	if err == nil {
		if err = os.MkdirAll(l.dir, 0o700); err == nil {
			err = keep(filepath.Join(l.dir, "forked"), data)
		}
	}
	if err != nil {
		a.cfg.Logger.Error("keep evidence of an audit fork", "node", l.node, "run", l.run.String(), "error", err)
	}
}

// keep writes a file that is never overwritten: the first evidence counts.
func keep(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close(), syncDirs(filepath.Dir(path)))
}

func (l *runLog) String() string { return fmt.Sprintf("%s/%s", l.node, l.run) }
