package node_test

import (
	"context"
	"fmt"
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
	for name, region := range map[string]*nodetest.Region{"the leader": leader, "a proxy": edge, "a follower": mesh.Follower()} {
		// A key that is revoked already may have been so by an attempt whose answer was lost: it is found once more, and another time.
		for attempt := 1; !revokedByHolder(t, mesh, name, region, leader, attempt); attempt++ {
			if attempt == 3 {
				t.Fatalf("by %s: a key is revoked already, time and again", name)
			}
		}
	}
}

// revokedByHolder lets whoever holds a key revoke it by a node, and reports whether it was not revoked before.
func revokedByHolder(t *testing.T, mesh *nodetest.Mesh, name string, by, leader *nodetest.Region, attempt int) bool {
	t.Helper()
	j := newJoiners(t, mesh, 0)
	first := fmt.Sprintf("web-%s-%d", by.Name, attempt) // names are unique among those that stay
	ctx, cancel := context.WithTimeout(t.Context(), nodetest.Patience)
	defer cancel()
	if _, err := j.join(ctx, first, time.Now, leader); err != nil {
		t.Fatal(err)
	}
	found := enroll.Revocation{Addresses: []string{by.API()}, Secret: j.secret, Reason: "found by " + name, Logger: slog.New(slog.DiscardHandler)}
	resp, err := enroll.Revoke(ctx, found)
	if err != nil {
		t.Fatalf("by %s: %v", name, err)
	}
	if again, err := enroll.Revoke(ctx, found); err != nil || !again.Already {
		t.Errorf("by %s again: %v, %v", name, again, err)
	}
	if _, err := j.join(ctx, first+"-2", time.Now, leader); !fault.Is(err, fault.Denied) {
		t.Errorf("by %s, then a join: %v", name, err)
	}
	var record *iapmeshv1.GetKeyResponse
	mesh.Eventually("the key is revoked, also in the view of a leader that is new", func() bool {
		record = j.record()
		return record.Key.State == iapmeshv1.KeyState_KEY_STATE_REVOKED
	})
	if k := record.Key; k.RevokedBy != "key/"+j.secret.ID() || k.Reason != found.Reason || len(record.Nodes) != 1 {
		t.Errorf("by %s: %v", name, record)
	}
	return !resp.Already
}
