package main

import (
	"strings"
	"testing"

	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func TestBlastSaysNothingElseOnlyWhereItIsSo(t *testing.T) {
	t.Parallel()
	quarantined := &iapmeshv1.NodeChange{
		Node:   &iapmeshv1.Node{Id: "n-1", Name: "px-1", Region: "eu-west", State: iapmeshv1.NodeState_NODE_STATE_QUARANTINED},
		Before: iapmeshv1.NodeState_NODE_STATE_ACTIVE,
	}
	lineage := &iapmeshv1.Lineage{Key: "k-1", Keys: []*iapmeshv1.KeyLineage{{
		Key:   &iapmeshv1.ProvisioningKey{Id: "k-1", Name: "fleet", State: iapmeshv1.KeyState_KEY_STATE_ACTIVE},
		Nodes: []*iapmeshv1.NodeLineage{{Node: &iapmeshv1.Node{Id: "n-1", Name: "px-1", Region: "eu-west", State: iapmeshv1.NodeState_NODE_STATE_ACTIVE}}},
	}}}
	const keyOnly, nodesOnly, already = "nothing but the key", "nothing besides these nodes", "nothing: the node is revoked already"
	for name, tc := range map[string]struct {
		lineage *iapmeshv1.Lineage
		blast   *iapmeshv1.BlastRadius
		want    string // of the three
	}{
		"a key alone":           {lineage, &iapmeshv1.BlastRadius{}, keyOnly},
		"a key and idle nodes":  {lineage, &iapmeshv1.BlastRadius{Nodes: []*iapmeshv1.NodeChange{quarantined}}, nodesOnly},
		"a key, nodes, a route": {lineage, &iapmeshv1.BlastRadius{Nodes: []*iapmeshv1.NodeChange{quarantined}, Routes: []*iapmeshv1.RouteLoss{{Route: "echo", Region: "eu-west"}}}, ""},
		"a node":                {nil, &iapmeshv1.BlastRadius{Nodes: []*iapmeshv1.NodeChange{quarantined}}, ""},
		"a node already gone":   {nil, &iapmeshv1.BlastRadius{}, already},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			table := &table{paint: painter(false)}
			blastLines(table, tc.lineage, tc.blast, true)
			if err := table.flush(&out); err != nil {
				t.Fatal(err)
			}
			for _, line := range []string{keyOnly, nodesOnly, already} {
				if strings.Contains(out.String(), line) != (line == tc.want) {
					t.Errorf("%q, want %q alone of these in\n%s", line, tc.want, out.String())
				}
			}
		})
	}
}
