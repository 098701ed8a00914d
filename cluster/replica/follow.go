package replica

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 2 * time.Second
	queued     = 256 // updates received and not yet applied
)

// Run follows one source after another until ctx ends, then closes everything; it returns nil. It is called once.
func (r *Replica) Run(ctx context.Context) error {
	backoff := minBackoff
	level := slog.LevelWarn // of the first failure in a row
	for ctx.Err() == nil {
		start := time.Now()
		source, heard, err := r.followNext(ctx)
		r.metrics.connected.Set(0)
		if ctx.Err() != nil {
			break
		}
		if heard {
			r.metrics.breaks.Inc()
			level = slog.LevelWarn
			if time.Since(start) > maxBackoff/2 {
				backoff = minBackoff
			}
		}
		r.cfg.Logger.Log(ctx, level, "source left", "source", source, "revision", r.Revision().String(), "error", err)
		level = slog.LevelDebug
		select {
		case <-ctx.Done():
		case <-time.After(backoff/2 + rand.N(backoff/2)): //nolint:gosec // spreads load, keeps no secret
		}
		backoff = min(2*backoff, maxBackoff)
	}
	return r.Close()
}

func (r *Replica) followNext(ctx context.Context) (source string, heard bool, err error) {
	dialing, cancel := context.WithTimeout(ctx, r.cfg.Silence)
	defer cancel()
	client, source, err := r.cfg.Dial(dialing)
	if err != nil {
		return source, false, fmt.Errorf("dial: %w", err)
	}
	ctx, stop := context.WithCancelCause(ctx)
	s := &session{replica: r, ctx: ctx, stop: stop, updates: make(chan update, queued)}
	err = s.run(client)
	return source, s.heard, err
}

// session is a stream from one source. The receiver feeds the applier, so that what arrives while the disk is busy becomes one
// write.
type session struct {
	replica *Replica
	ctx     context.Context
	stop    context.CancelCauseFunc
	stream  grpc.BidiStreamingClient[iapmeshv1.FollowRequest, iapmeshv1.FollowResponse]
	updates chan update
	heard   bool // the receiver's, until run has ended

	mu    sync.Mutex
	nonce uint64        // of the last ping
	asked [64]time.Time // when a ping was sent, by its nonce
}

// run returns why the stream ended.
func (s *session) run(client iapmeshv1.MeshServiceClient) error {
	var wg sync.WaitGroup
	defer func() {
		s.stop(nil)
		wg.Wait()
	}()
	r := s.replica
	silence := time.AfterFunc(r.cfg.Silence, func() {
		s.stop(fault.New(fault.Unavailable, "the source said nothing for %v", r.cfg.Silence))
	})
	defer silence.Stop()
	var err error
	if s.stream, err = client.Follow(s.ctx); err != nil {
		return s.because(err)
	}
	start := &iapmeshv1.FollowStart{After: revisionProto(r.Revision()), MeshId: r.cfg.MeshID, Scope: r.scope}
	if err := s.stream.Send(&iapmeshv1.FollowRequest{Message: &iapmeshv1.FollowRequest_Start{Start: start}}); err != nil {
		_, err = s.stream.Recv() // Send says only EOF
		return s.because(err)
	}
	wg.Go(s.ping)
	wg.Go(func() { s.stop(s.receive(silence)) })
	s.stop(s.apply())
	return s.because(nil)
}

// because prefers why we ended the stream to what gRPC made of it.
func (s *session) because(err error) error {
	if cause := context.Cause(s.ctx); cause != nil {
		return cause
	}
	return fault.FromStatus(err)
}

func (s *session) ping() {
	tick := time.NewTicker(s.replica.cfg.PingEvery)
	defer tick.Stop()
	for {
		s.mu.Lock()
		s.nonce++
		nonce := s.nonce
		s.asked[nonce%uint64(len(s.asked))] = s.replica.cfg.Now()
		s.mu.Unlock()
		if err := s.stream.Send(&iapmeshv1.FollowRequest{Message: &iapmeshv1.FollowRequest_Ping{Ping: &iapmeshv1.Ping{Nonce: nonce}}}); err != nil {
			return // the receiver learns why
		}
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
	}
}

// receive reads the stream to its end. Only the wait for a message counts as silence.
func (s *session) receive(silence *time.Timer) error {
	r := s.replica
	var assemble assembler
	unanswered := time.AfterFunc(5*r.cfg.Silence, func() { s.stop(fault.New(fault.Unavailable, "the source answers no pings")) })
	defer unanswered.Stop()
	var behindSince time.Time
	for {
		silence.Reset(r.cfg.Silence)
		m, err := s.stream.Recv()
		silence.Stop()
		if err != nil {
			return fault.FromStatus(err)
		}
		if !s.heard {
			s.heard = true
			r.metrics.connected.Set(1)
		}
		switch m := m.GetMessage().(type) {
		case *iapmeshv1.FollowResponse_Change:
			u, whole, err := assemble.add(m.Change)
			if err != nil {
				return err
			}
			if whole {
				select {
				case s.updates <- u:
				case <-s.ctx.Done():
					return s.ctx.Err()
				}
			}
		case *iapmeshv1.FollowResponse_Pong:
			unanswered.Reset(5 * r.cfg.Silence)
			s.answered(m.Pong)
			// A source may be behind for a moment, by the time that a commit takes to it; not for long.
			if at := revisionOf(m.Pong.GetRevision()); !at.Before(r.Revision()) {
				behindSince = time.Time{}
			} else if behindSince.IsZero() {
				behindSince = time.Now()
			} else if time.Since(behindSince) >= r.cfg.Silence {
				return fault.New(fault.Unavailable, "the source is behind: it has %v, we have %v", at, r.Revision())
			}
		}
	}
}

func (s *session) answered(p *iapmeshv1.Pong) {
	r := s.replica
	if p.GetLeaderId() != "" {
		r.leader.Store(&leader{p.GetLeaderId(), p.GetLeaderAddress()})
	}
	s.mu.Lock()
	n := uint64(len(s.asked))
	known := p.GetNonce() != 0 && p.GetNonce() <= s.nonce && p.GetNonce()+n > s.nonce
	asked := s.asked[p.GetNonce()%n]
	s.mu.Unlock()
	if known && !p.GetStale() && p.GetAgeMs() < 1<<40 {
		r.cfg.OnPong(asked, revisionOf(p.GetRevision()), time.Duration(p.GetAgeMs())*time.Millisecond)
	}
}

// apply applies what the receiver queued, as much at once as is there.
func (s *session) apply() error {
	retry := time.NewTicker(retryDisk)
	defer retry.Stop()
	for {
		select {
		case u := <-s.updates:
			if err := s.replica.apply(s.batch(u)); err != nil {
				return err
			}
		case <-retry.C:
			s.replica.persistAgain()
		case <-s.ctx.Done():
			// What came before the end counts: it may be that this node is revoked, which no source tells it again.
			select {
			case u := <-s.updates:
				if err := s.replica.apply(s.batch(u)); err != nil {
					return err
				}
			default:
				return nil
			}
		}
	}
}

func (s *session) batch(first update) []update {
	batch, size := []update{first}, sizeOf(first)
	for size < batchBytes {
		select {
		case u := <-s.updates:
			batch = append(batch, u)
			size += sizeOf(u)
		default:
			return batch
		}
	}
	return batch
}

func sizeOf(u update) int {
	n := 64
	for _, e := range u.Entries {
		n += len(e.Key) + len(e.Value) + 64
	}
	return n
}
