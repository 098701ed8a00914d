package gossip

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/iapmesh/iapmesh/internal/fault"
)

const (
	labelTimeout        = 5 * time.Second // to say which pool a stream is for
	maxStreams          = 256             // inbound, open at once
	maxStreamsPerSource = 64              // from one address
)

// socket is the one TCP and UDP port of both pools. It reads the label in front of each packet and stream, in clear but
// authenticated by the encryption behind it, and passes on only what is for a pool of ours.
type socket struct {
	listener  net.Listener
	packets   net.PacketConn
	dial      func(ctx context.Context, network, addr string) (net.Conn, error)
	advertise string
	metrics   *metrics
	pools     map[string]*transport // by label; fixed before accept and receive

	mu       sync.Mutex
	closed   bool
	streams  map[net.Conn]struct{}
	bySource map[netip.Addr]int
}

func newSocket(c Config, m *metrics) *socket {
	return &socket{
		listener: c.Listener, packets: c.PacketConn, dial: c.NetDial, advertise: c.Advertise, metrics: m,
		pools: make(map[string]*transport), streams: make(map[net.Conn]struct{}), bySource: make(map[netip.Addr]int),
	}
}

func (s *socket) transport(label string) *transport {
	t := &transport{
		socket: s, packets: make(chan *memberlist.Packet, 256), streams: make(chan net.Conn), done: make(chan struct{}),
	}
	t.stop = sync.OnceFunc(func() { close(t.done) })
	s.pools[label] = t
	return t
}

// close ends both loops and every stream.
func (s *socket) close() {
	_ = s.listener.Close()
	_ = s.packets.Close()
	s.mu.Lock()
	s.closed = true
	open := make([]net.Conn, 0, len(s.streams))
	for c := range s.streams {
		open = append(open, c)
	}
	s.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
}

// accept passes streams on until the socket is closed.
func (s *socket) accept() {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		raw, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, most likely: wait for some to be freed
			<-time.After(100 * time.Millisecond)
			continue
		}
		c, ok := s.admit(raw)
		if !ok {
			s.metrics.refused.WithLabelValues("streams").Inc()
			_ = raw.Close()
			continue
		}
		wg.Go(func() { s.route(c) })
	}
}

func (s *socket) route(c *stream) {
	_ = c.SetDeadline(time.Now().Add(labelTimeout))
	inner, label, err := memberlist.RemoveLabelHeaderFromStream(c)
	t := s.pools[label]
	if err != nil || t == nil {
		s.metrics.refused.WithLabelValues("label").Inc()
		_ = c.Close()
		return
	}
	head := make([]byte, streamHead)
	if _, err := io.ReadFull(inner, head); err != nil || !soundStream(head) {
		s.metrics.refused.WithLabelValues("malformed").Inc()
		_ = c.Close()
		return
	}
	select {
	case t.streams <- &headed{Conn: inner, head: head}:
	case <-t.done:
		_ = c.Close()
	}
}

// receive passes packets on until the socket is closed. A pool that does not keep up loses packets, as on any network.
func (s *socket) receive() {
	if udp, ok := s.packets.(*net.UDPConn); ok {
		_ = udp.SetReadBuffer(2 << 20) // the kernel may give less
	}
	buf := make([]byte, 64<<10)
	for {
		n, from, err := s.packets.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // such as an ICMP answer to what was sent before
			<-time.After(time.Millisecond)
			continue
		}
		at := time.Now()
		rest, label, err := memberlist.RemoveLabelHeaderFromPacket(buf[:n])
		t := s.pools[label]
		if err != nil || t == nil {
			s.metrics.refused.WithLabelValues("label").Inc()
			continue
		}
		if !soundPacket(rest) {
			s.metrics.refused.WithLabelValues("malformed").Inc()
			continue
		}
		select {
		case t.packets <- &memberlist.Packet{Buf: append([]byte(nil), rest...), From: from, Timestamp: at}:
		default:
			s.metrics.refused.WithLabelValues("packets").Inc()
		}
	}
}

// stream is an inbound connection that counts while it is open.
type stream struct {
	net.Conn
	release func()
}

func (c *stream) Close() error {
	c.release()
	return c.Conn.Close()
}

func (s *socket) admit(raw net.Conn) (*stream, bool) {
	var source netip.Addr
	if tcp, ok := raw.RemoteAddr().(*net.TCPAddr); ok {
		source = tcp.AddrPort().Addr().Unmap()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.streams) >= maxStreams || s.bySource[source] >= maxStreamsPerSource {
		return nil, false
	}
	s.streams[raw] = struct{}{}
	s.bySource[source]++
	return &stream{Conn: raw, release: sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.streams, raw)
		if s.bySource[source]--; s.bySource[source] == 0 {
			delete(s.bySource, source)
		}
	})}, true
}

// transport is one pool's share of the socket: a memberlist.Transport.
type transport struct {
	socket  *socket
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	stop    func() // idempotent
}

// FinalAdvertiseAddr resolves the advertised name: memberlist tells addresses, not names.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	host, service, err := net.SplitHostPort(t.socket.advertise)
	if err != nil {
		return nil, 0, fault.New(fault.Invalid, "advertise address: %w", err)
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return nil, 0, fault.New(fault.Invalid, "advertise address %q: port: %w", t.socket.advertise, err)
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, 0, fault.New(fault.Unavailable, "resolve advertise address: %w", err)
	}
	return ips[0].Unmap().AsSlice(), int(port), nil
}

// WriteTo sends a packet to an IP address and port.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, fault.New(fault.Invalid, "gossip: packet to %q: %w", addr, err)
	}
	_, err = t.socket.packets.WriteTo(b, net.UDPAddrFromAddrPort(to))
	return time.Now(), err
}

// WriteToAddress implements memberlist.NodeAwareTransport.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

// PacketCh implements memberlist.Transport.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// DialTimeout opens a stream.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return t.socket.dial(ctx, "tcp", addr)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, timeout)
}

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown implements memberlist.Transport.
func (t *transport) Shutdown() error {
	t.stop()
	return nil
}

func itoa(port uint16) string { return strconv.Itoa(int(port)) }
