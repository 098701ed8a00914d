package collect

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// runLog is one run of one node: its files, and what came in and no checkpoint has proved yet.
type runLog struct {
	dir          string
	node         string
	run          audit.Run
	segmentBytes int64
	maxPending   int

	mu       sync.Mutex
	segments []segment // oldest first; the last is written to
	file     *os.File  // of the last segment
	tree     *audit.Tree
	notedAt  time.Time // when a note was last stored
	latest   []byte    // the newest note, countersigned: of tree as it is; nil: the newest stored one
	pending  []pendingFrame
	bytes    int  // of pending
	forked   bool // refused from now on
	closed   bool // nothing more is taken: the files may be somebody else's by now
}

// segment is a file and how much of it is durable.
type segment struct {
	path string
	end  int64
}

type pendingFrame struct {
	leaf audit.Hash
	raw  []byte
}

// openRun reads what is stored of a run, and cuts off what no checkpoint proves: it was never acknowledged and is sent again.
func openRun(dir, node string, run audit.Run, segmentBytes int64, maxPending int) (*runLog, error) {
	l := &runLog{dir: dir, node: node, run: run, segmentBytes: segmentBytes, maxPending: maxPending, tree: audit.NewTree()}
	if _, err := os.Stat(filepath.Join(dir, "forked")); err == nil {
		l.forked = true
	}
	segments, tree, begun, err := proved(dir, run)
	if err != nil {
		return nil, err
	}
	for _, name := range begun {
		if err := os.Remove(name); err != nil {
			return nil, err
		}
	}
	if len(segments) == 0 {
		return l, nil
	}
	last := segments[len(segments)-1]
	f, err := os.OpenFile(last.path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(last.end); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	l.file, l.tree, l.segments = f, tree, segments
	return l, nil
}

// proved finds how much of each file of a run counts, and the tree at the end. Of those that were begun not even the edge was written.
func proved(dir string, run audit.Run) (segments []segment, tree *audit.Tree, begun []string, err error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.segment")) // sorted by their first record
	if err != nil {
		return nil, nil, nil, err
	}
	var end int64
	for ; len(names) > 0 && tree == nil; names = names[:len(names)-1] {
		last := names[len(names)-1]
		if end, tree, err = scan(last, run); err != nil {
			return nil, nil, nil, err
		}
		if tree == nil {
			begun = append(begun, last)
			continue
		}
		for _, name := range names[:len(names)-1] {
			info, err := os.Stat(name)
			if err != nil {
				return nil, nil, nil, err
			}
			segments = append(segments, segment{name, info.Size()})
		}
		segments = append(segments, segment{last, end})
	}
	return segments, tree, begun, nil
}

// scan returns where the last stretch ends that a checkpoint follows, and the tree up to there.
func scan(path string, run audit.Run) (proved int64, tree *audit.Tree, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	r := audit.NewFrameReader(f)
	var growing *audit.Tree
	for {
		frame, err := r.Next()
		switch {
		case errors.Is(err, io.EOF), fault.Is(err, fault.Invalid):
			return proved, tree, nil
		case err != nil:
			return 0, nil, err
		case frame.Run != run:
			return proved, tree, nil
		}
		switch frame.Kind {
		case audit.EdgeFrame:
			if growing, err = frame.Tree(); err != nil {
				return proved, tree, nil
			}
			proved, tree = r.Offset(), growing.Clone()
		case audit.RecordFrame:
			if growing == nil || frame.Seq != growing.Size() {
				return proved, tree, nil
			}
			growing.Append(audit.LeafHash(frame.Body))
		case audit.CheckpointFrame:
			if growing == nil || frame.Seq != growing.Size() {
				return proved, tree, nil
			}
			proved, tree = r.Offset(), growing.Clone()
		}
	}
}

// restart forgets what is not proved, and returns the record that is wanted next.
func (l *runLog) restart() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending, l.bytes = nil, 0
	return l.tree.Size()
}

// errFork is what the run's node has shown twice, differently.
type errFork struct {
	seq  uint64
	text string
}

