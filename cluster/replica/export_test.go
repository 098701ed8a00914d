package replica

import (
	"bytes"
	"crypto/cipher"
	"io"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/iapmesh/iapmesh/cluster/statemap"
	"github.com/iapmesh/iapmesh/cluster/store"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// WithFarewell lets a node that may not follow any more be told why for so long.
func WithFarewell(c ServerConfig, d time.Duration) ServerConfig {
	c.farewell = d
	return c
}

// Follower applies messages as a Replica does, without a disk.
type Follower struct {
	assemble assembler
	state    *statemap.State
}

func NewFollower() *Follower {
	return &Follower{state: statemap.NewTxn().Commit(store.Revision{})}
}

func (f *Follower) Add(m *iapmeshv1.Change) error {
	u, whole, err := f.assemble.add(m)
	if err != nil || !whole {
		return err
	}
	steps, err := plan(f.state, []update{u})
	if err == nil {
		f.state = steps[0].state
	}
	return err
}

func (f *Follower) Revision() store.Revision { return f.state.Revision() }

func (f *Follower) Entries() []store.Entry { return f.state.List("") }

// Parts shows how a change is sent.
func Parts(c store.Change, scope string) (parts []*iapmeshv1.Change) {
	for p := range (update{c, scope}).parts() {
		parts = append(parts, p)
	}
	return parts
}

// Records makes a file's records of payloads.
func Records(payloads ...[]byte) []byte {
	d := &disk{aead: fuzzAEAD()}
	var b []byte
	for _, p := range payloads {
		b = d.sealRecord(b, p)
	}
	return b
}

// LoadRecords reads a file's records, and returns where they end.
func LoadRecords(b []byte) (changes []store.Change, end int64, err error) {
	l := loader{in: io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))), size: int64(len(b)), aead: fuzzAEAD()}
	err = l.all(func(u update) error {
		changes = append(changes, u.Change)
		return nil
	})
	return changes, l.at, err
}

// Payload makes a record's content.
func Payload(changes ...store.Change) []byte {
	var b []byte
	for _, c := range changes {
		b, _ = encode(b, []update{{Change: c}})
	}
	return b
}

func fuzzAEAD() cipher.AEAD {
	aead, err := chacha20poly1305.NewX(make([]byte, chacha20poly1305.KeySize))
	if err != nil {
		panic(err)
	}
	return aead
}
