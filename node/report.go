package node

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// quickBackoff: control nodes are few, and a leader that comes back must hear from everybody at once.
var quickBackoff = backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second}

// reporter tells the leader, each second and with each new view, what this node serves. The leader's answers say how old the
// view is on nodes that host the engine; a follower asks the node that it follows.
type reporter struct {
	link      *link
	source    *state.Source
	freshness *state.Freshness
	measure   bool // take the age from the leader's answers
	describe  func() *iapmeshv1.NodeReport
	logger    *slog.Logger
	dataDir   string
	now       func() time.Time
	lapsed    func() // takes that the leader calls this node lapsed

	answered atomic.Pointer[time.Time] // when the leader last answered; nil: never
}

// heard is when a leader answered last.
func (r *reporter) heard() time.Time {
	if at := r.answered.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

const (
	reportEvery    = time.Second
	saveFreshEvery = 5 // reports
	answerWithin   = 5 * time.Second
)

// Run reports until ctx ends, to one leader after another.
func (r *reporter) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := r.link.call(ctx, "report", func(ctx context.Context, c iapmeshv1.MeshServiceClient, o ...grpc.CallOption) error {
			return r.stream(ctx, c, o)
		})
		if ctx.Err() != nil {
			break
		}
		r.logger.Debug("report stream ended", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(retryEvery):
		}
	}
	return nil
}

// stream reports to one leader until the stream breaks, which it always returns as an error.
func (r *reporter) stream(ctx context.Context, c iapmeshv1.MeshServiceClient, o []grpc.CallOption) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.Report(ctx, o...)
	if err != nil {
		return err
	}
	ticker := time.NewTicker(reportEvery)
	defer ticker.Stop()
	for nonce := uint64(1); ; nonce++ {
		changed := r.source.Changed()
		asked := r.now()
		if err := s.Send(&iapmeshv1.ReportRequest{Nonce: nonce, Report: r.describe()}); err != nil {
			return finalError(s, err)
		}
		watchdog := time.AfterFunc(answerWithin, cancel)
		resp, err := s.Recv()
		watchdog.Stop()
		if err != nil {
			return err
		}
		at := time.Now()
		r.answered.Store(&at)
		if resp.GetLapsed() {
			r.lapsed()
		}
		if pong := resp.GetPong(); r.measure && !pong.GetStale() {
			r.freshness.Answered(asked, state.RevisionOf(pong.GetRevision()), time.Duration(pong.GetAgeMs())*time.Millisecond)
		}
		if nonce%saveFreshEvery == 0 {
			r.save()
		}
		select {
		case <-ctx.Done():
			return finalError(s, ctx.Err()) // gRPC writes the trailer, which says who leads, until Recv has failed
		case <-ticker.C:
		case <-changed:
		}
	}
}

func (r *reporter) save() {
	if data := r.freshness.Save(); data != nil {
		if err := writeFile(filepath.Join(r.dataDir, freshnessFile), data); err != nil {
			r.logger.Warn("age of the view not saved", "error", err)
		}
	}
}

const freshnessFile = "freshness.json"

// finalError is why a stream ended: a Send that fails says only EOF.
func finalError(s grpc.BidiStreamingClient[iapmeshv1.ReportRequest, iapmeshv1.ReportResponse], sent error) error {
	if _, err := s.Recv(); err != nil {
		return err
	}
	return fmt.Errorf("report: %w", sent)
}
