package audit

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// ID names a record: the node that wrote it, that node's run, and the record's index in the run's tree.
type ID struct {
	Node, Run string
	Seq       uint64
}

// IsZero reports whether id names no record.
func (id ID) IsZero() bool { return id == ID{} }

// String is node/run/seq.
func (id ID) String() string { return string(id.append(nil)) }

func (id ID) append(b []byte) []byte {
	b = append(b, id.Node...)
	b = append(b, '/')
	b = append(b, id.Run...)
	b = append(b, '/')
	return strconv.AppendUint(b, id.Seq, 10)
}

// MarshalText is String.
func (id ID) MarshalText() ([]byte, error) { return id.append(nil), nil }

// UnmarshalText is ParseID.
func (id *ID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseID(string(b))
	return err
}

// ParseID reads node/run/seq.
func ParseID(s string) (ID, error) {
	node, rest, ok1 := strings.Cut(s, "/")
	run, seq, ok2 := strings.Cut(rest, "/")
	n, err := strconv.ParseUint(seq, 10, 64)
	if !ok1 || !ok2 || err != nil || node == "" || run == "" {
		return ID{}, fault.New(fault.Invalid, "audit id %.80q: want node/run/seq", s)
	}
	return ID{Node: node, Run: run, Seq: n}, nil
}

// Run is a node's run as frames carry it: the time of its start in milliseconds (48 bits) and 16 random bits, so that runs sort by
// age. Text is 16 hexadecimal digits.
type Run uint64

func (r Run) String() string { return fmt.Sprintf("%016x", uint64(r)) }

// Started is when the run began, by its node's clock.
func (r Run) Started() time.Time { return time.UnixMilli(int64(r >> 16)).UTC() }

// ParseRun reads 16 lower-case hexadecimal digits; zero is no run.
func ParseRun(s string) (Run, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 8 || strings.ToLower(s) != s {
		return 0, fault.New(fault.Invalid, "audit run %.40q: want 16 hexadecimal digits", s)
	}
	var r Run
	for _, c := range b {
		r = r<<8 | Run(c)
	}
	if r == 0 {
		return 0, fault.New(fault.Invalid, "audit run: zero names no run")
	}
	return r, nil
}
