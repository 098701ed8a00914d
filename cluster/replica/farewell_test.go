package replica_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/cluster/replica"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// A node that is revoked is told so by its own record, whole commits up to that one, and gets nothing after it: otherwise it would
// go on serving by the last view that it had.
func TestARevokedNodeHearsOfItAndNothingMore(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	src := serve(t, replica.WithFarewell(replica.ServerConfig{
		Reader: s, Own: func(node string) string { return "node/" + node },
		Recheck: func(node string) error { // by the state of now, which may be ahead of what the stream has sent
			if e, err := s.Get(context.Background(), "node/"+node); err == nil && string(e.Value) == "revoked" {
				return fault.New(fault.Denied, "%s is revoked", node)
			}
			return nil
		},
		Scope: func(context.Context, string, store.Revision) (string, func(string) bool, error) {
			return "v1", func(key string) bool { return !strings.HasPrefix(key, "secret/") }, nil
		},
	}, patience))
	r, _ := open(t, config(t.TempDir(), dial(t, src)))
	mustWait(t, r, mustCommit(t, s, put("node/node-1", "active")))
	mustCommit(t, s, put("before", "1", "secret/x", "1"))
	told := mustCommit(t, s, put("node/node-1", "revoked", "key", "revoked"))
	mustCommit(t, s, put("after", "1"))
	mustWait(t, r, told)
	eventually(t, "it was cut off and tried again", func() bool { return src.streams.Load() > 2 })
	if got := dump(t, r); r.Revision() != told || !strings.Contains(got, "revoked") || !strings.Contains(got, "before") || strings.Contains(got, "secret/x") || strings.Contains(got, "after") {
		t.Errorf("it holds %s at %v, want all but secrets until %v", got, r.Revision(), told)
	}
}

// script is a source that sends what it has, the first and, once the disk is busy with that, the rest, and then turns the node away.
type script struct {
	iapmeshv1.MeshServiceClient
	grpc.ClientStream
	messages []*iapmeshv1.Change
	sent     int
	busy     chan struct{} // closes once the node's disk is
	ended    chan struct{} // closes once the node has left
}

func (s *script) Follow(ctx context.Context, _ ...grpc.CallOption) (grpc.BidiStreamingClient[iapmeshv1.FollowRequest, iapmeshv1.FollowResponse], error) {
	context.AfterFunc(ctx, func() { close(s.ended) })
	return s, nil
}

func (s *script) Send(*iapmeshv1.FollowRequest) error { return nil }

func (s *script) Recv() (*iapmeshv1.FollowResponse, error) {
	if s.sent == len(s.messages) {
		return nil, fault.New(fault.Denied, "revoked")
	}
	if s.sent > 0 {
		<-s.busy
	}
	m := s.messages[s.sent]
	s.sent++
	return &iapmeshv1.FollowResponse{Message: &iapmeshv1.FollowResponse_Change{Change: m}}, nil
}

// late is a disk that is busy until the stream has ended.
type late struct {
	seal
	src *script
}

func (l late) Seal(plaintext, context []byte) ([]byte, error) {
	close(l.src.busy)
	<-l.src.ended
	return l.seal.Seal(plaintext, context)
}

// The last that a source sends to a node that it turns away is that it is revoked: a disk that is busy at that moment does not lose it.
func TestWhatCameBeforeAStreamEndedIsApplied(t *testing.T) {
	t.Parallel()
	for range 20 { // it may be up to chance
		messages := append(replica.Parts(reset(3, "a"), "all"), replica.Parts(commit(4, "b", false), "")...)
		src := &script{messages: messages, busy: make(chan struct{}), ended: make(chan struct{})}
		left := make(chan struct{})
		dials := 0 // Run's alone
		cfg := config(t.TempDir(), dial(t))
		cfg.Seal = late{newSeal("node"), src}
		cfg.Dial = func(context.Context) (iapmeshv1.MeshServiceClient, string, error) {
			if dials++; dials == 1 {
				return src, "script", nil
			}
			if dials == 2 {
				close(left)
			}
			return nil, "", fault.New(fault.Denied, "revoked")
		}
		r, stop := open(t, cfg)
		<-left
		if got := r.Revision(); got != at(4) {
			t.Fatalf("it has %v, and was sent %v", got, at(4))
		}
		stop()
	}
}
