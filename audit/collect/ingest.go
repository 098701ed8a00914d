package collect

import (
	"errors"
	"io"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// maxRuns bounds how many runs a hello may name.
const maxRuns = 10_000

// Ship takes a node's trail: hello and welcome, then frames and checkpoints; each checkpoint that has been verified and stored is
// acknowledged. It ends with an error of kind Invalid if the node does not follow the protocol, Denied if a signature is wrong,
// Unavailable if the store cannot write.
func (a *Aggregator) Ship(stream iapmeshv1.AuditIngestService_ShipServer) error {
	err := a.ship(stream)
	if err != nil && !errors.Is(err, io.EOF) {
		a.metrics.refused.Inc()
		return fault.ToStatus(err)
	}
	return nil
}

func (a *Aggregator) ship(stream iapmeshv1.AuditIngestService_ShipServer) error {
	node, err := a.cfg.Peer(stream.Context())
	if err != nil {
		return err
	}
	if err := audit.CheckName(node); err != nil {
		return err
	}
	a.metrics.streams.Inc()
	defer a.metrics.streams.Dec()
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if err := a.welcome(stream, node, first.GetHello()); err != nil {
		return err
	}
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		answer, err := a.take(node, req)
		if err != nil {
			return err
		}
		if answer != nil {
			if err := stream.Send(answer); err != nil {
				return err
			}
		}
	}
}

func (a *Aggregator) welcome(stream iapmeshv1.AuditIngestService_ShipServer, node string, hello *iapmeshv1.ShipHello) error {
	if hello == nil || len(hello.Runs) > maxRuns {
		return fault.New(fault.Invalid, "ship: a stream begins with hello, which names at most %d runs", maxRuns)
	}
	stored, err := runsOf(a.cfg.Dir, node)
	if err != nil {
		return err
	}
	have := map[audit.Run]bool{}
	for _, run := range stored {
		have[run] = true
	}
	welcome := &iapmeshv1.ShipWelcome{}
	for _, name := range hello.Runs {
		run, err := audit.ParseRun(name)
		if err != nil {
			return err
		}
		if !have[run] {
			continue
		}
		l, err := a.log(node, run)
		if err != nil {
			return err
		}
		welcome.Positions = append(welcome.Positions, &iapmeshv1.RunPosition{Run: name, NextSeq: l.restart()})
	}
	return stream.Send(&iapmeshv1.ShipResponse{Message: &iapmeshv1.ShipResponse_Welcome{Welcome: welcome}})
}

// take takes one message; the answer is nil if there is none.
func (a *Aggregator) take(node string, req *iapmeshv1.ShipRequest) (*iapmeshv1.ShipResponse, error) {
	var name string
	var shown []byte
	switch m := req.GetMessage().(type) {
	case *iapmeshv1.ShipRequest_Frames:
		name, shown = m.Frames.GetRun(), m.Frames.GetFrames()
	case *iapmeshv1.ShipRequest_Checkpoint:
		name, shown = m.Checkpoint.GetRun(), m.Checkpoint.GetNote()
	default:
		return nil, fault.New(fault.Invalid, "ship: neither frames nor a checkpoint")
	}
	run, err := audit.ParseRun(name)
	if err != nil {
		return nil, err
	}
	if err := a.admit(node, run, req.GetFrames().GetFrames()); err != nil {
		return nil, err
	}
	l, err := a.log(node, run)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	forked := l.forked
	l.mu.Unlock()
	var answer *iapmeshv1.ShipResponse
	fork := &errFork{text: "the run has forked before"}
	if !forked {
		if req.GetFrames() != nil {
			err = l.receive(shown)
		} else {
			answer, err = a.prove(l, shown)
		}
		if err == nil {
			return answer, nil
		}
		if fault.Is(err, fault.Unavailable) {
			a.forget(l)
		}
		if !errors.As(err, &fork) {
			return nil, err
		}
		a.alarm(l, fork, shown)
	} else if req.GetFrames() != nil {
		return nil, nil // it is told with each checkpoint
	}
	return &iapmeshv1.ShipResponse{Message: &iapmeshv1.ShipResponse_Fork{
		Fork: &iapmeshv1.ForkAlarm{Run: name, Seq: fork.seq, Message: fork.text}}}, nil
}

// prove verifies a checkpoint, stores what it covers and acknowledges.
func (a *Aggregator) prove(l *runLog, signed []byte) (*iapmeshv1.ShipResponse, error) {
	key, err := a.cfg.NodeKey(l.node)
	if err != nil {
		return nil, err
	}
	c, err := audit.OpenCheckpoint(signed, l.node, key)
	if err != nil {
		return nil, err
	}
	if c.Run != l.run || c.Mesh != a.cfg.Mesh {
		return nil, fault.New(fault.Invalid, "ship: checkpoint of run %s of mesh %s, not %s of %s", c.Run, c.Mesh, l.run, a.cfg.Mesh)
	}
	now := a.cfg.Now()
	n, countersigned, err := l.prove(c, now, func() ([]byte, error) {
		return audit.Countersign(signed, a.cfg.Node, a.cfg.Signer, now)
	})
	if err != nil || countersigned == nil {
		return nil, err
	}
	if n > 0 {
		a.stored(n)
	}
	return &iapmeshv1.ShipResponse{Message: &iapmeshv1.ShipResponse_Ack{Ack: &iapmeshv1.ShipAck{
		Run: l.run.String(), NextSeq: c.Size, Root: c.Root[:], Note: countersigned}}}, nil
}
