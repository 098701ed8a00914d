package fault_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/iapmesh/iapmesh/internal/fault"
)

func TestEveryKindHasOneCodeAndOneStatus(t *testing.T) {
	t.Parallel()
	codesSeen, statusesSeen := map[codes.Code]fault.Kind{}, map[int]fault.Kind{}
	for _, k := range fault.Kinds() {
		if other, taken := codesSeen[k.Code()]; taken {
			t.Errorf("%v and %v share code %v", k, other, k.Code())
		}
		if other, taken := statusesSeen[k.HTTPStatus()]; taken {
			t.Errorf("%v and %v share status %d", k, other, k.HTTPStatus())
		}
		codesSeen[k.Code()], statusesSeen[k.HTTPStatus()] = k, k
		if got := fault.FromCode(k.Code()); got != k {
			t.Errorf("FromCode(%v.Code()) = %v", k, got)
		}
		if http.StatusText(k.HTTPStatus()) == "" {
			t.Errorf("%v: unknown status %d", k, k.HTTPStatus())
		}
	}
}

func TestEveryCodeHasAKind(t *testing.T) {
	t.Parallel()
	for c := codes.Canceled; c <= codes.Unauthenticated; c++ {
		if k := fault.FromCode(c); k == fault.Internal && c != codes.Internal && c != codes.Unknown && c != codes.DataLoss && c != codes.Unimplemented {
			t.Errorf("code %v has no kind of its own", c)
		}
	}
}

func TestAKindSurvivesTheWire(t *testing.T) {
	t.Parallel()
	for _, k := range fault.Kinds() {
		sent := fmt.Errorf("join eu-west: %w", fault.New(k, "the reason"))
		got := fault.FromStatus(fault.ToStatus(sent))
		if fault.KindOf(got) != k || got.Error() != "join eu-west: the reason" {
			t.Errorf("%v became %v %q", k, fault.KindOf(got), got)
		}
	}
}

func TestKindOf(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		err  error
		want fault.Kind
	}{
		"plain":     {errors.New("x"), fault.Internal},
		"deadline":  {fmt.Errorf("wait: %w", context.DeadlineExceeded), fault.Unavailable},
		"outermost": {fault.Wrap(fault.Denied, fault.New(fault.NotFound, "x")), fault.Denied},
	} {
		if got := fault.KindOf(tc.err); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
	if fault.Is(nil, fault.Internal) {
		t.Error("a nil error has a kind")
	}
}
