// Package revision names a state of the mesh: (epoch, index), compared in that order. Revocation, staleness fences, receipts
// and watermarks speak of revisions, because clocks differ between machines and revisions do not.
//
// It is a package of its own because the domain (keyring, policy) must speak of revisions without knowing an engine.
package revision

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// Revision names a state. Epoch grows on restore, recovery and change of engine; Index with each commit, with gaps.
// The zero Revision is before every state.
type Revision struct {
	Epoch uint64 `json:"epoch"`
	Index uint64 `json:"index"`
}

// Compare orders revisions: negative if r is before o.
func (r Revision) Compare(o Revision) int {
	if c := cmp.Compare(r.Epoch, o.Epoch); c != 0 {
		return c
	}
	return cmp.Compare(r.Index, o.Index)
}

// Before reports whether r names an earlier state than o.
func (r Revision) Before(o Revision) bool { return r.Compare(o) < 0 }

// IsZero reports whether r names no state.
func (r Revision) IsZero() bool { return r == Revision{} }

// String is epoch.index, as people and logs write it.
func (r Revision) String() string { return fmt.Sprintf("%d.%d", r.Epoch, r.Index) }

// Parse reads what String wrote.
func Parse(s string) (Revision, error) {
	e, i, ok := strings.Cut(s, ".")
	epoch, err1 := strconv.ParseUint(e, 10, 64)
	index, err2 := strconv.ParseUint(i, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		return Revision{}, fault.New(fault.Invalid, "revision %.40q: want epoch.index, such as 1.42", s)
	}
	return Revision{Epoch: epoch, Index: index}, nil
}
