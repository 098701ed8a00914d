package enroll_test

import (
	"context"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/cluster/enroll"
	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Strangers at its own address must not keep a node from telling what it remembers: nobody else may know of a revocation.
func TestStrangersDoNotKeepANodeFromTellingWhatItRemembers(t *testing.T) {
	t.Parallel()
	s := newStandings(t, true)
	pinned := peer.Pinned{Pin: s.secret.Pin()}
	const calls = 40 // more than strangers get at once
	tell := func(ctx context.Context, r enroll.Restored, body []byte, sign bool) error {
		req := &iapmeshv1.RememberRequest{Body: body, Signature: make([]byte, 64)}
		if sign {
			var err error
			req.Signature, err = keyring.SignRemember(s.key, r.EKM, body)
			must(t, err)
		}
		_, err := r.Client.Remember(ctx, req)
		return fault.FromStatus(err)
	}
	body, err := proto.Marshal(&iapmeshv1.RememberBody{NodeId: s.id, Epoch: 2, Last: true})
	must(t, err)
	must(t, enroll.AskRestored(soon(t), pinned, s.addr, func(ctx context.Context, r enroll.Restored) error {
		refused := 0
		for i := 0; i < calls || refused == 0 && i < 100*calls; i++ { // more, should the machine have stood still meanwhile
			if err := tell(ctx, r, body, false); fault.Is(err, fault.Unavailable) {
				refused++
			} else if !fault.Is(err, fault.Denied) {
				t.Errorf("without a signature: %v", err)
			}
		}
		if refused == 0 {
			t.Error("a stranger may ask as often as it likes")
		}
		for range calls {
			must(t, tell(ctx, r, body, true))
		}
		return nil
	}))
	if got := s.told.Load(); got != calls {
		t.Errorf("%d calls arrived, want %d", got, calls)
	}
}

// remember takes what the one node tells.
func (s *standings) remember(_ context.Context, req *iapmeshv1.RememberRequest, ekm [32]byte) (*iapmeshv1.RememberResponse, error) {
	if err := keyring.VerifyRemember(s.find(s.id).PublicKey, ekm, req.Body, req.Signature); err != nil {
		return nil, err
	}
	s.told.Add(1)
	return &iapmeshv1.RememberResponse{}, nil
}
