package nodetest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
)

// ports are a mesh's own: below those that systems give to outgoing connections, so that a node which is stopped finds its ports free
// when it starts again, and held against other meshes, in other processes too, by listening on the first of each block. From 18000 on are
// those of cmd/iapmesh's scripts, and from 26000 on those of internal/dev/mesh, whose tests run at the same time.
type ports struct {
	t        testing.TB
	base, at int
}

const (
	portsFrom  = 10000
	portBlocks = 100
	blockSize  = 80 // 19 nodes
)

func reservePorts(t testing.TB) *ports {
	t.Helper()
	start := rand.IntN(portBlocks)
	for i := range portBlocks {
		base := portsFrom + (start+i)%portBlocks*blockSize
		lock, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base))
		if err != nil {
			continue
		}
		t.Cleanup(func() { lock.Close() })
		return &ports{t: t, base: base}
	}
	t.Fatalf("every block of %d ports from %d is taken", blockSize, portsFrom)
	return nil
}

// Addresses reserves a block of ports for a test that runs nodes without a mesh, and returns what gives one address of it after the other.
func Addresses(t testing.TB) (next func() string) {
	t.Helper()
	return reservePorts(t).next
}

// next returns an address of the block on which nothing listens, for TCP nor for UDP.
func (p *ports) next() string {
	p.t.Helper()
	for p.at < blockSize-1 {
		p.at++
		addr := fmt.Sprintf("127.0.0.1:%d", p.base+p.at)
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue // a server of somebody else's
		}
		l.Close()
		packets, err := net.ListenPacket("udp", addr)
		if err != nil {
			continue
		}
		packets.Close()
		return addr
	}
	p.t.Fatalf("no free port is left in the block from %d", p.base)
	return ""
}
