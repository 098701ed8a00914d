package mesh

import (
	"fmt"
	"net"
	"strconv"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// DefaultBasePort is the first region's API port unless somebody says otherwise.
const DefaultBasePort = 17443

// ports are all of a mesh, counted from one base: that of the first region's API. The next region's is the next; the fourth of
// each kind and those after it are for nodes that are added by hand.
type ports int

const (
	gossipOffset  = 503
	proxyOffset   = 1000
	opsOffset     = 2021
	idpOffset     = 3000
	echoOffset    = 3010
	billingOffset = 3020
	lastOffset    = 3029

	// perKind is how many nodes have a port of each kind, and a redirect URI at the provider.
	perKind = 10
)

func (p ports) api(i int) int    { return int(p) + i }
func (p ports) gossip(i int) int { return int(p) + gossipOffset + i }
func (p ports) proxy(i int) int  { return int(p) + proxyOffset + i }
func (p ports) ops(i int) int    { return int(p) + opsOffset + i }
func (p ports) idp() int         { return int(p) + idpOffset }
func (p ports) echo(i int) int   { return int(p) + echoOffset + i }
func (p ports) billing() int     { return int(p) + billingOffset }

func (p ports) validate() error {
	if p < 1024 || p > 65535-lastOffset {
		return fault.New(fault.Invalid, "base port %d: want 1024 to %d", int(p), 65535-lastOffset)
	}
	return nil
}

// local is an address on this machine.
func local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// all lists the ports that the mesh itself listens on.
func (p ports) all() []int {
	all := []int{p.idp(), p.billing()}
	for i := range regions {
		all = append(all, p.api(i), p.gossip(i), p.proxy(i), p.ops(i), p.echo(i))
	}
	return all
}

// FreeBasePort finds a base, counting up from one, whose ports nobody listens on.
func FreeBasePort(from int) (int, error) {
	for base := ports(from); base.validate() == nil; base += 100 {
		if base.free() == nil {
			return int(base), nil
		}
	}
	return 0, fault.New(fault.Exhausted, "base port from %d on: none is free", from)
}

// free says which port is taken, here rather than by a node that ends at once.
func (p ports) free() error {
	for _, port := range p.all() {
		l, err := net.Listen("tcp", local(port))
		if err != nil {
			return fault.New(fault.Unavailable, "port %d is taken (%w): does another development mesh run? Move this one with --base-port", port, err)
		}
		if err := l.Close(); err != nil {
			return fmt.Errorf("port %d: %w", port, err)
		}
	}
	return nil
}
