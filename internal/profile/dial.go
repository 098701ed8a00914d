package profile

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/iapmesh/iapmesh/cluster/peer"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// LeaderTrailer names the gRPC trailer by which a node that does not lead says who does: "<node id> <mesh address>".
const LeaderTrailer = "iapmesh-leader"

const (
	maxMessage     = 64 << 20 // a whole configuration with its manifest
	connectTimeout = 3 * time.Second
	retryEvery     = 200 * time.Millisecond
)

// Func is one call, unary or a stream that it reads to its end. It may be called again, on another node, after it returned an
// error of code Unavailable; opts go into the call.
type Func func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) error

// Client calls the mesh of a profile. Its methods may be called concurrently.
type Client struct {
	// Patience is how long Call looks for a node that answers; a stream that breaks off starts it anew. The context's deadline
	// holds, too. Default 10 s.
	Patience time.Duration
	// Waiting, if set, is told what the last node said before Call tries again.
	Waiting func(error)

	profile *Profile
	creds   credentials.TransportCredentials
	heard   atomic.Int64 // when a stream last brought something, in nanoseconds

	mu     sync.Mutex
	conns  map[string]*grpc.ClientConn
	leader string // address, as last heard
}

// Dial prepares a client; it connects with the first call. A profile whose certificate has expired is Unauthenticated.
func (p *Profile) Dial() (*Client, error) {
	cert, err := p.Credential()
	if err != nil {
		return nil, err
	}
	clock := p.Clock
	if clock == nil {
		clock = time.Now
	}
	if leaf := cert.Leaf; leaf != nil && clock().After(leaf.NotAfter) {
		return nil, fault.New(fault.Unauthenticated, "the certificate of administrator %s expired at %s", p.Name, leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	roots, err := p.RootPool()
	if err != nil {
		return nil, err
	}
	if len(p.ControlNodes) == 0 {
		return nil, fault.New(fault.Invalid, "profile of %s: control_nodes: names none", p.Name)
	}
	config := peer.Bundle{Roots: roots, TrustDomain: p.TrustDomain, AnyNode: true, Clock: clock}.ClientTLS(cert)
	config.NextProtos = []string{peer.ProtoAdmin}
	return &Client{profile: p, creds: credentials.NewTLS(distrust(config)), conns: map[string]*grpc.ClientConn{}}, nil
}

// distrustError is a server's that cannot prove to be of this mesh. gRPC passes it on as text alone, so its text tells.
const distrustError = "the node is not of this profile's mesh"

func distrust(c *tls.Config) *tls.Config {
	verify := c.VerifyConnection
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verify(cs); err != nil {
			return errors.New(distrustError + ": " + err.Error())
		}
		return nil
	}
	return c
}

// Close ends all connections.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for address, conn := range c.conns {
		errs = append(errs, conn.Close())
		delete(c.conns, address)
	}
	return errors.Join(errs...)
}

// Call makes one call of the leader: it follows whom others name, and tries every control node of the profile, until one gives an
// answer that is not Unavailable. The error carries a kind.
func (c *Client) Call(ctx context.Context, f Func) error {
	patience := c.Patience
	if patience <= 0 {
		patience = 10 * time.Second
	}
	started := time.Now()
	var last error // what the last node said that was asked
	for {
		follow, distrusted := 0, 0
		queue := c.candidates()
		asked := len(queue)
		for i := 0; i < len(queue); i++ {
			leader, err := c.try(ctx, queue[i], f)
			if err == nil {
				c.lead(queue[i])
			}
			if err == nil || !fault.Is(err, fault.Unavailable) {
				return err
			}
			if ctx.Err() != nil && last != nil {
				return last // it says more than that time ran out
			}
			if strings.Contains(err.Error(), distrustError) {
				distrusted++
			}
			last = fault.New(fault.Unavailable, "%s: %w", queue[i], err)
			// Whom a node names is asked next, but not for ever: two may name each other while the lead moves.
			if follow < 5 && leader != "" && leader != queue[i] {
				follow++
				queue = slices.Insert(queue, i+1, leader)
				asked++
			}
		}
		if distrusted == asked {
			return fault.Wrap(fault.Unauthenticated, last) // that does not pass with time
		}
		if heard := time.Unix(0, c.heard.Load()); heard.After(started) {
			started = heard
		}
		if time.Since(started) > patience {
			return last
		}
		if c.Waiting != nil {
			c.Waiting(last)
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(retryEvery):
		}
	}
}

// CallNode makes one call of the node at a mesh address, once.
func (c *Client) CallNode(ctx context.Context, address string, f Func) error {
	_, err := c.try(ctx, address, f)
	return err
}

func (c *Client) candidates() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	if c.leader != "" {
		out = append(out, c.leader)
	}
	for _, address := range c.profile.ControlNodes {
		if !slices.Contains(out, address) {
			out = append(out, address)
		}
	}
	return out
}

// try makes the call once and returns whom the node named as the leader.
func (c *Client) try(ctx context.Context, address string, f Func) (leader string, err error) {
	conn, err := c.conn(address)
	if err != nil {
		return "", err
	}
	var trailer metadata.MD
	if err = f(ctx, conn, grpc.Trailer(&trailer)); err == nil {
		return "", nil
	}
	for _, v := range trailer.Get(LeaderTrailer) {
		_, leader, _ = strings.Cut(v, " ")
	}
	if s, ok := status.FromError(err); ok && ctx.Err() != nil && (s.Code() == codes.DeadlineExceeded || s.Code() == codes.Canceled) {
		return leader, fault.New(fault.Unavailable, "%s: no answer in time", address)
	}
	err = fault.FromStatus(err)
	return leader, fault.New(fault.KindOf(err), "%w", plainError{err})
}

// plainError is an error of gRPC's transport without what gRPC puts around it.
type plainError struct{ err error }

func (e plainError) Unwrap() error { return e.err }

func (e plainError) Error() string {
	text := e.err.Error()
	quoted, ok := strings.CutPrefix(text, "connection error: desc = ")
	if inner, err := strconv.Unquote(quoted); ok && err == nil {
		text = inner
	}
	for _, around := range []string{"transport: Error while dialing: ", "transport: authentication handshake failed: ", "tls: "} {
		text = strings.TrimPrefix(text, around)
	}
	return text
}

func (c *Client) lead(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leader = address
}

func (c *Client) conn(address string) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn := c.conns[address]; conn != nil {
		return conn, nil
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(c.creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, MaxDelay: time.Second},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 15 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithStreamInterceptor(c.listen),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, fault.New(fault.Invalid, "dial %s: %w", address, err)
	}
	c.conns[address] = conn
	return conn, nil
}

// listen notes when a stream brings something, so that one that breaks off later is begun anew.
func (c *Client) listen(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := streamer(ctx, desc, conn, method, opts...)
	if err != nil {
		return nil, err
	}
	return &heardStream{ClientStream: s, heard: &c.heard}, nil
}

type heardStream struct {
	grpc.ClientStream
	heard *atomic.Int64
}

func (s *heardStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil {
		s.heard.Store(time.Now().UnixNano())
	}
	return err
}
