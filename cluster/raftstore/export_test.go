package raftstore

import (
	"io"

	"github.com/hashicorp/raft"

	"github.com/iapmesh/iapmesh/cluster/statemap"
	"github.com/iapmesh/iapmesh/cluster/store"
)

// WithDisk puts something between a member and its disk.
func WithDisk(c Config, wrap func(raft.LogStore) raft.LogStore) Config {
	c.wrapLog = wrap
	return c
}

// Retry is what calls between members go through.
func Retry(call func() error) error { return retry(call) }

// NudgedPipeline is what raft sends by, and what sends nudges.
func NudgedPipeline(inner raft.AppendPipeline) (p raft.AppendPipeline, nudge func(commit, term uint64)) {
	own := &nudgedPipeline{AppendPipeline: inner}
	return own, func(commit, term uint64) { own.send(notice{commit, term}) }
}

// EncodeCommit and DecodeCommit show the codec to its fuzzer.
func EncodeCommit(t store.Txn) []byte { return encodeCommit(t) }

func EncodeEpoch(epoch uint64) []byte { return encodeEpoch(epoch) }

func DecodeCommand(b []byte) (store.Txn, uint64, error) {
	c, err := decodeCommand(b)
	return c.txn, c.epoch, err
}

// DecodeSnapshot and EncodeSnapshot show the snapshot's format to its fuzzer.
func DecodeSnapshot(r io.Reader) (*fsmSnapshot, error) {
	s, applied, err := decodeSnapshot(r)
	return &fsmSnapshot{state: s, applied: applied}, err
}

func EncodeSnapshot(w io.Writer, s *fsmSnapshot) error { return s.encode(w) }

// SnapshotOf makes a snapshot of entries.
func SnapshotOf(applied uint64, at store.Revision, entries ...store.Entry) *fsmSnapshot {
	txn := statemap.NewTxn()
	txn.Apply(entries)
	return &fsmSnapshot{state: txn.Commit(at), applied: applied}
}
