package replica_test

import (
	"context"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/cluster/replica"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/internal/fault"
)

// A node that is revoked is told so by its own record, whole commits up to that one, and gets nothing after it: otherwise it would
// go on serving by the last view that it had.
func TestARevokedNodeHearsOfItAndNothingMore(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	src := serve(t, replica.ServerConfig{
		Reader: s, Own: func(node string) string { return "node/" + node },
		Recheck: func(node string) error { // by the state of now, which may be ahead of what the stream has sent
			if e, err := s.Get(context.Background(), "node/"+node); err == nil && string(e.Value) == "revoked" {
				return fault.New(fault.Denied, "%s is revoked", node)
			}
			return nil
		},
		Scope: func(context.Context, string, store.Revision) (string, func(string) bool, error) {
			return "v1", func(key string) bool { return !strings.HasPrefix(key, "secret/") }, nil
		},
	})
	r, _ := open(t, config(t.TempDir(), dial(t, src)))
	mustWait(t, r, mustCommit(t, s, put("node/node-1", "active")))
	mustCommit(t, s, put("before", "1", "secret/x", "1"))
	told := mustCommit(t, s, put("node/node-1", "revoked", "key", "revoked"))
	mustCommit(t, s, put("after", "1"))
	mustWait(t, r, told)
	eventually(t, "it was cut off and tried again", func() bool { return src.streams.Load() > 2 })
	if got := dump(t, r); r.Revision() != told || !strings.Contains(got, "revoked") || !strings.Contains(got, "before") || strings.Contains(got, "secret/x") || strings.Contains(got, "after") {
		t.Errorf("it holds %s at %v, want all but secrets until %v", got, r.Revision(), told)
	}
}
