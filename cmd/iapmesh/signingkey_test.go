package main

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func TestARotationDoesNotWaitForASilentHolder(t *testing.T) {
	t.Parallel()
	key := &iapmeshv1.SigningKeyStatus{
		Key: &iapmeshv1.SigningKey{
			Kid: "s-old", Kind: iapmeshv1.SigningKeyKind_SIGNING_KEY_KIND_SESSION, Node: "n-1", Region: "eu-west",
			State: iapmeshv1.SigningKeyState_SIGNING_KEY_STATE_ACTIVE, AnnouncedAt: timestamppb.Now(),
		},
		Receipt: &iapmeshv1.Receipt{Lagging: []*iapmeshv1.Laggard{{NodeId: "n-1", Live: true}}},
	}
	names := func(id string) string { return id }
	if r := rotations([]*iapmeshv1.SigningKeyStatus{key}, []string{"s-old"}, names); r[0].done {
		t.Errorf("a live holder is not waited for: %s", r[0].line)
	}
	key.Receipt.Lagging[0].Live = false
	if r := rotations([]*iapmeshv1.SigningKeyStatus{key}, []string{"s-old"}, names); !r[0].done || !strings.Contains(r[0].line, "silent") {
		t.Errorf("a silent holder: done %v, %s", r[0].done, r[0].line)
	}
}
