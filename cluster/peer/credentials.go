package peer

import (
	"context"
	"net"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// AuthInfo is what gRPC carries about a connection of ours, on both sides.
type AuthInfo struct {
	credentials.CommonAuthInfo
	Conn *Conn // its Peer says who, its ConnectionState exports keying material
}

// AuthType implements credentials.AuthInfo.
func (AuthInfo) AuthType() string { return "iapmesh" }

func authInfo(c *Conn) AuthInfo {
	return AuthInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, Conn: c}
}

// FromContext says who calls, by the view of now: in a gRPC handler, behind ServerCredentials. Unauthenticated if the call did
// not come through the mesh port; Denied or Unauthenticated if the caller may no longer speak. A caller of a Nobody protocol is
// an Info without Node and Admin.
func FromContext(ctx context.Context) (Info, error) {
	p, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return Info{}, fault.New(fault.Unauthenticated, "the call has no peer")
	}
	info, ok := p.AuthInfo.(AuthInfo)
	if !ok {
		return Info{}, fault.New(fault.Unauthenticated, "the call did not come through the mesh port")
	}
	return info.Conn.Peer()
}

// ServerCredentials are for a grpc.Server that serves listeners of a Port, whose connections are through TLS already.
func ServerCredentials() credentials.TransportCredentials { return serverCredentials{} }

type serverCredentials struct{}

func (serverCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, err := Of(raw)
	if err != nil {
		return nil, nil, err
	}
	return c, authInfo(c), nil
}

func (serverCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, fault.New(fault.Internal, "server credentials in a client")
}

func (serverCredentials) Info() credentials.ProtocolInfo            { return protocolInfo() }
func (s serverCredentials) Clone() credentials.TransportCredentials { return s }
func (serverCredentials) OverrideServerName(string) error           { return nil }

func protocolInfo() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Credentials are for a grpc.ClientConn to the mesh port under a protocol; who must answer is as in Dial.
func (d *Dialer) Credentials(proto, node string) credentials.TransportCredentials {
	return dialCredentials{dialer: d, proto: proto, node: node}
}

// DialOptions are what a grpc.ClientConn to a mesh port needs: the credentials, and this dialer's way to the network.
// Targets are "passthrough:///host:port".
func (d *Dialer) DialOptions(proto, node string) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(d.Credentials(proto, node)),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return d.config.NetDial(ctx, "tcp", addr)
		}),
	}
}

type dialCredentials struct {
	dialer      *Dialer
	proto, node string
}

func (c dialCredentials) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, c.dialer.config.Timeout)
	defer cancel()
	conn, err := c.dialer.shake(ctx, raw, c.proto, c.node)
	if err != nil {
		return nil, nil, err
	}
	return conn, authInfo(conn), nil
}

func (dialCredentials) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, fault.New(fault.Internal, "client credentials in a server")
}

func (dialCredentials) Info() credentials.ProtocolInfo            { return protocolInfo() }
func (c dialCredentials) Clone() credentials.TransportCredentials { return c }
func (dialCredentials) OverrideServerName(string) error           { return nil }

// DialOptions make a grpc.ClientConn run over this one connection, which is never dialed anew: so that what a caller signs can
// be bound to it before the first call. The target is any "passthrough:///…".
func (c *Conn) DialOptions() []grpc.DialOption {
	var used atomic.Bool
	return []grpc.DialOption{
		grpc.WithTransportCredentials(overConn{c}),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if used.Swap(true) {
				return nil, fault.New(fault.Unavailable, "the connection to %s is over", c.RemoteAddr())
			}
			return c, nil
		}),
	}
}

type overConn struct{ conn *Conn }

func (o overConn) ClientHandshake(_ context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if raw != o.conn {
		return nil, nil, fault.New(fault.Internal, "another connection than the one dialed")
	}
	return o.conn, authInfo(o.conn), nil
}

func (overConn) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, fault.New(fault.Internal, "client credentials in a server")
}

func (overConn) Info() credentials.ProtocolInfo            { return protocolInfo() }
func (o overConn) Clone() credentials.TransportCredentials { return o }
func (overConn) OverrideServerName(string) error           { return nil }
