package keyring_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

func TestQuorumAfter(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		voters   string // a: active, l: lapsed, -: no record; c0, c1, …
		external bool
		removing string
		refused  bool
	}{
		"one of three":                      {"aaa", false, "c0", false},
		"two of three":                      {"aaa", false, "c0 c1", true},
		"the only one":                      {"a", false, "c0", true},
		"one of two":                        {"aa", false, "c1", true},
		"two of five":                       {"aaaaa", false, "c0 c1", false},
		"three of five":                     {"aaaaa", false, "c0 c1 c2", true},
		"a live one of three, one lapsed":   {"aal", false, "c0", true},
		"the lapsed one of three":           {"aal", false, "c2", false},
		"a voter without a record":          {"aa-", false, "c0", true},
		"a proxy":                           {"aaa", false, "p0", false},
		"a proxy, though quorum hangs":      {"all", false, "p0", false},
		"nobody":                            {"a", false, "", false},
		"one of two beside an external one": {"aa", true, "c0", false},
		"the last beside an external one":   {"al", true, "c0", true},
	} {
		nodes := map[string]*keyring.Node{"p0": {ID: "p0", State: keyring.NodeActive, Roles: []keyring.Role{keyring.RoleProxy}}}
		var voters []string
		for i, s := range tc.voters {
			id := fmt.Sprint("c", i)
			voters = append(voters, id)
			state := map[rune]keyring.NodeState{'a': keyring.NodeActive, 'l': keyring.NodeLapsed}[s]
			if state != "" {
				nodes[id] = &keyring.Node{ID: id, State: state, Roles: []keyring.Role{keyring.RoleControl}}
			}
		}
		if tc.external {
			voters = nil
		}
		err := keyring.QuorumAfter(nodes, voters, strings.Fields(tc.removing))
		if tc.refused != fault.Is(err, fault.Denied) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
