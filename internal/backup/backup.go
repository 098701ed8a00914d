// Package backup is an administrator's side of snapshots: it takes one from the mesh of a profile, signs for giving one back, and
// gathers what the audit trail remembers as refused since. The mesh decides what becomes of it; nothing here is trusted there but the
// administrator's signature, and what is remembered can only make the mesh refuse more.
package backup

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/profile"
	"github.com/iapmesh/iapmesh/internal/snapshotfile"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Save takes a snapshot of the whole state from the leader, and proves that all of it arrived.
func Save(ctx context.Context, client *profile.Client) (*snapshotfile.Snapshot, error) {
	private, public, err := snapshotfile.NewOpeningKey()
	if err != nil {
		return nil, err
	}
	var out *snapshotfile.Snapshot
	err = client.Call(ctx, func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		stream, err := iapmeshv1.NewSnapshotServiceClient(conn).Save(ctx, &iapmeshv1.SaveRequest{OpeningKey: public}, o...)
		if err != nil {
			return err
		}
		out, err = receive(stream)
		return err
	})
	if err != nil {
		return nil, err
	}
	out.OpeningKey = private
	return out, nil
}

func receive(stream grpc.ServerStreamingClient[iapmeshv1.SaveResponse]) (*snapshotfile.Snapshot, error) {
	s, sum, size := &snapshotfile.Snapshot{}, snapshotfile.NewSum(), 0
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, fault.New(fault.Unavailable, "the snapshot is cut off after %d records", sum.Count())
		}
		if err != nil {
			return nil, err
		}
		if h := part.GetHeader(); h != nil {
			s.Mesh, s.TrustDomain, s.Revision, s.TakenAt, s.By = h.MeshId, h.TrustDomain, state.RevisionOf(h.Revision), state.Time(h.Time), h.By
			for _, w := range h.Audiences {
				s.Audiences = append(s.Audiences, snapshotfile.AudienceWrap{Name: w.GetName(), Version: w.GetVersion(), Wrapped: w.GetWrapped()})
			}
		}
		for _, e := range part.GetEntries().GetEntries() {
			entry := snapshotfile.Entry{Key: e.GetKey(), Value: e.GetValue(), Revision: state.RevisionOf(e.GetRevision())}
			if size += len(entry.Key) + len(entry.Value); size > snapshotfile.MaxBytes || len(s.Entries) >= snapshotfile.MaxEntries {
				return nil, fault.New(fault.Exhausted, "the state is larger than %d records or %d bytes", snapshotfile.MaxEntries, snapshotfile.MaxBytes)
			}
			sum.Add(entry)
			s.Entries = append(s.Entries, entry)
		}
		if t := part.GetTrailer(); t != nil {
			if digest := sum.Digest(); t.Count != sum.Count() || string(t.Digest) != string(digest[:]) || s.Mesh == "" {
				return nil, fault.New(fault.Unavailable, "%d records arrived, and are not what the trailer says", sum.Count())
			}
			return s, nil
		}
	}
}

// Statement is what is to be signed to restore a snapshot over the state that a status speaks of: from its epoch to the next, or from
// those that a restoration of the same snapshot began with, if one is not yet finished.
func Statement(s *snapshotfile.Snapshot, now *iapmeshv1.RestorationStatus, at time.Time) (*keyring.RestorationStatement, error) {
	if now.MeshId != s.Mesh {
		return nil, fault.New(fault.Conflict, "the snapshot is of mesh %s, this is %s", s.Mesh, now.MeshId)
	}
	out := NewStatement(s, keyring.RestoreSnapshot, now.Revision.GetEpoch(), at)
	if r := now.Restoration; r != nil && r.Phase != iapmeshv1.RestorationPhase_RESTORATION_PHASE_CONFIRMED {
		out.OldEpoch, out.NewEpoch = r.Statement.GetOldEpoch(), r.Statement.GetNewEpoch()
	}
	return out, nil
}

// NewStatement is a statement to restore a snapshot from an epoch to the next.
func NewStatement(s *snapshotfile.Snapshot, kind keyring.RestorationKind, epoch uint64, at time.Time) *keyring.RestorationStatement {
	nonce := make([]byte, 16)
	rand.Read(nonce)
	return &keyring.RestorationStatement{
		Mesh: s.Mesh, Kind: kind, OldEpoch: epoch, NewEpoch: epoch + 1, Digest: s.Digest[:], SnapshotRevision: s.Revision,
		SnapshotTime: s.TakenAt.UTC().Truncate(time.Millisecond), Time: at.UTC().Truncate(time.Millisecond), Nonce: nonce,
	}
}

