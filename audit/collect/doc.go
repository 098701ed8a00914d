// Package collect brings every node's audit trail together: the Shipper sends a node's spool to an aggregator, the Aggregator verifies
// and stores it, answers queries and hands it out for verification.
//
// The aggregator keeps frames verbatim. It stores records only with a checkpoint that proves them, syncs, and only then acknowledges;
// what came and was not yet proved when the stream broke is sent again, so each record is stored once. The node is whom the connection
// authenticated, never whom a message names. A node that shows another history than it did before is alarmed about, the evidence kept,
// and that run refused from there on.
//
// A run lies in <dir>/<node>/<run>/<first record>.segment: an edge, then records, each stretch followed by the checkpoint that proves it,
// with the aggregator's countersignature, and the edge from which the next stretch goes on.
package collect