func (e *errFork) Error() string { return e.text }

// receive takes frames; they wait for a checkpoint. Records that are here already are compared.
func (l *runLog) receive(data []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return l.errClosed()
	}
	data = bytes.Clone(data)
	for len(data) > 0 {
		f, n, err := audit.DecodeFrame(data)
		if err != nil || n == 0 {
			return fault.New(fault.Invalid, "frames of run %s: %w", l.run, errors.Join(err, errIf(n == 0, "zeros among them")))
		}
		raw := data[:n:n]
		data = data[n:]
		next := l.tree.Size() + uint64(len(l.pending))
		switch {
		case f.Run != l.run:
			return fault.New(fault.Invalid, "frames of run %s: one is of run %s", l.run, f.Run)
		case f.Kind == audit.EdgeFrame:
			if err := l.jump(f, next); err != nil {
				return err
			}
		case f.Kind != audit.RecordFrame:
			return fault.New(fault.Invalid, "frames of run %s: one is no record", l.run)
		case f.Seq > next:
			return fault.New(fault.Invalid, "frames of run %s: record %d, want %d", l.run, f.Seq, next)
		case f.Seq < next:
			if err := l.compare(f); err != nil {
				return err
			}
		default:
			if l.bytes+n > l.maxPending {
				return fault.New(fault.Exhausted, "run %s: %d bytes without a checkpoint", l.run, l.bytes)
			}
			l.pending = append(l.pending, pendingFrame{audit.LeafHash(f.Body), raw})
			l.bytes += n
		}
	}
	return nil
}

func errIf(is bool, text string) error {
	if is {
		return errors.New(text)
	}
	return nil
}

// jump goes on from an edge, past records that the node says it has lost or has given to another aggregator. Verification reports them as
// missing. What is pending before them can no longer be proved, but is kept.
func (l *runLog) jump(edge audit.Frame, next uint64) error {
	tree, err := edge.Tree()
	if err != nil {
		return fault.New(fault.Invalid, "run %s: edge at %d: %w", l.run, edge.Seq, err)
	}
	if edge.Seq <= next {
		return nil // the records before it are here
	}
	if len(l.pending) > 0 {
		var raw []byte
		for _, p := range l.pending {
			raw = append(raw, p.raw...)
		}
		if err := l.append(raw, false); err != nil {
			return err
		}
	}
	l.tree, l.latest, l.pending, l.bytes = tree, nil, nil, 0
	return l.begin()
}

// compare checks a record that came again.
func (l *runLog) compare(f audit.Frame) error {
	leaf := audit.LeafHash(f.Body)
	if size := l.tree.Size(); f.Seq >= size {
		if l.pending[f.Seq-size].leaf != leaf {
			return &errFork{f.Seq, "the record came twice and differs"}
		}
		return nil
	}
	stored, err := l.stored(f.Seq)
	if err != nil {
		return err
	}
	if stored != nil && audit.LeafHash(stored) != leaf {
		return &errFork{f.Seq, "the record is stored already and differs"}
	}
	return nil
}

// stored reads a stored record; nil if it is among those that were missing.
func (l *runLog) stored(seq uint64) ([]byte, error) {
	for i := len(l.segments) - 1; i >= 0; i-- {
		if firstOf(l.segments[i].path) > seq {
			continue
		}
		c := cursor{run: l.run, segments: l.segments[i : i+1]}
		defer c.close()
		for {
			f, err := c.next()
			if errors.Is(err, io.EOF) {
				return nil, nil
			}
			if err != nil {
				return nil, err
			}
			if f.Kind == audit.RecordFrame && f.Seq == seq {
				return bytes.Clone(f.Body), nil
			}
		}
	}
	return nil, nil
}