// Sign signs a statement with a profile's key.
func Sign(p *profile.Profile, s *keyring.RestorationStatement) ([]byte, error) {
	credential, err := p.Credential()
	if err != nil {
		return nil, err
	}
	key, ok := credential.PrivateKey.(ed25519.PrivateKey)
	if !ok {
		return nil, fault.New(fault.Invalid, "profile of %s: key: %T, want Ed25519", p.Name, credential.PrivateKey)
	}
	return ed25519.Sign(key, s.Message()), nil
}

// Pending says how far the last restoration has come.
func Pending(ctx context.Context, client *profile.Client) (out *iapmeshv1.RestorationStatus, err error) {
	err = client.Call(ctx, func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		resp, err := iapmeshv1.NewSnapshotServiceClient(conn).GetRestoration(ctx, &iapmeshv1.GetRestorationRequest{}, o...)
		out = resp.GetStatus()
		return err
	})
	return out, err
}

// Restoring is a snapshot to be given back.
type Restoring struct {
	Snapshot   *snapshotfile.Snapshot
	Statement  *keyring.RestorationStatement
	Signature  []byte
	Remembered []keyring.Denial
	DryRun     bool
}

// Restore gives a snapshot back to the mesh. When the lead moves meanwhile, the next leader goes on.
func Restore(ctx context.Context, client *profile.Client, r Restoring) (out *iapmeshv1.RestoreResponse, err error) {
	err = client.Call(ctx, func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		stream, err := iapmeshv1.NewSnapshotServiceClient(conn).Restore(ctx, o...)
		if err != nil {
			return err
		}
		if err := r.send(stream); err != nil && !errors.Is(err, io.EOF) { // io.EOF: the answer says why
			return err
		}
		out, err = stream.CloseAndRecv()
		return err
	})
	return out, err
}

func (r *Restoring) send(stream grpc.ClientStreamingClient[iapmeshv1.RestoreRequest, iapmeshv1.RestoreResponse]) error {
	s := r.Snapshot
	header := &iapmeshv1.SnapshotHeader{MeshId: s.Mesh, TrustDomain: s.TrustDomain, Revision: state.RevisionProto(s.Revision), Time: state.Stamp(s.TakenAt), By: s.By}
	for _, a := range s.Audiences {
		header.Audiences = append(header.Audiences, &iapmeshv1.AudienceWrap{Name: a.Name, Version: a.Version, Wrapped: a.Wrapped})
	}
	begin := &iapmeshv1.RestoreBegin{
		Statement: state.StatementProto(r.Statement), Signature: r.Signature, Header: header, OpeningKey: s.OpeningKey, DryRun: r.DryRun,
		Remembered: state.DenialsProto(r.Remembered),
	}
	if err := stream.Send(&iapmeshv1.RestoreRequest{Part: &iapmeshv1.RestoreRequest_Begin{Begin: begin}}); err != nil {
		return err
	}
	err := state.SendEntries(s.Entries, func(part *iapmeshv1.SnapshotEntries) error {
		return stream.Send(&iapmeshv1.RestoreRequest{Part: &iapmeshv1.RestoreRequest_Entries{Entries: part}})
	})
	if err != nil {
		return err
	}
	sum := snapshotfile.NewSum()
	for _, e := range s.Entries {
		sum.Add(e)
	}
	digest := sum.Digest()
	return stream.Send(&iapmeshv1.RestoreRequest{Part: &iapmeshv1.RestoreRequest_End{End: &iapmeshv1.RestoreEnd{
		Trailer: &iapmeshv1.SnapshotTrailer{Count: sum.Count(), Digest: digest[:]},
	}}})
}

// Confirm confirms the list of that digest, but for the exceptions; unheard releases nodes that have not told what they remember, too.
func Confirm(ctx context.Context, client *profile.Client, digest []byte, except []string, unheard bool) (out *iapmeshv1.ConfirmRestorationResponse, err error) {
	err = client.Call(ctx, func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		out, err = iapmeshv1.NewSnapshotServiceClient(conn).ConfirmRestoration(ctx, &iapmeshv1.ConfirmRestorationRequest{ListDigest: digest, Except: except, Unheard: unheard}, o...)
		return err
	})
	return out, err
}
