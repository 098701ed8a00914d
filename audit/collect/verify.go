package collect

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// fetchChunk bounds the frames of one message.
const fetchChunk = 256 << 10

// Fetch streams the stored trail of one node, or of all, for verification by who does not trust the aggregator.
func (a *Aggregator) Fetch(req *iapmeshv1.FetchRequest, stream iapmeshv1.AuditService_FetchServer) error {
	return fault.ToStatus(a.fetch(req.GetNode(), stream.Send))
}

func (a *Aggregator) fetch(only string, send func(*iapmeshv1.FetchResponse) error) error {
	names := []string{only}
	if only == "" {
		var err error
		if names, err = nodes(a.cfg.Dir); err != nil {
			return err
		}
	} else if err := audit.CheckName(only); err != nil {
		return err
	}
	for _, node := range names {
		runs, err := runsOf(a.cfg.Dir, node)
		if err != nil {
			return err
		}
		for _, run := range runs {
			l, err := a.log(node, run)
			if err != nil {
				return err
			}
			if err := fetchRun(l, send); err != nil {
				return err
			}
		}
	}
	return nil
}

func fetchRun(l *runLog, send func(*iapmeshv1.FetchResponse) error) error {
	c := cursor{run: l.run, segments: l.snapshot()}
	defer c.close()
	var frames []byte
	flush := func() error {
		if len(frames) == 0 {
			return nil
		}
		part := &iapmeshv1.FetchResponse{Node: l.node, Run: l.run.String(), Part: &iapmeshv1.FetchResponse_Frames{Frames: frames}}
		frames = nil
		return send(part)
	}
	for {
		f, err := c.next()
		if errors.Is(err, io.EOF) {
			return flush()
		}
		if err != nil {
			return err
		}
		if f.Kind == audit.CheckpointFrame {
			err = flush()
			if err == nil {
				err = send(&iapmeshv1.FetchResponse{Node: l.node, Run: l.run.String(),
					Part: &iapmeshv1.FetchResponse_Checkpoint{Checkpoint: append([]byte(nil), f.Body...)}})
			}
		} else if frames = audit.AppendFrame(frames, f); len(frames) >= fetchChunk {
			err = flush()
		}
		if err != nil {
			return err
		}
	}
}

// Reader is who reads a trail: audit.Verifier proves it, audit.Summarizer counts.
type Reader interface {
	Add(node string, f audit.Frame)
	Damaged(node string, run audit.Run, text string)
}

// Both reads a trail for several readers at once.
type Both []Reader

// Add implements Reader.
func (b Both) Add(node string, f audit.Frame) {
	for _, r := range b {
		r.Add(node, f)
	}
}

// Damaged implements Reader.
func (b Both) Damaged(node string, run audit.Run, text string) {
	for _, r := range b {
		r.Damaged(node, run, text)
	}
}

// VerifyFetch verifies what Fetch streams; recv is the stream's Recv. The error is the stream's: what is wrong with the trail is in the
// report.
func VerifyFetch(recv func() (*iapmeshv1.FetchResponse, error), v *audit.Verifier) (audit.Report, error) {
	if err := ReadFetch(recv, v); err != nil {
		return audit.Report{}, err
	}
	return v.Report(), nil
}

// ReadFetch reads what Fetch streams to its end.
func ReadFetch(recv func() (*iapmeshv1.FetchResponse, error), r Reader) error {
	for {
		part, err := recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fault.FromStatus(err)
		}
		if err := addPart(part, r); err != nil {
			return err
		}
	}
}

func addPart(part *iapmeshv1.FetchResponse, v Reader) error {
	run, err := audit.ParseRun(part.GetRun())
	if err != nil {
		return err
	}
	if err := audit.CheckName(part.GetNode()); err != nil {
		return err
	}
	if part.GetCheckpoint() != nil {
		v.Add(part.GetNode(), audit.Frame{Kind: audit.CheckpointFrame, Run: run, Body: part.GetCheckpoint()})
		return nil
	}
	for b := part.GetFrames(); len(b) > 0; {
		f, n, err := audit.DecodeFrame(b)
		if err == nil && (n == 0 || f.Run != run) {
			err = fault.New(fault.Invalid, "not of the run, or zeros")
		}
		if err != nil {
			v.Damaged(part.GetNode(), run, err.Error())
			return nil
		}
		v.Add(part.GetNode(), f)
		b = b[n:]
	}
	return nil
}

// VerifyStore verifies a store's directory, or a copy of it. The error says that it could not be read: what is wrong with the trail is in
// the report.
func VerifyStore(dir string, v *audit.Verifier) (audit.Report, error) {
	names, err := nodes(dir)
	if err != nil {
		return audit.Report{}, err
	}
	for _, node := range names {
		runs, err := runsOf(dir, node)
		if err != nil {
			return audit.Report{}, err
		}
		for _, run := range runs {
			if err := verifyRun(dir, node, run, v); err != nil {
				return audit.Report{}, err
			}
		}
	}
	return v.Report(), nil
}

func verifyRun(dir, node string, run audit.Run, v *audit.Verifier) error {
	paths, err := filepath.Glob(filepath.Join(dir, node, run.String(), "*.segment"))
	if err != nil {
		return err
	}
	c := cursor{run: run, damaged: func(text string) { v.Damaged(node, run, text) }}
	defer c.close()
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return fault.New(fault.Unavailable, "%w", err)
		}
		c.segments = append(c.segments, segment{path, info.Size()})
	}
	for {
		f, err := c.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		v.Add(node, f)
	}
}
