package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func TestControlListCountsLiveVotersAlone(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		nodes string // L: leads, v: votes and is live, s: silent, n: not heard by this leader, l: lapsed, f: follows, d: departed
		says  []string
	}{
		"all three":           {"Lvv", []string{"3 of 3 control nodes vote: the mesh goes on without 1 of them"}},
		"one silent":          {"Lvs", []string{"3 of 3 control nodes vote, 1 silent: the mesh goes on without 0 more of them", "silent for 60 s"}},
		"one not heard":       {"Lvn", []string{"1 silent: the mesh goes on without 0 more of them", "active, silent"}},
		"one lapsed":          {"Lvl", []string{"1 silent: the mesh goes on without 0 more of them", "lapsed"}},
		"one of five silent":  {"Lvvvs", []string{"5 of 5 control nodes vote, 1 silent: the mesh goes on without 1 more of them"}},
		"two, and a follower": {"Lvf", []string{"2 of 3 control nodes vote: the mesh goes on without 0 of them"}},
		"alone":               {"Ld", []string{"1 of 1 control nodes vote: the mesh goes on without 0 of them"}},
	} {
		status := &iapmeshv1.Status{At: timestamppb.New(now)}
		for _, c := range tc.nodes {
			n := &iapmeshv1.NodeStatus{
				Node:  &iapmeshv1.Node{Roles: []iapmeshv1.Role{iapmeshv1.Role_ROLE_CONTROL}, State: iapmeshv1.NodeState_NODE_STATE_ACTIVE},
				Voter: !strings.ContainsRune("fd", c), Leader: c == 'L', Live: strings.ContainsRune("vf", c),
			}
			switch c {
			case 's':
				n.ReportedAt = timestamppb.New(now.Add(-time.Minute))
			case 'l':
				n.Node.State = iapmeshv1.NodeState_NODE_STATE_LAPSED
			case 'd':
				n.Node.State = iapmeshv1.NodeState_NODE_STATE_DEPARTED
			}
			status.Nodes = append(status.Nodes, n)
		}
		var out bytes.Buffer
		drawn := &table{paint: painter(false)}
		controlTable(drawn, status)
		if err := drawn.flush(&out); err != nil {
			t.Fatal(err)
		}
		for _, says := range tc.says {
			if !strings.Contains(out.String(), says) {
				t.Errorf("%s: want %q in\n%s", name, says, out.String())
			}
		}
		if strings.Contains(out.String(), "silent") != strings.ContainsAny(tc.nodes, "snl") {
			t.Errorf("%s: who is silent?\n%s", name, out.String())
		}
	}
}
