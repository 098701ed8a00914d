package peer

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
)

// gate bounds what strangers may hold open, in all and for each source, by ending the oldest: one that stalls is soon the
// oldest, one that goes on is soon through. So neither 200 stalled handshakes from one address nor thousands from many keep a
// real one out.
type gate struct {
	max, perSource int

	mu       sync.Mutex
	all      list.List // of *pass, oldest first
	bySource map[netip.Prefix]*list.List
}

type pass struct {
	conn           net.Conn
	source         netip.Prefix
	inAll, inGroup *list.Element
}

// enter admits conn, ends another if the gate is full, and returns what to call when conn is through. It reports whether
// another was ended.
func (g *gate) enter(conn net.Conn) (leave func(), evicted bool) {
	p := &pass{conn: conn, source: sourceOf(conn)}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.bySource == nil {
		g.bySource = make(map[netip.Prefix]*list.List)
	}
	var victim *pass
	if group := g.bySource[p.source]; group != nil && group.Len() >= g.perSource {
		victim = group.Front().Value.(*pass)
	} else if g.all.Len() >= g.max {
		victim = g.all.Front().Value.(*pass)
	}
	if victim != nil {
		g.remove(victim)
		_ = victim.conn.Close()
	}
	group := g.bySource[p.source]
	if group == nil {
		group = list.New()
		g.bySource[p.source] = group
	}
	p.inAll, p.inGroup = g.all.PushBack(p), group.PushBack(p)
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.remove(p)
	}, victim != nil
}

func (g *gate) remove(p *pass) {
	if p.inAll == nil {
		return
	}
	group := g.bySource[p.source]
	g.all.Remove(p.inAll)
	group.Remove(p.inGroup)
	p.inAll, p.inGroup = nil, nil
	if group.Len() == 0 {
		delete(g.bySource, p.source)
	}
}

// addrOf is from where a connection came; zero if it is not TCP.
func addrOf(conn net.Conn) netip.Addr {
	tcp, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap().WithZone("")
}

// sourceOf is the address that a bound counts by: the IPv4 address, or the /64 of an IPv6 one, since a host owns all of it.
func sourceOf(conn net.Conn) netip.Prefix {
	addr := addrOf(conn)
	if !addr.IsValid() {
		return netip.Prefix{}
	}
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	prefix, _ := addr.Prefix(bits)
	return prefix
}
