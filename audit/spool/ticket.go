package spool

import (
	"context"
	"fmt"

	"github.com/iapmesh/iapmesh/audit"
)

// batch is what one sync makes durable. err is set before done is closed.
type batch struct {
	done chan struct{}
	err  error
}

// Ticket is held for a record that was appended. The zero Ticket holds nothing: only Append makes one.
type Ticket struct {
	spool *Spool
	batch *batch
	seq   uint64
}

// ID names the record; it is known before the record is durable.
func (t Ticket) ID() audit.ID {
	return audit.ID{Node: t.spool.cfg.Node, Run: t.spool.runName, Seq: t.seq}
}

// Done is closed once the record is on disk, or will never be: Err tells which.
func (t Ticket) Done() <-chan struct{} { return t.batch.done }

// Err is nil if the record is on disk, of kind Unavailable if it could not be written. It must not be called before Done is closed.
func (t Ticket) Err() error { return t.batch.err }

// Wait returns nil once the record is on disk, and an error of kind Unavailable if it could not be written or ctx ended first. In that
// last case the record may still become durable.
func (t Ticket) Wait(ctx context.Context) error {
	select {
	case <-t.batch.done:
		return t.batch.err
	default:
	}
	t.spool.kick()
	select {
	case <-t.batch.done:
		return t.batch.err
	case <-ctx.Done():
		return fmt.Errorf("wait for audit record %s: %w", t.ID(), ctx.Err())
	}
}
