package state

import (
	"strconv"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// PathRestoration is where the last restoration lies.
const PathRestoration = "meta/restoration"

// PastRestorationPath is where a restoration lies once another has begun.
func PastRestorationPath(epoch uint64) string {
	return PathRestoration + "/" + strconv.FormatUint(epoch, 10)
}

var (
	restorationKinds = table[keyring.RestorationKind, iapmeshv1.RestorationKind]{
		keyring.RestoreSnapshot: iapmeshv1.RestorationKind_RESTORATION_KIND_RESTORE, keyring.RestoreSurvivor: iapmeshv1.RestorationKind_RESTORATION_KIND_RECOVER,
	}
	restorationPhases = table[keyring.RestorationPhase, iapmeshv1.RestorationPhase]{
		keyring.RestorationRunning:   iapmeshv1.RestorationPhase_RESTORATION_PHASE_RESTORING,
		keyring.RestorationAwaiting:  iapmeshv1.RestorationPhase_RESTORATION_PHASE_AWAITING_CONFIRMATION,
		keyring.RestorationConfirmed: iapmeshv1.RestorationPhase_RESTORATION_PHASE_CONFIRMED,
	}
)

// PutRestoration encodes a restoration.
func PutRestoration(r *keyring.Restoration) store.Entry {
	return put(PathRestoration, RestorationProto(r))
}

// RestorationProto writes a restoration as the API shows it.
func RestorationProto(r *keyring.Restoration) *iapmeshv1.Restoration {
	p := &iapmeshv1.Restoration{
		Statement: StatementProto(&r.Statement), By: r.By, ByName: r.ByName, Signature: r.Signature, Phase: restorationPhases.proto(r.Phase),
		SessionsFrom: RevisionProto(r.SessionsFrom), Kept: r.Kept, Confirmed: r.Confirmed, ConfirmedBy: r.ConfirmedBy, Except: r.Except,
	}
	for _, k := range r.List.Keys {
		p.Keys = append(p.Keys, &iapmeshv1.HeldKey{Id: k.ID, State: keyStates.proto(k.State)})
	}
	for _, n := range r.List.Nodes {
		p.Nodes = append(p.Nodes, &iapmeshv1.HeldNode{Id: n.ID, State: nodeStates.proto(n.State)})
	}
	p.Refused = DenialsProto(r.Refused)
	return p
}

// RestorationOf reads what RestorationProto wrote.
func RestorationOf(p *iapmeshv1.Restoration) *keyring.Restoration {
	r := &keyring.Restoration{
		Statement: *StatementOf(p.Statement), By: p.By, ByName: p.ByName, Signature: p.Signature, Phase: restorationPhases.domain(p.Phase),
		SessionsFrom: RevisionOf(p.SessionsFrom), Kept: p.Kept, Confirmed: p.Confirmed, ConfirmedBy: p.ConfirmedBy, Except: p.Except,
		Refused: DenialsOf(p.Refused),
	}
	for _, k := range p.Keys {
		r.List.Keys = append(r.List.Keys, keyring.HeldKey{ID: k.Id, State: keyStates.domain(k.State)})
	}
	for _, n := range p.Nodes {
		r.List.Nodes = append(r.List.Nodes, keyring.HeldNode{ID: n.Id, State: nodeStates.domain(n.State)})
	}
	return r
}

// StatementProto writes a statement.
func StatementProto(s *keyring.RestorationStatement) *iapmeshv1.RestorationStatement {
	return &iapmeshv1.RestorationStatement{
		MeshId: s.Mesh, Kind: restorationKinds.proto(s.Kind), OldEpoch: s.OldEpoch, NewEpoch: s.NewEpoch, Digest: s.Digest,
		SnapshotRevision: RevisionProto(s.SnapshotRevision), SnapshotTime: Stamp(s.SnapshotTime), Time: Stamp(s.Time), Nonce: s.Nonce, Carrier: s.Carrier,
	}
}

// StatementOf reads one; nil is the zero statement.
func StatementOf(p *iapmeshv1.RestorationStatement) *keyring.RestorationStatement {
	if p == nil {
		return &keyring.RestorationStatement{}
	}
	return &keyring.RestorationStatement{
		Mesh: p.MeshId, Kind: restorationKinds.domain(p.Kind), OldEpoch: p.OldEpoch, NewEpoch: p.NewEpoch, Digest: p.Digest,
		SnapshotRevision: RevisionOf(p.SnapshotRevision), SnapshotTime: Time(p.SnapshotTime), Time: Time(p.Time), Nonce: p.Nonce, Carrier: p.Carrier,
	}
}

// DenialsProto writes denials.
func DenialsProto(ds []keyring.Denial) []*iapmeshv1.Denial {
	out := make([]*iapmeshv1.Denial, 0, len(ds))
	for _, d := range ds {
		out = append(out, &iapmeshv1.Denial{
			Kind: string(d.Kind), Value: d.Value, State: d.State, Block: d.Block, Reason: d.Reason, By: d.By, At: Stamp(d.At), Source: d.Source,
		})
	}
	return out
}

// DenialsOf reads denials.
func DenialsOf(ps []*iapmeshv1.Denial) []keyring.Denial {
	out := make([]keyring.Denial, 0, len(ps))
	for _, p := range ps {
		out = append(out, keyring.Denial{
			Kind: keyring.DenialKind(p.GetKind()), Value: p.GetValue(), State: p.GetState(), Block: p.GetBlock(), Reason: p.GetReason(), By: p.GetBy(),
			At: Time(p.GetAt()), Source: p.GetSource(),
		})
	}
	return out
}

// restoration applies the record. One that cannot be read holds the gate shut: as a restoration that never ends.
func (b *builder) restoration(e store.Entry) error {
	b.contents.Restoration = nil
	if e.Deleted {
		return nil
	}
	var p iapmeshv1.Restoration
	if err := decode(e, &p); err != nil {
		b.contents.Restoration = &keyring.Restoration{Phase: keyring.RestorationRunning}
		return err
	}
	b.contents.Restoration = RestorationOf(&p)
	return nil
}

// Build makes the view of a whole state, such as a snapshot's. Also with an error, Internal, the view is what was understood: a record
// was not, or the manifest does not compile.
func Build(entries []store.Entry, at store.Revision) (*View, error) {
	var b builder
	v, err := b.apply(store.Change{Revision: at, Reset: true, Entries: entries})
	if problems := b.takeProblems(); len(problems) > 0 {
		return v, fault.New(fault.Internal, "%d records are not understood, the first: %w", len(problems), problems[0])
	}
	if err != nil {
		return v, fault.New(fault.Internal, "configuration: %w", err)
	}
	return v, nil
}

// maxPart is how many bytes of a snapshot go into one message, unless a single record is larger: less than any limit on the way.
const maxPart = 1 << 20

// SendEntries gives send a snapshot's records, in messages of at most a mebibyte.
func SendEntries(entries []store.Entry, send func(*iapmeshv1.SnapshotEntries) error) error {
	part, size := &iapmeshv1.SnapshotEntries{}, 0
	for _, e := range entries {
		n := len(e.Key) + len(e.Value)
		if size > 0 && size+n > maxPart {
			if err := send(part); err != nil {
				return err
			}
			part, size = &iapmeshv1.SnapshotEntries{}, 0
		}
		size += n
		part.Entries = append(part.Entries, &iapmeshv1.Entry{Key: e.Key, Value: e.Value, Revision: RevisionProto(e.Revision)})
	}
	if len(part.Entries) == 0 {
		return nil
	}
	return send(part)
}
