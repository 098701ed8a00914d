package gossip

import (
	"encoding/binary"
	"net"
)

// What memberlist puts on the wire behind the label. A packet is the sealed payload; a stream is a type byte, the payload's
// length, the payload. A payload is a version byte, a nonce, the ciphertext, a tag.
const (
	encryptMsg    = 10
	sealVersion   = 1
	sealOverhead  = 1 + 12 + 16
	streamHead    = 1 + 4 + 1 // type, length, the payload's version
	maxStreamSize = 4 << 20   // ten times what a pool of 200 tells
)

// soundPacket and soundStream pass what memberlist 0.7.0 itself sends. They keep out what it panics on once it is decrypted: an
// empty plaintext in a stream, and version 0, whose padding it does not check. A node that holds the gossip keys could else
// end every other with one packet. Streams longer than they can be are not read at all.
func soundPacket(b []byte) bool { return len(b) > sealOverhead && b[0] == sealVersion }

func soundStream(head []byte) bool {
	size := binary.BigEndian.Uint32(head[1:5])
	return head[0] == encryptMsg && size > sealOverhead && size <= maxStreamSize && head[5] == sealVersion
}

// headed is a connection whose first bytes have been read already.
type headed struct {
	net.Conn
	head []byte
}

func (c *headed) Read(p []byte) (int, error) {
	if len(c.head) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.head)
	c.head = c.head[n:]
	return n, nil
}
