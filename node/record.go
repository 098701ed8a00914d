package node

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/spool"
)

// trail records what this node itself does, and waits until it is on disk.
type trail struct{ spool *spool.Spool }

// Record appends a record and waits for it.
func (t *trail) Record(ctx context.Context, r *audit.Record) error {
	ticket, err := t.spool.Append(r)
	if err != nil {
		return fmt.Errorf("record %s: %w", r.Kind, err)
	}
	if err := ticket.Wait(ctx); err != nil {
		return fmt.Errorf("record %s: %w", r.Kind, err)
	}
	return nil
}

// record opens the spool. It comes before whatever decides anything.
func (a *assembly) record(context.Context) error {
	s, err := spool.Open(spool.Config{
		Dir: filepath.Join(a.config.DataDir, spoolDir), Node: a.id.public.NodeID, Region: a.config.Region, Mesh: a.id.public.MeshID,
		Signer: audit.SignWith(a.id.nodeKey()), SegmentBytes: a.config.Audit.SegmentBytes, MaxBytes: a.config.Audit.MaxBytes,
		Logger: a.logger, Registerer: a.registry, Now: a.env.Now,
	})
	if err != nil {
		return err
	}
	a.closers = append(a.closers, func() { _ = s.Close() })
	a.spool, a.trail = s, &trail{s}
	a.refusals = spool.NewRefusals(s)
	// The spool ends after everything that records.
	a.ground = append(a.ground, part{"spool", s.Run})
	a.base = append(a.base, part{"refusals", a.refusals.Run})
	return nil
}
