package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/iapmesh/iapmesh/internal/fault"
)

const (
	markerFile    = "applied"
	markerSlot    = 64 // nonce 24 ‖ index 8 ‖ tag 16, padded
	markerContext = "iapmesh/raft/marker/v1"
)

// marker remembers the last log index that this member applied, and so knew to be committed: raft does not persist that.
//
// It is written before readers see a batch, without a sync: that survives the death of the process, at any point. A power cut may lose the newest marks;
// then the applied index staged in the log's last entry stands (see sealedLog). There are two slots, so that a torn write
// spoils one; the greater counts.
type marker struct {
	file *os.File
	keys *keys
	slot int64
	last uint64
}

// openMarker returns the marker and the index that it holds.
func openMarker(dir string, k *keys) (*marker, uint64, error) {
	path := filepath.Join(dir, markerFile)
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("read %s: %w", path, err)
	}
	index, err := readMarker(content, k)
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, 0, fmt.Errorf("open %s: %w", path, err)
	}
	return &marker{file: f, keys: k, last: index}, index, nil
}

func readMarker(content []byte, k *keys) (uint64, error) {
	var index uint64
	valid := len(content) == 0
	for len(content) >= markerSlot {
		plain, err := openRandom(k.marker, content[:markerSlot-16], []byte(markerContext))
		if err == nil && len(plain) == 8 {
			valid = true
			index = max(index, binary.BigEndian.Uint64(plain))
		}
		content = content[markerSlot:]
	}
	if !valid {
		return 0, fault.New(fault.Invalid, "no mark is authentic: the file was changed")
	}
	return index, nil
}

// set marks an index as committed. Raft replays old entries after a start, so a lower index changes nothing.
func (m *marker) set(index uint64) error {
	if index <= m.last {
		return nil
	}
	slot := sealRandom(m.keys.marker, make([]byte, 0, markerSlot), binary.BigEndian.AppendUint64(nil, index), []byte(markerContext))
	m.slot = markerSlot - m.slot
	if _, err := m.file.WriteAt(slot[:cap(slot)], m.slot); err != nil {
		return fmt.Errorf("mark index %d: %w", index, err)
	}
	m.last = index
	return nil
}

func (m *marker) close() error { return errors.Join(m.file.Sync(), m.file.Close()) }
