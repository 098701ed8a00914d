package gossip_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/cluster/gossip"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func FuzzDecodeMeta(f *testing.F) {
	seed, err := gossip.EncodeMeta(gossip.Self{NodeID: "n1", Region: "r1", Roles: []iapmeshv1.Role{1, 2}, MeshAddr: "127.0.0.1:1", Version: "1"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0x18, 0x01}, 200))
	f.Fuzz(func(t *testing.T, b []byte) {
		self, err := gossip.DecodeMeta(b)
		if err != nil {
			return
		}
		again, err := gossip.EncodeMeta(self)
		if err != nil {
			if len(b) < 500 { // a longer one may pass the limit: roles can take a byte more than they came in
				t.Fatalf("what was decoded cannot be encoded: %v", err)
			}
			return
		}
		back, err := gossip.DecodeMeta(again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(self, back); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzDecodeState(f *testing.F) {
	f.Add(gossip.EncodeState([][]byte{[]byte("one"), []byte("two")}))
	f.Add([]byte{})
	f.Add([]byte{0, 0})
	f.Add([]byte{0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := gossip.DecodeState(b)
		if err != nil {
			return
		}
		size := 0
		for _, msg := range all {
			size += 2 + len(msg)
		}
		if size != len(b) {
			t.Fatalf("%d bytes of messages in %d", size, len(b))
		}
	})
}
