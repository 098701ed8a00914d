//go:build !linux

package spool

// Sync writes all: not every system has fdatasync.
func (f osFile) Sync() error { return f.File.Sync() }
