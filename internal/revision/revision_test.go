package revision_test

import (
	"math"
	"slices"
	"testing"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
)

func TestOrderIsEpochThenIndex(t *testing.T) {
	t.Parallel()
	ordered := []revision.Revision{{}, {Epoch: 0, Index: 9}, {Epoch: 1, Index: 0}, {Epoch: 1, Index: 9}, {Epoch: 2, Index: 1}, {Epoch: math.MaxUint64, Index: math.MaxUint64}}
	for i, a := range ordered {
		for j, b := range ordered {
			if a.Before(b) != (i < j) || (a.Compare(b) == 0) != (i == j) {
				t.Errorf("%v and %v: before %v, compare %d", a, b, a.Before(b), a.Compare(b))
			}
		}
		if back, err := revision.Parse(a.String()); err != nil || back != a {
			t.Errorf("%v came back as %v, %v", a, back, err)
		}
		if a.IsZero() != (i == 0) {
			t.Errorf("%v: zero %v", a, a.IsZero())
		}
	}
	if !slices.IsSortedFunc(ordered, revision.Revision.Compare) {
		t.Error("not sorted")
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "1", "1.", ".1", "1.2.3", "-1.2", "1.x", "1.18446744073709551616", " 1.2", "1,2"} {
		if r, err := revision.Parse(s); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v, %v", s, r, err)
		}
	}
}
