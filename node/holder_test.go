package node_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/cluster/enroll"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/nodetest"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Whoever holds a key revokes it by the next best node: by one that follows, by one that is no control node, or by the leader. What has
// joined by it stays.
func TestAHolderRevokesAKeyByAnyNode(t *testing.T) {
	t.Parallel()
	mesh := nodetest.Start(t, "eu-west", "us-east", "ap-south")
	edge := mesh.AddNode("edge", "proxy")
	leader := mesh.Leader()
	by := map[string]*nodetest.Region{"the leader": leader, "a proxy": edge}
	for _, region := range mesh.Regions() {
		if region != leader && region != edge {
			by["a follower"] = region
		}
	}
	for name, region := range by {
		j := newJoiners(t, mesh, 0)
		first := "web-" + region.Name // names are unique among those that stay
		ctx, cancel := context.WithTimeout(t.Context(), nodetest.Patience)
		defer cancel()
		if _, err := j.join(ctx, first, time.Now, leader); err != nil {
			t.Fatal(err)
		}
		found := enroll.Revocation{Addresses: []string{region.API()}, Secret: j.secret, Reason: "found by " + name, Logger: slog.New(slog.DiscardHandler)}
		if resp, err := enroll.Revoke(ctx, found); err != nil || resp.Already {
			t.Errorf("by %s: %v, %v", name, resp, err)
			continue
		}
		if resp, err := enroll.Revoke(ctx, found); err != nil || !resp.Already {
			t.Errorf("by %s again: %v, %v", name, resp, err)
		}
		if _, err := j.join(ctx, first+"-2", time.Now, leader); !fault.Is(err, fault.Denied) {
			t.Errorf("by %s, then a join: %v", name, err)
		}
		record := j.record()
		if k := record.Key; k.State != iapmeshv1.KeyState_KEY_STATE_REVOKED || k.RevokedBy != "key/"+j.secret.ID() || k.Reason != found.Reason || len(record.Nodes) != 1 {
			t.Errorf("by %s: %v", name, record)
		}
	}
}
