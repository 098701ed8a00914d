package collect

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/spool"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// ShipperConfig says what is shipped and whereto.
type ShipperConfig struct {
	Spool *spool.Spool
	// Connect returns a client of an aggregator, over a connection that authenticates this node, and what releases it. It is called for each
	// new stream and may choose another aggregator each time.
	Connect    func(ctx context.Context) (client iapmeshv1.AuditIngestServiceClient, release func(), err error)
	MaxBackoff time.Duration // between attempts; 15 s if zero
	Linger     time.Duration // after the end, for what an aggregator that is connected then has not acknowledged yet; 3 s if zero
	Logger     *slog.Logger
	Now        func() time.Time
}

// Shipper sends a spool to an aggregator.
type Shipper struct {
	cfg       ShipperConfig
	connected atomic.Bool   // a stream is open
	hurry     chan struct{} // connect now
	mu        sync.Mutex
	moved     chan struct{} // closed and replaced when something was acknowledged or a stream has ended; guarded by mu
}

// NewShipper makes a shipper; Run ships.
func NewShipper(cfg ShipperConfig) *Shipper {
	if cfg.MaxBackoff == 0 {
		cfg.MaxBackoff = 15 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Linger == 0 {
		cfg.Linger = 3 * time.Second
	}
	return &Shipper{cfg: cfg, moved: make(chan struct{}), hurry: make(chan struct{}, 1)}
}

// Run ships until ctx ends, connecting anew whenever a stream breaks. What the spool holds at the end still goes to an aggregator that is
// connected then: this node may never start again.
func (s *Shipper) Run(ended context.Context) error {
	ctx, stop := context.WithCancel(context.WithoutCancel(ended))
	defer stop()
	last := context.AfterFunc(ended, func() {
		defer stop()
		within, cancel := context.WithTimeout(ctx, s.cfg.Linger)
		defer cancel()
		_ = s.drain(within, s.connected.Load) // the next start ships the rest
	})
	defer last()
	const least = 200 * time.Millisecond
	backoff := least
	acknowledged := s.cfg.Now()
	for ctx.Err() == nil {
		progress, err := s.stream(ctx, &acknowledged)
		if ctx.Err() != nil {
			break
		}
		if progress {
			backoff = least
		}
		s.cfg.Logger.Warn("audit shipping interrupted", "error", err, "retry_in", backoff.String())
		s.lag(acknowledged)
		select {
		case <-time.After(backoff/2 + rand.N(backoff)): //nolint:gosec // jitter
		case <-s.hurry:
		case <-ctx.Done():
		}
		backoff = min(2*backoff, s.cfg.MaxBackoff)
	}
	return nil
}

// Drain hurries, and waits until an aggregator has acknowledged every record that was appended before; ctx's error if that ends first.
func (s *Shipper) Drain(ctx context.Context) error {
	select {
	case s.hurry <- struct{}{}:
	default:
	}
	return s.drain(ctx, func() bool { return true })
}

// drain waits for as long as there is hope.
func (s *Shipper) drain(ctx context.Context, hope func() bool) error {
	select {
	case <-s.cfg.Spool.Hasten():
	case <-ctx.Done():
	}
	for {
		s.mu.Lock()
		moved := s.moved
		s.mu.Unlock()
		left := s.cfg.Spool.Depth()
		if left == 0 {
			return nil
		}
		if !hope() {
			return fault.New(fault.Unavailable, "audit trail: %d records are not shipped: no aggregator is connected", left)
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "audit trail: %d records are not shipped: %w", left, ctx.Err())
		}
	}
}

func (s *Shipper) move() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.moved)
	s.moved = make(chan struct{})
}

// lag reports the time since the last acknowledgement, if anything waits for one.
func (s *Shipper) lag(acknowledged time.Time) {
	if s.cfg.Spool.Depth() == 0 {
		s.cfg.Spool.SetLag(0)
		return
	}
	s.cfg.Spool.SetLag(s.cfg.Now().Sub(acknowledged))
}

