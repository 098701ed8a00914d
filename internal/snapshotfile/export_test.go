package snapshotfile

import "io"

// Decode is decode, for the fuzz target: what lies behind the seal.
func Decode(r io.Reader) (*Snapshot, error) { return decode(r) }

// Encode is encode.
func Encode(w io.Writer, s *Snapshot) error { return encode(w, s) }
