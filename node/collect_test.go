package node_test

import (
	"testing"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node"
)

func TestANodeThatWasPutOutFillsNoDisk(t *testing.T) {
	t.Parallel()
	trusted := map[string]bool{"n1": true}
	admit := node.NewRemainders(func(id string) bool { return trusted[id] })
	for i, step := range []struct {
		node  string
		trust bool
		bytes int
		ok    bool
	}{
		{"n1", true, 2 * node.MaxRemainder, true},
		{"n1", false, node.MaxRemainder, true},
		{"n1", false, 1, false},
		{"n2", false, 1, true}, // each has its own
		{"n1", true, 1, true},
		{"n1", false, node.MaxRemainder, true}, // it was released, and is put out again
		{"n1", false, 1, false},
	} {
		trusted[step.node] = step.trust
		if err := admit(step.node, step.bytes); (err == nil) != step.ok || (err != nil && !fault.Is(err, fault.Exhausted)) {
			t.Errorf("step %d: %v", i, err)
		}
	}
}
