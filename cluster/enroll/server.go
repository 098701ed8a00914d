package enroll

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	meshpeer "github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Admit decides on an attempt: on the leader itself, or by relaying it there. It is nil on a node that is no control node.
type Admit func(ctx context.Context, attempt *iapmeshv1.RelayJoinRequest) (*iapmeshv1.JoinResponse, error)

// The bounds of the server.
const (
	joinTimeout   = 15 * time.Second
	maxInFlight   = 64
	perSource     = 2 // attempts a second, from one address
	sourceBurst   = 20
	perKey        = 5 // attempts a second, naming one key
	keyBurst      = 50
	perTeller     = 20 // calls a second, of one node that tells what it remembers
	tellerBurst   = 100
	maxKeyID      = 64   // bytes; an id has 16
	maxRemembered = 4096 // sources and keys whose rate is remembered
)

// Server serves EnrollService to joiners.
type Server struct {
	iapmeshv1.UnimplementedEnrollServiceServer
	Revoke RevokeByHolder // set before Run; nil on a node that is no control node
	// KeyOf is a provisioning key's public half, as this node's view has it: nil if it has none. Set before Run. It is for the rates alone:
	// whoever only names a key must not use up what is left for those who hold it.
	KeyOf func(id string) ed25519.PublicKey

	admit       Admit
	locate      func() []*iapmeshv1.ControlNode
	find        func(node string) *iapmeshv1.Node // nil on a node that is no control node
	logger      *slog.Logger
	slots       chan struct{}
	sources     limiter
	keys        limiter
	proved      limiter // of joins by who holds the key: apart, because a flood of joins that only name it must not keep them out
	holders     limiter // apart from keys for the same reason
	tellers     limiter // of what nodes remember, by who holds a node's key: apart from strangers, who may share its address
	attempts    *prometheus.CounterVec
	revocations *prometheus.CounterVec

	restorations *Restorations // nil: none are served
}

// NewServer makes a server; locate says where control nodes are; registerer may be nil.
func NewServer(admit Admit, locate func() []*iapmeshv1.ControlNode, logger *slog.Logger, registerer prometheus.Registerer) *Server {
	s := &Server{
		admit: admit, locate: locate, logger: logger, slots: make(chan struct{}, maxInFlight),
		sources: limiter{limit: perSource, burst: sourceBurst}, keys: limiter{limit: perKey, burst: keyBurst},
		proved: limiter{limit: perKey, burst: keyBurst}, holders: limiter{limit: perKey, burst: keyBurst},
		tellers:  limiter{limit: perTeller, burst: tellerBurst},
		attempts: newAttempts(), revocations: newRevocations(),
	}
	if registerer != nil {
		registerer.MustRegister(s.attempts, s.revocations)
	}
	return s
}

// Run serves the protocol's listener until ctx ends.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	g := grpc.NewServer(
		grpc.Creds(meshpeer.ServerCredentials()),
		grpc.MaxRecvMsgSize(keyring.MaxJoinBody+4<<10),
		grpc.MaxHeaderListSize(8<<10),
		grpc.MaxConcurrentStreams(1),
		grpc.ConnectionTimeout(joinTimeout),
		grpc.UnaryInterceptor(fault.UnaryServer),
	)
	iapmeshv1.RegisterEnrollServiceServer(g, s)
	if s.restorations != nil {
		iapmeshv1.RegisterRestorationServiceServer(g, restorationServer{Server: s})
	}
	stop := context.AfterFunc(ctx, g.Stop)
	defer stop()
	if err := g.Serve(l); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// Join implements EnrollService.
func (s *Server) Join(ctx context.Context, req *iapmeshv1.JoinRequest) (*iapmeshv1.JoinResponse, error) {
	resp, err := s.join(ctx, req)
	result := "admitted"
	if err != nil {
		result = fault.KindOf(err).String()
	}
	s.attempts.WithLabelValues(result).Inc()
	return resp, err
}

