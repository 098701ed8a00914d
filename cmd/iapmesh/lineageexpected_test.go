package main

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Until when a trail is awaited, and on whose word, is a matter of how the node was put out.
func TestWhatIsExpectedOfANode(t *testing.T) {
	t.Parallel()
	since, out := time.Unix(100, 0).UTC(), time.Unix(200, 0).UTC()
	for name, tc := range map[string]struct {
		state  iapmeshv1.NodeState
		reason string
		want   audit.Expected
	}{
		"active":               {iapmeshv1.NodeState_NODE_STATE_ACTIVE, "", audit.Expected{}},
		"lapsed":               {iapmeshv1.NodeState_NODE_STATE_LAPSED, "silent", audit.Expected{}},
		"quarantined":          {iapmeshv1.NodeState_NODE_STATE_QUARANTINED, "odd", audit.Expected{PutOut: out}},
		"revoked":              {iapmeshv1.NodeState_NODE_STATE_REVOKED, "stolen", audit.Expected{PutOut: out}},
		"left, or was removed": {iapmeshv1.NodeState_NODE_STATE_DEPARTED, "left", audit.Expected{PutOut: out, Gone: true}},
		"never confirmed":      {iapmeshv1.NodeState_NODE_STATE_DEPARTED, keyring.ReasonUnconfirmed, audit.Expected{PutOut: out}},
		"left behind":          {iapmeshv1.NodeState_NODE_STATE_DEPARTED, keyring.ReasonLeftBehind, audit.Expected{PutOut: out}},
		"silent for a week":    {iapmeshv1.NodeState_NODE_STATE_DEPARTED, "silent", audit.Expected{PutOut: out}},
	} {
		tc.want.Node, tc.want.Since = "n-1", since
		got := expectedOf(&iapmeshv1.Node{Id: "n-1", EnrolledAt: timestamppb.New(since), State: tc.state, Reason: tc.reason, StateSince: timestamppb.New(out)})
		if got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}