// prove stores what a verified checkpoint covers, and returns how many records that were. countersign is called once the tree has been
// found to be the node's.
func (l *runLog) prove(c audit.Checkpoint, now time.Time, countersign func() ([]byte, error)) (records int, signed []byte, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	size := l.tree.Size()
	switch {
	case l.closed:
		return 0, nil, l.errClosed()
	case c.Size < size:
		return 0, nil, nil // older than what is stored
	case c.Size-size > uint64(len(l.pending)):
		return 0, nil, fault.New(fault.Invalid, "run %s: checkpoint at %d, have %d", l.run, c.Size, size+uint64(len(l.pending)))
	}
	n := int(c.Size - size)
	tree := l.tree.Clone()
	var raw []byte
	for _, p := range l.pending[:n] {
		tree.Append(p.leaf)
		raw = append(raw, p.raw...)
	}
	if tree.Root() != c.Root {
		return 0, nil, &errFork{c.Size, "the signed root is not that of the records"}
	}
	if signed, err = countersign(); err != nil {
		return 0, nil, err
	}
	// That a node was idle is worth a note a minute.
	if n > 0 || now.Sub(l.notedAt) >= time.Minute {
		raw = audit.AppendFrame(raw, audit.Frame{Kind: audit.CheckpointFrame, Run: l.run, Seq: c.Size, Body: signed})
		raw = audit.AppendFrame(raw, audit.EdgeOf(l.run, tree))
		if err := l.append(raw, true); err != nil {
			return 0, nil, err
		}
		l.notedAt = now
	}
	for _, p := range l.pending[:n] {
		l.bytes -= len(p.raw)
	}
	l.latest = signed
	l.tree, l.pending = tree, l.pending[n:]
	if len(l.pending) == 0 {
		l.pending = nil
	}
	return n, signed, nil
}

// append writes and syncs. If that fails the file is as long as before, for what anybody is told.
func (l *runLog) append(raw []byte, rotate bool) error {
	if l.file == nil || (rotate && l.segments[len(l.segments)-1].end+int64(len(raw)) > l.segmentBytes) {
		if err := l.begin(); err != nil {
			return err
		}
	}
	last := &l.segments[len(l.segments)-1]
	if err := writeSynced(l.file, raw, last.end); err != nil {
		// After a sync that failed, the kernel may have dropped pages: the file is not trusted before it has been read anew.
		return fault.New(fault.Unavailable, "store run %s of %s: %w", l.run, l.node, errors.Join(err, l.file.Truncate(last.end)))
	}
	last.end += int64(len(raw))
	return nil
}

// begin starts a file at the tree as it is.
func (l *runLog) begin() error {
	path := filepath.Join(l.dir, fmt.Sprintf("%020d.segment", l.tree.Size()))
	err := os.MkdirAll(l.dir, 0o700)
	if err == nil {
		err = syncDirs(filepath.Dir(filepath.Dir(l.dir)), filepath.Dir(l.dir))
	}
	if err != nil {
		return fault.New(fault.Unavailable, "store run %s of %s: %w", l.run, l.node, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fault.New(fault.Unavailable, "store run %s of %s: %w", l.run, l.node, err)
	}
	edge := audit.AppendFrame(nil, audit.EdgeOf(l.run, l.tree))
	if err := errors.Join(writeSynced(f, edge, 0), syncDirs(l.dir)); err != nil {
		return fault.New(fault.Unavailable, "store run %s of %s: %w", l.run, l.node, errors.Join(err, f.Close(), os.Remove(path)))
	}
	if l.file != nil {
		_ = l.file.Close() // its content is synced
		if l.segments[len(l.segments)-1].path == path {
			l.segments = l.segments[:len(l.segments)-1] // it held nothing but the same edge
		}
	}
	l.file = f
	l.segments = append(l.segments, segment{path, int64(len(edge))})
	return nil
}

func (l *runLog) errClosed() error {
	return fault.New(fault.Unavailable, "store run %s of %s: it was closed", l.run, l.node)
}

func (l *runLog) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

func writeSynced(f *os.File, data []byte, at int64) error {
	if _, err := f.WriteAt(data, at); err != nil {
		return err
	}
	return f.Sync()
}

func syncDirs(dirs ...string) error {
	var errs []error
	for _, dir := range dirs {
		d, err := os.Open(dir)
		if err == nil {
			err = errors.Join(d.Sync(), d.Close())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
