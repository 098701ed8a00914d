// Package spool keeps a node's audit records on its disk, durably and in order, until an aggregator has acknowledged them.
//
// Append gives a record its place, its Ticket says when it is on disk: whoever waits together is synced together. What a Ticket
// reported durable is there after kill -9 and power cut. An fsync that fails poisons the spool for the rest of the process,
// because the kernel may have dropped what it could not write: nothing is accepted any more, and the next Open begins a new run.
//
// The spool is bounded. When it is full it refuses ordinary records and keeps room for denials, revocations and gap records; what a
// route serves all the same is counted by Gap and becomes a record once there is room.
//
// The directory holds segments of fixed size, filled with zeros before use, so that a sync writes data and no metadata. A
// segment begins with the edge of the tree at its first record, so that no file is needed to go on but the one that is read.
// audit/collect ships what Reader reads and calls Acknowledge.
package spool
