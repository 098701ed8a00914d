package control_test

import (
	"context"
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// server is the MeshService as a node calls it.
func (w *world) server(caller func() (string, error), round error) *control.MeshServer {
	return &control.MeshServer{
		Controller: w.Controller, Caller: func(context.Context) (string, error) { return caller() },
		QuorumRound: func(context.Context) error { return round },
	}
}

func as(j *joiner) func() (string, error) { return func() (string, error) { return j.id(), nil } }

func relay(a control.JoinAttempt) *iapmeshv1.RelayJoinRequest {
	return &iapmeshv1.RelayJoinRequest{Join: a.Request, ExportedKeyingMaterial: a.EKM[:], SourceAddress: a.Source.String()}
}

func TestOnlyControlNodesRelayJoins(t *testing.T) {
	t.Parallel()
	w := start(t)
	proxy := w.joined(w.boot, "web-1", "eu-west")
	j := newJoiner(t, w.boot, "web-2", "eu-west")
	_, err := w.server(as(proxy), nil).RelayJoin(t.Context(), relay(j.attempt()))
	wantKind(t, "by a proxy", err, fault.Denied, "no control node")
	stranger := errors.New("who are you")
	_, err = w.server(func() (string, error) { return "", stranger }, nil).RelayJoin(t.Context(), relay(j.attempt()))
	if !errors.Is(err, stranger) {
		t.Errorf("by nobody: %v", err)
	}
	for what, change := range map[string]func(*iapmeshv1.RelayJoinRequest){
		"no address":         func(r *iapmeshv1.RelayJoinRequest) { r.SourceAddress = "" },
		"short keying":       func(r *iapmeshv1.RelayJoinRequest) { r.ExportedKeyingMaterial = r.ExportedKeyingMaterial[:31] },
		"an address, a port": func(r *iapmeshv1.RelayJoinRequest) { r.SourceAddress = "192.0.2.7:1" },
	} {
		r := relay(j.attempt())
		change(r)
		_, err := w.server(as(w.founder), nil).RelayJoin(t.Context(), r)
		wantKind(t, what, err, fault.Invalid, "want a source address")
	}
	_, err = w.server(as(w.founder), nil).RelayJoin(t.Context(), &iapmeshv1.RelayJoinRequest{SourceAddress: "192.0.2.7", ExportedKeyingMaterial: make([]byte, 32)})
	wantKind(t, "no request in it", err, fault.Unauthenticated, "")
	if answer, err := w.server(as(w.founder), nil).RelayJoin(t.Context(), relay(j.attempt())); err != nil || answer.NodeId != j.id() {
		t.Errorf("by a control node: %v, %v", answer, err)
	}
}

// reports is a node's stream to the leader.
type reports struct {
	grpc.ServerStream
	ctx     context.Context
	in      []*iapmeshv1.ReportRequest
	out     []*iapmeshv1.ReportResponse
	trailer metadata.MD
}

func (r *reports) Context() context.Context  { return r.ctx }
func (r *reports) SetTrailer(md metadata.MD) { r.trailer = metadata.Join(r.trailer, md) }
func (r *reports) Send(m *iapmeshv1.ReportResponse) error {
	r.out = append(r.out, m)
	return nil
}

func (r *reports) Recv() (*iapmeshv1.ReportRequest, error) {
	if len(r.in) == 0 {
		return nil, io.EOF
	}
	m := r.in[0]
	r.in = r.in[1:]
	return m, nil
}

func TestReportsAreHeardByTheLeaderAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.eventually("a view", func() bool { return w.view() != nil })
	report := func() *reports {
		return &reports{ctx: t.Context(), in: []*iapmeshv1.ReportRequest{{Nonce: 7, Report: &iapmeshv1.NodeReport{Revision: state.RevisionProto(w.view().Revision)}}}}
	}
	s := report()
	err := control.PointStreamToLeader(nil, s, nil, func(any, grpc.ServerStream) error { return w.server(as(w.founder), nil).Report(s) })
	wantKind(t, "to a node that does not lead", err, fault.Unavailable, "n-other")
	if got := s.trailer.Get(control.LeaderTrailer); len(got) != 1 || got[0] != "n-other 127.0.0.1:2" {
		t.Errorf("trailer %v", got)
	}
	w.start()
	s = report()
	must(t, w.server(as(w.founder), nil).Report(s))
	if len(s.out) != 1 || s.out[0].Pong.Nonce != 7 || s.out[0].Pong.Stale || s.out[0].Pong.LeaderId != w.founder.id() || !w.Reports.Live(w.founder.id()) {
		t.Errorf("answers: %v", s.out)
	}
	s = report()
	must(t, w.server(as(w.founder), errors.New("no quorum")).Report(s))
	if len(s.out) != 1 || !s.out[0].Pong.Stale {
		t.Errorf("without quorum: %v, want stale", s.out)
	}
	s = &reports{ctx: t.Context(), in: []*iapmeshv1.ReportRequest{{}}}
	wantKind(t, "nothing in it", w.server(as(w.founder), nil).Report(s), fault.Invalid, "empty")

	// A node that is turned away meanwhile is heard no more.
	calls := 0
	s = report()
	s.in = append(s.in, s.in[0])
	err = w.server(func() (string, error) {
		if calls++; calls > 2 {
			return "", fault.New(fault.Denied, "revoked")
		}
		return w.founder.id(), nil
	}, nil).Report(s)
	wantKind(t, "revoked meanwhile", err, fault.Denied, "revoked")
	if len(s.out) != 1 {
		t.Errorf("%d answers", len(s.out))
	}
}

func TestAnAdministratorRenewsHisOwn(t *testing.T) {
	t.Parallel()
	w := start(t)
	key := newKey(t)
	admin, err := keyring.NewAdmin("bob", public(key), w.clock.now())
	must(t, err)
	w.write(state.PutAdmin(&admin))
	csr, err := keyring.NewCSR(key)
	must(t, err)
	_, err = w.RenewAdmin(t.Context(), "admin/ana", csr)
	wantKind(t, "another's", err, fault.Denied, "another administrator's")
	other, err := keyring.NewCSR(newKey(t))
	must(t, err)
	_, err = w.RenewAdmin(t.Context(), "admin/bob", other)
	wantKind(t, "for a new key", err, fault.NotFound, "administrator")
	w.clock.advance(keyring.AdminLife / 2)
	must(t, second(w.RenewAdmin(t.Context(), "admin/bob", csr)))
	if got := w.view().Keyring.Admins[admin.ID].ExpiresAt; !got.Equal(w.clock.now().Add(keyring.AdminLife)) {
		t.Errorf("until %v", got)
	}
	w.clock.advance(2 * keyring.AdminLife)
	_, err = w.RenewAdmin(t.Context(), "admin/bob", csr)
	wantKind(t, "once it has expired", err, fault.Denied, "expired")
}