func (s *Server) join(ctx context.Context, req *iapmeshv1.JoinRequest) (*iapmeshv1.JoinResponse, error) {
	if s.admit == nil {
		return nil, fault.New(fault.Denied, "join: this node is no control node: ask it where those are (Locate)")
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	source, ekm, err := s.caller(ctx, "join")
	if err != nil {
		return nil, err
	}
	// The key's id and proof are read here for the rate limit alone; nothing is believed of them before the leader has verified the signatures.
	var body iapmeshv1.JoinBody
	if n := len(req.Body); n == 0 || n > keyring.MaxJoinBody || proto.Unmarshal(req.Body, &body) != nil || len(body.KeyId) > maxKeyID {
		return nil, fault.New(fault.Unauthenticated, "join: unauthenticated: the body is no request to join")
	}
	rates := &s.keys
	if s.proves(body.KeyId, func(key ed25519.PublicKey) error {
		return keyring.VerifyJoin(keyring.SignerProvisioning, key, ekm, req.Body, req.ProvisioningSignature)
	}) {
		rates = &s.proved
	}
	if !rates.allow(body.KeyId) {
		return nil, fault.New(fault.Unavailable, "join: too many attempts: wait a few seconds")
	}
	leave, err := s.place(ctx, "join")
	if err != nil {
		return nil, err
	}
	defer leave()
	resp, err := s.admit(ctx, &iapmeshv1.RelayJoinRequest{Join: req, ExportedKeyingMaterial: ekm[:], SourceAddress: source.String()})
	if err != nil {
		s.logger.Info("join attempt refused", "source", source.String(), "key", body.KeyId, "error", err)
	}
	return resp, err
}

// Locate implements EnrollService.
func (s *Server) Locate(ctx context.Context, _ *iapmeshv1.LocateRequest) (*iapmeshv1.LocateResponse, error) {
	if _, _, err := s.caller(ctx, "locate"); err != nil {
		return nil, err
	}
	return &iapmeshv1.LocateResponse{ControlNodes: s.locate()}, nil
}

// caller says from where the caller comes and what its connection exports, unless its source asks too often.
func (s *Server) caller(ctx context.Context, what string) (source netip.Addr, ekm [32]byte, err error) {
	if source, ekm, err = connection(ctx); err != nil {
		return source, ekm, err
	}
	if !s.sources.allow(sourceName(source)) {
		return source, ekm, fault.New(fault.Unavailable, "%s: too many attempts: wait a few seconds", what)
	}
	return source, ekm, nil
}

// proves reports whether a caller holds a key that this node knows.
func (s *Server) proves(id string, verify func(ed25519.PublicKey) error) bool {
	if s.KeyOf == nil {
		return false
	}
	key := s.KeyOf(id)
	return key != nil && verify(key) == nil
}

// place waits until there is room for one more call that is answered.
func (s *Server) place(ctx context.Context, what string) (leave func(), err error) {
	select {
	case s.slots <- struct{}{}:
		return func() { <-s.slots }, nil
	case <-ctx.Done():
		return nil, fault.New(fault.Unavailable, "%s: too many attempts in flight: try again", what)
	}
}

// sourceName is what a source's rate counts by: the IPv4 address, or the /64 of an IPv6 one, since a host owns all of it.
func sourceName(a netip.Addr) string {
	if a.Is4() {
		return a.String()
	}
	p, err := a.WithZone("").Prefix(64)
	if err != nil {
		return a.String()
	}
	return p.String()
}

// connection says from where the caller comes and what its connection exports.
func connection(ctx context.Context) (netip.Addr, [32]byte, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return netip.Addr{}, [32]byte{}, fault.New(fault.Internal, "join: a call without a connection")
	}
	info, ok := p.AuthInfo.(meshpeer.AuthInfo)
	if !ok {
		return netip.Addr{}, [32]byte{}, fault.New(fault.Internal, "join: a call that did not come through the mesh port")
	}
	addr, err := netip.ParseAddrPort(info.Conn.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}, [32]byte{}, fault.New(fault.Internal, "join: remote address: %w", err)
	}
	ekm, err := exportKeyingMaterial(info.Conn.ConnectionState())
	return addr.Addr().Unmap(), ekm, err
}

// limiter bounds the rate of each of many names. When it remembers too many it forgets them all: a flood of names then costs
// the flooder's own limit, and nobody's memory.
type limiter struct {
	limit rate.Limit
	burst int
	mu    sync.Mutex
	names map[string]*rate.Limiter // guarded by mu
}

func (l *limiter) allow(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.names == nil || len(l.names) >= maxRemembered {
		l.names = map[string]*rate.Limiter{}
	}
	r := l.names[name]
	if r == nil {
		r = rate.NewLimiter(l.limit, l.burst)
		l.names[name] = r
	}
	return r.Allow()
}
