package node

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/snapshotfile"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/control"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// RefoundConfig says how a mesh is founded anew from a snapshot. Config is the new control node's, as init takes it.
type RefoundConfig struct {
	Config
	Snapshot   *snapshotfile.Snapshot
	Sign       Sign
	Epoch      uint64 // to begin; 0: the one after the snapshot's. Give a later one if the mesh was restored since the snapshot
	Remembered []keyring.Denial
	Logger     *slog.Logger
	Now        func() time.Time // nil: time.Now
}

// Refound founds a mesh anew in an empty data directory, from a snapshot, where no control node is left. The directory is built aside
// and renamed into place when it is whole. Conflict: it is not empty.
func Refound(ctx context.Context, c RefoundConfig) (*Recovered, error) {
	defaults(&c.Logger, &c.Now)
	if !c.HasRole(keyring.RoleControl) {
		return nil, fault.New(fault.Invalid, "roles %v: the first node of a mesh is a control node", c.Roles)
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	advertised, err := c.addresses()
	if err != nil {
		return nil, err
	}
	target, err := emptyDir(c.DataDir)
	if err != nil {
		return nil, err
	}
	if c.DataDir, err = os.MkdirTemp(filepath.Dir(target), "."+filepath.Base(target)+".restoring-*"); err != nil {
		return nil, fault.New(fault.Invalid, "data_dir: %w", err)
	}
	defer os.RemoveAll(c.DataDir) // gone once it was renamed
	if len(c.Seal) == 0 {
		c.Seal = []string{"file://seal.key"} // relative: the directory moves
	}
	id, err := openIdentity(ctx, &c.Config)
	if err != nil {
		return nil, err
	}
	out, err := refoundIn(ctx, &c, id, advertised)
	if err != nil {
		return nil, err
	}
	if err := syncDir(c.DataDir); err != nil {
		return nil, fault.New(fault.Internal, "restore: %w", err)
	}
	if err := errors.Join(os.Rename(c.DataDir, target), syncDir(filepath.Dir(target))); err != nil {
		return nil, fault.New(fault.Internal, "restore: put the new data directory in place: %w", err)
	}
	return out, nil
}

// emptyDir is the absolute path of a directory that is empty or not there.
func emptyDir(dir string) (string, error) {
	target, err := filepath.Abs(dir)
	if err != nil {
		return "", fault.New(fault.Invalid, "data_dir: %w", err)
	}
	names, err := os.ReadDir(target)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
			return "", fault.New(fault.Invalid, "data_dir: %w", err)
		}
	case err != nil:
		return "", fault.New(fault.Invalid, "data_dir: %w", err)
	case len(names) > 0:
		return "", fault.New(fault.Conflict, "data_dir: %s is not empty: a mesh is founded anew in an empty directory", target)
	}
	return target, nil
}

func refoundIn(ctx context.Context, c *RefoundConfig, id *identity, advertised keyring.Addresses) (*Recovered, error) {
	now := c.Now().UTC().Truncate(time.Millisecond)
	s := c.Snapshot
	node, err := newControlNode(&c.Config, id, advertised, now)
	if err != nil {
		return nil, err
	}
	r := &control.Refounding{Entries: s.Entries, Revision: s.Revision, Remembered: c.Remembered, Now: now, Founder: &control.Founder{Node: node}}
	if err := openSnapshot(r.Founder, s); err != nil {
		return nil, err
	}
	r.Statement = keyring.RestorationStatement{
		Mesh: s.Mesh, Kind: keyring.RestoreSnapshot, OldEpoch: s.Revision.Epoch, NewEpoch: max(c.Epoch, s.Revision.Epoch+1), Digest: s.Digest[:],
		SnapshotRevision: s.Revision, SnapshotTime: s.TakenAt.UTC().Truncate(time.Millisecond), Time: now, Nonce: random(16), Carrier: node.ID,
	}
	if r.Signature, err = c.Sign(&r.Statement); err != nil {
		return nil, err
	}
	plan, err := r.Plan()
	if err != nil {
		return nil, err
	}
	authority, caKey, err := r.Authority()
	if err != nil {
		return nil, err
	}
	cert, err := issueNodeCertificate(*authority, caKey, id.nodeKey(), node, s.TrustDomain, now)
	if err != nil {
		return nil, err
	}
	if err := newEngineOf(ctx, engineOf{dir: filepath.Join(c.DataDir, raftDir), id: id, node: node.ID, address: advertised.Mesh, logger: c.Logger}, plan); err != nil {
		return nil, err
	}
	p := &id.public
	p.Founder, p.NodeID, p.MeshID, p.TrustDomain = true, node.ID, s.Mesh, s.TrustDomain
	p.Certificate, p.Bundle = cert.Raw, plan.Chain(cert)
	p.ControlNodes = []controlNode{{NodeID: node.ID, Region: c.Region, Address: advertised.Mesh}}
	p.FirstKey = firstKey{Epoch: r.Statement.NewEpoch}
	if err := id.save(); err != nil {
		return nil, err
	}
	return &Recovered{MeshID: s.Mesh, NodeID: node.ID, Address: advertised.Mesh, Status: plan.Status}, nil
}

func openSnapshot(f *control.Founder, s *snapshotfile.Snapshot) (err error) {
	if f.OpeningKey, err = seal.ParseSealingKey(s.OpeningKey); err != nil {
		return fault.New(fault.Invalid, "snapshot: opening key: %w", err)
	}
	for _, a := range s.Audiences {
		f.Audiences = append(f.Audiences, &iapmeshv1.AudienceWrap{Name: a.Name, Version: a.Version, Wrapped: a.Wrapped})
	}
	return nil
}
