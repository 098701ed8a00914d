package spool

import "golang.org/x/sys/unix"

// Sync writes the data and the size. Segments are filled beforehand, so the file system's journal has nothing to do.
func (f osFile) Sync() error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return err
		}
	}
}
