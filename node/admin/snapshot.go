package admin

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/snapshotfile"
	"github.com/iapmesh/iapmesh/node/control"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

type snapshots struct {
	iapmeshv1.UnimplementedSnapshotServiceServer
	Services
}

// Save implements SnapshotService.
func (s *snapshots) Save(req *iapmeshv1.SaveRequest, stream grpc.ServerStreamingServer[iapmeshv1.SaveResponse]) error {
	by, c, err := s.leader(stream.Context())
	if err != nil {
		return err
	}
	header, entries, err := c.Save(stream.Context(), by, req.OpeningKey)
	if err != nil {
		return err
	}
	if err := stream.Send(&iapmeshv1.SaveResponse{Part: &iapmeshv1.SaveResponse_Header{Header: header}}); err != nil {
		return err
	}
	err = state.SendEntries(entries, func(part *iapmeshv1.SnapshotEntries) error {
		return stream.Send(&iapmeshv1.SaveResponse{Part: &iapmeshv1.SaveResponse_Entries{Entries: part}})
	})
	if err != nil {
		return err
	}
	sum := snapshotfile.NewSum()
	for _, e := range entries {
		sum.Add(e)
	}
	digest := sum.Digest()
	return stream.Send(&iapmeshv1.SaveResponse{Part: &iapmeshv1.SaveResponse_Trailer{Trailer: &iapmeshv1.SnapshotTrailer{Count: sum.Count(), Digest: digest[:]}}})
}

// Restore implements SnapshotService.
func (s *snapshots) Restore(stream grpc.ClientStreamingServer[iapmeshv1.RestoreRequest, iapmeshv1.RestoreResponse]) error {
	by, c, err := s.leader(stream.Context())
	if err != nil {
		return err
	}
	in, err := receiveSnapshot(stream)
	if err != nil {
		return err
	}
	status, at, err := c.Restore(stream.Context(), by, *in)
	if err != nil {
		return err
	}
	out := &iapmeshv1.RestoreResponse{Status: status}
	if !in.DryRun {
		out.Receipt = s.receipt(c, at)
	}
	return stream.SendAndClose(out)
}

// receiveSnapshot reads a whole snapshot, proves it against its trailer, and bounds what it holds.
func receiveSnapshot(stream grpc.ClientStreamingServer[iapmeshv1.RestoreRequest, iapmeshv1.RestoreResponse]) (*control.RestoreInput, error) {
	first, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	begin := first.GetBegin()
	if begin == nil {
		return nil, fault.New(fault.Invalid, "restore: it begins with no begin")
	}
	in := &control.RestoreInput{
		Statement: *state.StatementOf(begin.Statement), Signature: begin.Signature, Revision: state.RevisionOf(begin.Header.GetRevision()),
		Audiences: begin.Header.GetAudiences(), OpeningKey: begin.OpeningKey, Remembered: state.DenialsOf(begin.Remembered), DryRun: begin.DryRun,
	}
	sum, size, last := snapshotfile.NewSum(), 0, ""
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, fault.New(fault.Invalid, "restore: it is cut off after %d records", sum.Count())
		}
		if err != nil {
			return nil, err
		}
		if end := part.GetEnd(); end != nil {
			if digest := sum.Digest(); end.Trailer.GetCount() != sum.Count() || string(end.Trailer.GetDigest()) != string(digest[:]) {
				return nil, fault.New(fault.Invalid, "restore: %d records arrived, and are not what the end says", sum.Count())
			}
			return in, nil
		}
		for _, e := range part.GetEntries().GetEntries() {
			entry := store.Entry{Key: e.GetKey(), Value: e.GetValue(), Revision: state.RevisionOf(e.GetRevision())}
			size += len(entry.Key) + len(entry.Value)
			switch {
			case entry.Key <= last || len(entry.Key) > store.MaxKey || len(entry.Value) > store.MaxBytes:
				return nil, fault.New(fault.Invalid, "restore: record %.80q does not belong behind %.80q", entry.Key, last)
			case len(in.Entries) >= snapshotfile.MaxEntries || size > snapshotfile.MaxBytes:
				return nil, fault.New(fault.Exhausted, "restore: more than %d records or %d bytes", snapshotfile.MaxEntries, snapshotfile.MaxBytes)
			}
			last = entry.Key
			sum.Add(entry)
			in.Entries = append(in.Entries, entry)
		}
	}
}

// GetRestoration implements SnapshotService: the leader answers, so that the list is the one of now.
func (s *snapshots) GetRestoration(ctx context.Context, _ *iapmeshv1.GetRestorationRequest) (*iapmeshv1.GetRestorationResponse, error) {
	_, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.GetRestorationResponse{Status: c.Restoration(v)}, nil
}

// ConfirmRestoration implements SnapshotService.
func (s *snapshots) ConfirmRestoration(ctx context.Context, req *iapmeshv1.ConfirmRestorationRequest) (*iapmeshv1.ConfirmRestorationResponse, error) {
	by, c, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	at, err := c.ConfirmRestoration(ctx, by, req.ListDigest, req.Except, req.Unheard)
	if err != nil {
		return nil, err
	}
	return &iapmeshv1.ConfirmRestorationResponse{Status: control.RestorationStatus(s.Source.Load()), Receipt: s.receipt(c, at)}, nil
}