// stream ships over one stream until it breaks, and reports whether anything was acknowledged.
func (s *Shipper) stream(ctx context.Context, acknowledged *time.Time) (progress bool, err error) {
	client, release, err := s.cfg.Connect(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	g, ctx := errgroup.WithContext(ctx)
	stream, err := client.Ship(ctx)
	if err != nil {
		return false, fault.FromStatus(err)
	}
	next, err := s.hello(stream)
	if err != nil {
		return false, err
	}
	s.connected.Store(true)
	defer func() {
		s.connected.Store(false)
		s.move()
	}()
	g.Go(func() error { return s.send(ctx, stream, s.cfg.Spool.Reader(next)) })
	g.Go(func() error {
		for {
			resp, err := stream.Recv()
			if err != nil {
				return fault.FromStatus(err)
			}
			if resp.GetAck() != nil {
				if err := s.acknowledge(resp.GetAck()); err != nil {
					return err
				}
				s.move()
				progress, *acknowledged = true, s.cfg.Now()
				s.lag(*acknowledged)
			}
			if f := resp.GetFork(); f != nil {
				s.cfg.Logger.Error("the aggregator has another history of this run: the data directory was restored or copied; restart begins a new run",
					"run", f.GetRun(), "seq", f.GetSeq(), "reason", f.GetMessage())
				s.cfg.Spool.Distrust()
			}
		}
	})
	err = g.Wait()
	return progress, err
}

func (s *Shipper) hello(stream iapmeshv1.AuditIngestService_ShipClient) (map[audit.Run]uint64, error) {
	hello := &iapmeshv1.ShipHello{}
	for _, run := range s.cfg.Spool.Runs() {
		hello.Runs = append(hello.Runs, run.String())
	}
	err := stream.Send(&iapmeshv1.ShipRequest{Message: &iapmeshv1.ShipRequest_Hello{Hello: hello}})
	if err != nil {
		_, err = stream.Recv() // which knows why
		return nil, fault.FromStatus(err)
	}
	first, err := stream.Recv()
	if err != nil {
		return nil, fault.FromStatus(err)
	}
	if first.GetWelcome() == nil {
		return nil, fault.New(fault.Invalid, "ship: the aggregator's first message is no welcome")
	}
	next := map[audit.Run]uint64{}
	for _, p := range first.GetWelcome().GetPositions() {
		run, err := audit.ParseRun(p.GetRun())
		if err != nil {
			return nil, err
		}
		next[run] = p.GetNextSeq()
	}
	return next, nil
}

// send sends what the reader yields. A failed Send means that Recv has the reason.
func (s *Shipper) send(ctx context.Context, stream iapmeshv1.AuditIngestService_ShipClient, r *spool.Reader) error {
	for {
		item, err := r.Next(ctx)
		if err != nil {
			return err
		}
		req := &iapmeshv1.ShipRequest{}
		if item.Checkpoint != nil {
			req.Message = &iapmeshv1.ShipRequest_Checkpoint{Checkpoint: &iapmeshv1.ShipCheckpoint{Run: item.Run.String(), Note: item.Checkpoint}}
		} else {
			req.Message = &iapmeshv1.ShipRequest_Frames{Frames: &iapmeshv1.ShipFrames{
				Run: item.Run.String(), FirstSeq: item.First, Count: uint32(item.Count), Frames: item.Frames}}
		}
		if err := stream.Send(req); err != nil {
			<-ctx.Done()
			return errors.Join(err, ctx.Err())
		}
	}
}

func (s *Shipper) acknowledge(a *iapmeshv1.ShipAck) error {
	run, err := audit.ParseRun(a.GetRun())
	if err != nil {
		return err
	}
	if len(a.GetRoot()) != len(audit.Hash{}) {
		return fault.New(fault.Invalid, "ship: acknowledged root of %d bytes", len(a.GetRoot()))
	}
	return s.cfg.Spool.Acknowledge(run, a.GetNextSeq(), audit.Hash(a.GetRoot()), a.GetNote())
}
