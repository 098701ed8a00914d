package gossip

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// MaxMessage is the size of a message, in bytes: it must fit a packet beside what memberlist adds.
const MaxMessage = 1024

const (
	maxSeen     = 8192             // messages remembered
	maxQueued   = 1024             // messages waiting to be spread, in each pool
	maxInbox    = 512              // messages waiting for Receive
	maxState    = 256 << 10        // bytes of messages told in one exchange of states
	keepSeen    = 10 * time.Minute // how long a genuine message is remembered
	keepRefused = 5 * time.Second  // a refused one may become genuine once the view knows its signer
)

// What a message is for: its first byte.
const (
	kindUser    = 1 // for Config.Receive
	kindGoodbye = 2 // node id: it leaves; then 8 random bytes
)

type digest [sha256.Size]byte

// arrival is a message and the pool that it came through.
type arrival struct {
	pool string
	msg  []byte
}

// messages keeps each message from being handled twice.
type messages struct {
	metrics *metrics
	inbox   chan arrival

	mu   sync.Mutex
	seen map[digest]time.Time // until when
	ring []digest             // in the order of arrival, at most maxSeen
	head int
}

func newMessages(m *metrics) *messages {
	return &messages{metrics: m, inbox: make(chan arrival, maxInbox), seen: make(map[digest]time.Time)}
}

// first reports whether msg is new, and remembers it.
func (ms *messages) first(msg []byte) bool {
	d := digest(sha256.Sum256(msg))
	ms.mu.Lock()
	defer ms.mu.Unlock()
	now := time.Now()
	until, known := ms.seen[d]
	if known && now.Before(until) {
		return false
	}
	ms.seen[d] = now.Add(keepSeen)
	if known {
		return true // it stands in the ring already
	}
	if len(ms.ring) < maxSeen {
		ms.ring = append(ms.ring, d)
		return true
	}
	delete(ms.seen, ms.ring[ms.head])
	ms.ring[ms.head] = d
	ms.head = (ms.head + 1) % maxSeen
	return true
}

// forget lets msg count as new again after a while.
func (ms *messages) forget(msg []byte, after time.Duration) {
	d := digest(sha256.Sum256(msg))
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if _, known := ms.seen[d]; known {
		ms.seen[d] = time.Now().Add(after)
	}
}

// arrive takes a message from another node. It never blocks: memberlist's receive loop calls it.
func (ms *messages) arrive(pool string, msg []byte) {
	if len(msg) < 2 || len(msg) > 1+MaxMessage || msg[0] != kindUser && msg[0] != kindGoodbye {
		ms.metrics.messages.WithLabelValues("malformed").Inc()
		return
	}
	if !ms.first(msg) {
		ms.metrics.messages.WithLabelValues("duplicate").Inc()
		return
	}
	select {
	case ms.inbox <- arrival{pool, bytes.Clone(msg)}:
	default: // told again by others, or with the next exchange of states
		ms.forget(msg, 0)
		ms.metrics.messages.WithLabelValues("dropped").Inc()
	}
}

// deliver hands what arrives to whom it is for, and passes on what is genuine, in both pools.
func (m *Mesh) deliver(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case a := <-m.messages.inbox:
			msg := a.msg
			switch {
			case msg[0] == kindGoodbye && len(msg) > 9:
				m.members.leaving(string(msg[1 : len(msg)-8]))
				m.spread(a)
			case msg[0] == kindUser && m.config.Receive(msg[1:]):
				m.metrics.messages.WithLabelValues("accepted").Inc()
				m.spread(a)
			default:
				m.metrics.messages.WithLabelValues("refused").Inc()
				m.messages.forget(msg, keepRefused)
			}
		}
	}
}

// Broadcast spreads a message of 1 to MaxMessage bytes to every node that gossip reaches; this node's own Receive is not asked.
// It neither waits nor guarantees: what must arrive is also in Config.Messages. Invalid if the size is.
func (m *Mesh) Broadcast(msg []byte) error {
	if len(msg) == 0 || len(msg) > MaxMessage {
		return fault.New(fault.Invalid, "gossip: message of %d bytes, want 1 to %d", len(msg), MaxMessage)
	}
	framed := append([]byte{kindUser}, msg...)
	m.messages.first(framed)
	m.metrics.messages.WithLabelValues("sent").Inc()
	m.spread(arrival{msg: framed})
	return nil
}

// goodbye tells a pool that this node leaves: memberlist does not tell the others' delegates a death from a departure.
func (m *Mesh) goodbye(p *pool) {
	msg := append([]byte{kindGoodbye}, m.config.Self.NodeID...)
	var nonce [8]byte
	_, _ = rand.Read(nonce[:]) // never fails
	msg = append(msg, nonce[:]...)
	m.messages.first(msg)
	p.enqueue(msg)
}

// spread passes a message on. Into a pool that it did not come from it is sent to many members at once, since nobody there has
// it yet; gossip then sees to the rest, and to lost packets.
func (m *Mesh) spread(a arrival) {
	for _, p := range m.pools {
		p.enqueue(a.msg)
		if p.name != a.pool {
			p.send(a.msg)
		}
	}
}

// encodeState frames the messages that one exchange of states tells: each after its length, two bytes big-endian. What does not
// fit is left out.
func encodeState(all [][]byte) []byte {
	var out []byte
	for _, msg := range all {
		if len(msg) == 0 || len(msg) > MaxMessage {
			continue
		}
		if len(out)+3+len(msg) > maxState {
			break
		}
		out = binary.BigEndian.AppendUint16(out, uint16(1+len(msg)))
		out = append(out, kindUser)
		out = append(out, msg...)
	}
	return out
}

// decodeState is the inverse. Each message is still to be judged by arrive.
func decodeState(b []byte) ([][]byte, error) {
	if len(b) > maxState {
		return nil, fault.New(fault.Invalid, "gossip: state of %d bytes, at most %d", len(b), maxState)
	}
	var out [][]byte
	for len(b) > 0 {
		if len(b) < 2 {
			return nil, fault.New(fault.Invalid, "gossip: state ends within a length")
		}
		n := int(binary.BigEndian.Uint16(b))
		if n > len(b)-2 {
			return nil, fault.New(fault.Invalid, "gossip: state ends within a message")
		}
		out = append(out, b[2:2+n])
		b = b[2+n:]
	}
	return out, nil
}
