// Package audit holds what makes a trail of records evidence: the Record, the RFC 6962 tree over a node's records, the signed
// checkpoint of that tree, and the verification of a stream of frames and checkpoints with nothing but public keys.
//
// A node writes its records as the leaves of one tree per run; a record's sequence number is its index in that tree, and its
// ID is node/run/seq. Each second the node signs a checkpoint: the size of the tree, its root and the time. A record is proved
// once a checkpoint that covers it has been verified; a record that was changed, dropped, inserted or moved afterwards no longer
// yields the root that was signed.
//
// The package does no I/O: audit/spool keeps a node's records on its disk, audit/collect ships and stores them.
package audit
