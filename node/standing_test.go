package node_test

import (
	"testing"
	"time"

	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node"
	"github.com/iapmesh/iapmesh/node/state"
)

func TestWhatIsStrictestCounts(t *testing.T) {
	t.Parallel()
	said := func(s keyring.NodeState, minute int) state.Standing {
		return state.Standing{Node: "n-1", State: s, Since: time.Unix(0, 0).Add(time.Duration(minute) * time.Minute)}
	}
	active, lapsed, quarantined, revoked := said(keyring.NodeActive, 9), said(keyring.NodeLapsed, 10), said(keyring.NodeQuarantined, 3), said(keyring.NodeRevoked, 5)
	for name, tc := range map[string]struct {
		said []state.Standing
		want state.Standing
	}{
		"one":              {[]state.Standing{active}, active},
		"the later":        {[]state.Standing{active, lapsed}, lapsed},
		"one was put out":  {[]state.Standing{active, quarantined, lapsed}, quarantined},
		"the later of two": {[]state.Standing{quarantined, active, revoked}, revoked},
		"whoever is first": {[]state.Standing{revoked, quarantined}, revoked},
	} {
		if got := node.Strictest(tc.said); got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}
