package admin

import (
	"io"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/snapshotfile"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// sent is a stream of what was sent, as far as it is a message.
type sent struct {
	grpc.ClientStreamingServer[iapmeshv1.RestoreRequest, iapmeshv1.RestoreResponse]
	parts [][]byte
}

func (s *sent) Recv() (*iapmeshv1.RestoreRequest, error) {
	if len(s.parts) == 0 {
		return nil, io.EOF
	}
	m := &iapmeshv1.RestoreRequest{}
	err := proto.Unmarshal(s.parts[0], m)
	s.parts = s.parts[1:]
	return m, err
}

// What is taken is a snapshot in order, and whole.
func FuzzReceiveSnapshot(f *testing.F) {
	entries := []store.Entry{{Key: "a", Value: []byte("1"), Revision: store.Revision{Epoch: 1, Index: 2}}, {Key: "b"}}
	sum := snapshotfile.NewSum()
	list := &iapmeshv1.SnapshotEntries{}
	for _, e := range entries {
		sum.Add(e)
		list.Entries = append(list.Entries, &iapmeshv1.Entry{Key: e.Key, Value: e.Value, Revision: &iapmeshv1.Revision{Epoch: e.Revision.Epoch, Index: e.Revision.Index}})
	}
	digest := sum.Digest()
	encode := func(r *iapmeshv1.RestoreRequest) []byte {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	begin := encode(&iapmeshv1.RestoreRequest{Part: &iapmeshv1.RestoreRequest_Begin{Begin: &iapmeshv1.RestoreBegin{
		Statement: &iapmeshv1.RestorationStatement{MeshId: "m-1"}, Header: &iapmeshv1.SnapshotHeader{}, Remembered: []*iapmeshv1.Denial{{Kind: "key", Value: "k"}},
	}}})
	middle := encode(&iapmeshv1.RestoreRequest{Part: &iapmeshv1.RestoreRequest_Entries{Entries: list}})
	end := encode(&iapmeshv1.RestoreRequest{Part: &iapmeshv1.RestoreRequest_End{End: &iapmeshv1.RestoreEnd{Trailer: &iapmeshv1.SnapshotTrailer{Count: 2, Digest: digest[:]}}}})
	if in, err := receiveSnapshot(&sent{parts: [][]byte{begin, middle, end}}); err != nil || len(in.Entries) != 2 || in.Statement.Mesh != "m-1" || len(in.Remembered) != 1 {
		f.Fatalf("a good snapshot: %v, %v", in, err)
	}
	f.Add(begin, middle, end)
	f.Add(begin, end, middle)
	f.Add(middle, begin, end)
	f.Add(begin, middle, middle)
	f.Add([]byte{}, []byte{0xff}, end)
	f.Add(encode(&iapmeshv1.RestoreRequest{Part: &iapmeshv1.RestoreRequest_Begin{}}), middle, encode(&iapmeshv1.RestoreRequest{Part: &iapmeshv1.RestoreRequest_End{}}))
	f.Fuzz(func(t *testing.T, first, second, third []byte) {
		in, err := receiveSnapshot(&sent{parts: [][]byte{first, second, third}})
		if err != nil {
			return
		}
		for i, e := range in.Entries {
			if e.Key == "" || i > 0 && e.Key <= in.Entries[i-1].Key || len(e.Key) > store.MaxKey || len(e.Value) > store.MaxBytes {
				t.Fatalf("record %d, %q, was taken", i, e.Key)
			}
		}
	})
}
