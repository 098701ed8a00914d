package main

import (
	"bytes"
	"strings"
	"testing"

	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Sessions end also of a node that stays as it is: it is called by its name.
func TestBlastNamesWhoHasLeft(t *testing.T) {
	t.Parallel()
	left := &iapmeshv1.Node{Id: "n-1", Name: "px-1", Region: "eu-west", State: iapmeshv1.NodeState_NODE_STATE_DEPARTED}
	lineage := &iapmeshv1.Lineage{Key: "k-1", Nodes: []*iapmeshv1.Node{left}, Keys: []*iapmeshv1.KeyLineage{{
		Key:   &iapmeshv1.ProvisioningKey{Id: "k-1", Name: "fleet", State: iapmeshv1.KeyState_KEY_STATE_ACTIVE},
		Nodes: []*iapmeshv1.NodeLineage{{Node: left}},
	}}}
	var out bytes.Buffer
	drawn := &table{paint: painter(false)}
	blastLines(drawn, lineage, &iapmeshv1.BlastRadius{
		SigningKeys: []*iapmeshv1.SigningKey{{Kid: "s-1", Node: "n-1", Kind: iapmeshv1.SigningKeyKind_SIGNING_KEY_KIND_SESSION, State: iapmeshv1.SigningKeyState_SIGNING_KEY_STATE_VERIFY_ONLY}},
		Sessions:    &iapmeshv1.SessionCount{AtLeast: 3, AtMost: 3, Silent: 2},
	}, true)
	if err := drawn.flush(&out); err != nil {
		t.Fatal(err)
	}
	for _, says := range []string{"signing key s-1 (sessions of px-1): verify-only → revoked", "3 live sessions", "that do not report: 2 of them"} {
		if !strings.Contains(out.String(), says) {
			t.Errorf("want %q in\n%s", says, out.String())
		}
	}
}
