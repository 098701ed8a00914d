package control_test

import (
	"fmt"
	"testing"

	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
	"github.com/iapmesh/iapmesh/node/state"
)

// An audience is one record, which every join of its members rewrites: so large a mesh still fits one commit.
func TestAnAudienceOfThousandsFitsACommit(t *testing.T) {
	t.Parallel()
	const nodes = 2000
	member, err := seal.GenerateSealingKey()
	must(t, err)
	members := map[string][]byte{}
	for i := range nodes {
		members[keyring.NodeID(fmt.Appendf(nil, "%032d", i))] = member.PublicKey()
	}
	a, _, err := seal.NewAudience(keyring.AudienceGossip, members, (&clock{}).now())
	must(t, err)
	size := len(state.PutAudience(&a).Value)
	t.Logf("%d bytes a member", size/nodes)
	// A proxy that joins rewrites three: gossip, proxies, and that of its region and selector.
	if limit := store.MaxBytes - 64<<10; 3*size > limit {
		t.Errorf("%d nodes, all proxies of one region: %d bytes in one commit, at most %d", nodes, 3*size, limit)
	}
}
