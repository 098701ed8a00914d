package raftstore

import (
	"github.com/hashicorp/raft"

	"github.com/iapmesh/iapmesh/cluster/store"
)

// WithDisk puts something between a member and its disk.
func WithDisk(c Config, wrap func(raft.LogStore) raft.LogStore) Config {
	c.wrapLog = wrap
	return c
}

// EncodeCommit and DecodeCommit show the codec to its fuzzer.
func EncodeCommit(t store.Txn) []byte { return encodeCommit(t) }

func EncodeEpoch(epoch uint64) []byte { return encodeEpoch(epoch) }

func DecodeCommand(b []byte) (store.Txn, uint64, error) {
	c, err := decodeCommand(b)
	return c.txn, c.epoch, err
}
