package keyring

import (
	"slices"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// QuorumAfter refuses, as Denied, to take the nodes in removing out of a mesh if the voters that remain could no longer commit:
// fewer than a majority of all voters would be active. voters are the engine's voting members by node id; none if the engine is
// external, where one active control node must remain. What takes no voter away is never refused.
func QuorumAfter(nodes map[string]*Node, voters, removing []string) error {
	external := len(voters) == 0
	if external {
		for id, n := range nodes {
			if n.HasRole(RoleControl) && n.State == NodeActive {
				voters = append(voters, id)
			}
		}
	}
	need := len(voters)/2 + 1
	if external {
		need = 1
	}
	remaining, taken := 0, 0
	for _, id := range voters {
		switch n := nodes[id]; {
		case slices.Contains(removing, id):
			taken++
		case n != nil && n.State == NodeActive:
			remaining++
		}
	}
	if taken > 0 && remaining < need {
		return fault.New(fault.Denied, "this would take %d of %d control nodes and leave %d active, where %d are needed to commit anything; "+
			"add control nodes first", taken, len(voters), remaining, need)
	}
	return nil
}
