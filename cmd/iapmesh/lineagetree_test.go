package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/google/go-cmp/cmp"

	"github.com/iapmesh/iapmesh/audit"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

var lineageNow = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(lineageNow.Add(-d)) }

func lineageSample() *iapmeshv1.Lineage {
	active := iapmeshv1.NodeState_NODE_STATE_ACTIVE
	proxy := []iapmeshv1.Role{iapmeshv1.Role_ROLE_PROXY}
	web := &iapmeshv1.Node{Id: "n-1", Name: "web-1", Region: "eu-west", Roles: proxy, State: active, ProvisioningKey: "k1", BoundKey: "k2"}
	edge := &iapmeshv1.Node{Id: "n-2", Name: "edge\x1b[2J", Region: "us-east", Roles: proxy, State: iapmeshv1.NodeState_NODE_STATE_REVOKED, StateSince: ago(time.Hour), ProvisioningKey: "k0", BoundKey: "k2"}
	return &iapmeshv1.Lineage{
		Key: "k2", At: timestamppb.New(lineageNow), Revision: &iapmeshv1.Revision{Epoch: 1, Index: 7}, AnsweredBy: "n-1", Nodes: []*iapmeshv1.Node{web, edge},
		Sessions: &iapmeshv1.SessionCount{AtLeast: 7, AtMost: 8, Silent: 2},
		Keys: []*iapmeshv1.KeyLineage{
			{Key: &iapmeshv1.ProvisioningKey{Id: "k1", Name: "fleet", State: iapmeshv1.KeyState_KEY_STATE_REVOKED, RevokedAt: ago(time.Hour), Reason: "leaked"}, Nodes: []*iapmeshv1.NodeLineage{{
				Node: web, Live: true, LastSeen: ago(time.Second), Sessions: &iapmeshv1.SessionCount{AtLeast: 7, AtMost: 8},
				SigningKeys: []*iapmeshv1.SigningKey{{Kid: "s-1", State: iapmeshv1.SigningKeyState_SIGNING_KEY_STATE_VERIFY_ONLY}},
				Newest: []*iapmeshv1.LiveSession{{SessionId: "S1", Subject: "dev/" + strings.Repeat("ana", 60), IssuedAt: ago(time.Minute), AuthTime: ago(3 * time.Minute), SeenAt: ago(time.Second),
					SeenBy: []string{"n-1", "n-2"}}},
			}}},
			{Key: &iapmeshv1.ProvisioningKey{Id: "k2", Name: "fleet", MaxUses: 3, State: iapmeshv1.KeyState_KEY_STATE_ACTIVE}, Nodes: []*iapmeshv1.NodeLineage{{Node: edge, LastSeen: ago(2 * time.Hour)}}},
		},
	}
}

func TestTheDrawingOfALineage(t *testing.T) {
	t.Parallel()
	d := newLineageTree(lineageSample())
	d.activity = []audit.KeyActivity{{Key: "k2", SignIns: 1, SignInsRefused: 2, Subjects: strings.Split("a b c d e f g h i j k", " "), MoreSubjects: true, Decisions: []audit.DecisionCount{
		{Route: "billing", Decision: audit.Allow, By: audit.ByBoth, Records: 5}, {Route: "billing", Decision: audit.Deny, By: audit.ByServing, Records: 1},
		{Route: "echo", Decision: audit.Allow, By: audit.ByMinting, Records: 1}, {Others: true, Records: 9},
	}}}
	draw := func(colour bool) string {
		var out bytes.Buffer
		table := &table{paint: painter(colour)}
		table.tree(d.root())
		d.liveLines(table)
		if err := table.flush(&out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	want := `lineage of key fleet (k2) at revision 1.7, as web-1 sees it
├─ key k1 fleet revoked uses 0, no limit, revoked 60 min ago: leaked
│  └─ node web-1 (eu-west) proxy, active n-1 seen 1 s ago
│     ├─ bound to key k2 now
│     ├─ signs with s-1 verify-only
│     └─ 7 to 8 live sessions that it minted, the newest:
│        └─ S1 dev/anaanaanaanaanaanaanaanaanaanaanaanaanaanaanaanaanaanaanaanaanaanaanaanaanaanaanaanaanaana…
└─ key k2 fleet active uses 0/3
   ├─ node edge�[2J (us-east) proxy, revoked n-2 last seen 2 h ago
   │  └─ joined under key k0, and is bound to this one
   ├─ 16 decisions
   │  ├─ route billing: 5 allowed, 1 denied (5 served and minted, 1 served only)
   │  ├─ route echo: 1 allowed, 0 denied (1 minted only)
   │  └─ further routes: 9
   └─ 1 sign-in, 2 refused; at least 11 users
      ├─ a  b  c
      ├─ d  e  f
      ├─ g  h  i
      └─ and 2 more: -o json names them
7 to 8 live sessions in all, seen within the last minutes.
Nodes name only the newest: one that two nodes have seen may be counted twice.
Proxies that do not report: 2. Sessions that they alone have seen are not among these.
`
	if diff := cmp.Diff(want, draw(false)); diff != "" {
		t.Error(diff)
	}
	for _, line := range strings.Split(want, "\n") {
		if strings.ContainsAny(line, "├└│") && utf8.RuneCountInString(line) > treeWidth {
			t.Errorf("too wide: %s", line)
		}
	}
	if coloured := draw(true); !strings.Contains(coloured, "\x1b[32mactive") && !strings.Contains(coloured, "\x1b[32m active") || strings.Contains(coloured, "\x1b[2J") {
		t.Errorf("coloured: %q", coloured)
	}
}

func TestWhenANodeWasSeenIsSaidAsFarAsItIsKnown(t *testing.T) {
	t.Parallel()
	for want, n := range map[string]*iapmeshv1.NodeLineage{
		"not heard":                     {},
		"seen 1 s ago":                  {Live: true, LastSeen: ago(time.Second)},
		"last seen 2 h ago":             {LastSeen: ago(2 * time.Hour)},
		"last seen 3 h ago or later":    {SeenSince: ago(3 * time.Hour)},
		"last seen 60 min ago or later": {SeenSince: ago(time.Hour), LastSeen: ago(2 * time.Hour)},
	} {
		l := lineageSample()
		n.Node = l.Nodes[0]
		l.Keys[1].Nodes = []*iapmeshv1.NodeLineage{n}
		var out bytes.Buffer
		table := &table{paint: painter(false)}
		table.tree(newLineageTree(l).root())
		if err := table.flush(&out); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), "n-1 "+want+"\n") {
			t.Errorf("want %q in:\n%s", want, out.String())
		}
	}
}

func TestWhatIsMissingIsSaidInWords(t *testing.T) {
	t.Parallel()
	d := newLineageTree(lineageSample())
	from, to := lineageNow.Add(-2*time.Hour), lineageNow.Add(-time.Hour)
	d.names["n-3"] = &iapmeshv1.Node{Id: "n-3", Name: "old", Region: "us-east", State: iapmeshv1.NodeState_NODE_STATE_DEPARTED, Reason: "left", StateSince: timestamppb.New(to)}
	for _, tc := range []struct {
		m    audit.Missing
		want string
	}{
		{audit.Missing{Kind: audit.MissingNode, Node: "n-1", From: from, To: to}, "node web-1 (eu-west): never shipped anything, between 2026-11-24T10:00:00Z and 2026-11-24T11:00:00Z"},
		{audit.Missing{Kind: audit.MissingAfter, Node: "n-1", From: from, To: to}, "node web-1 (eu-west): nothing after 2026-11-24T10:00:00Z"},
		{audit.Missing{Kind: audit.MissingAfter, Node: "n-2", From: from, To: to}, "node edge\x1b[2J (us-east): nothing after 2026-11-24T10:00:00Z; it was revoked at 2026-11-24T11:00:00Z, and has not said that it knows"},
		{audit.Missing{Kind: audit.MissingNode, Node: "n-2", From: from, To: to}, "node edge\x1b[2J (us-east): never shipped anything, between 2026-11-24T10:00:00Z and 2026-11-24T11:00:00Z; it was revoked at 2026-11-24T11:00:00Z, and has not said that it knows"},
		{audit.Missing{Kind: audit.MissingAfter, Node: "n-3", From: from, To: to}, "node old (us-east): nothing after 2026-11-24T10:00:00Z, and it departed only at 2026-11-24T11:00:00Z"},
		{audit.Missing{Kind: audit.MissingRecords, Node: "n-1", Run: "r", FromSeq: 10, ToSeq: 20}, "node web-1 (eu-west), run r: records 10 to 19 are missing"},
		{audit.Missing{Kind: audit.MissingRun, Node: "n-9", Run: "r", ToSeq: 20, To: to}, "node n-9: the whole run r, of 20 records, is missing, before 2026-11-24T11:00:00Z"},
		{audit.Missing{Kind: audit.MissingGap, Node: "n-1", Records: 5, Route: "billing", Text: "not_durable", From: from, To: to}, "node web-1 (eu-west): gap of 5 records, route billing, between 2026-11-24T10:00:00Z and 2026-11-24T11:00:00Z: not_durable"},
		{audit.Missing{Kind: audit.MissingFork, Node: "n-1", Run: "r", From: from}, "node web-1 (eu-west), run r: it showed two histories, and one was refused, from 2026-11-24T10:00:00Z"},
		{audit.Missing{Kind: audit.MissingProof, Node: "n-1", Run: "r", FromSeq: 0, ToSeq: 2}, "node web-1 (eu-west), run r: nothing proves records 0 to 1"},
	} {
		if diff := cmp.Diff(tc.want, d.missingText(tc.m)); diff != "" {
			t.Error(diff)
		}
	}
	if diff := cmp.Diff("node old (us-east): up to 2026-11-24T10:59:58Z, 1.2s before it departed", d.endedText(audit.Ended{Node: "n-3", UpTo: to.Add(-1200 * time.Millisecond), End: to})); diff != "" {
		t.Error(diff)
	}
}

func TestTheSpanOfALineage(t *testing.T) {
	t.Parallel()
	at := func(d time.Duration) time.Time { return lineageNow.Add(-d) }
	for name, tc := range map[string]struct {
		flags lineageFlags
		want  audit.Window
	}{
		"a day":           {lineageFlags{since: 24 * time.Hour}, audit.Window{From: at(24 * time.Hour), To: lineageNow, Slack: grows}},
		"from":            {lineageFlags{since: 24 * time.Hour, from: "3h"}, audit.Window{From: at(3 * time.Hour), To: lineageNow, Slack: grows}},
		"from and to":     {lineageFlags{since: 24 * time.Hour, from: "2026-11-24T09:00:00Z", to: "1h"}, audit.Window{From: at(3 * time.Hour), To: at(time.Hour)}},
		"to alone":        {lineageFlags{since: time.Hour, to: "1h"}, audit.Window{From: at(2 * time.Hour), To: at(time.Hour)}},
		"into the future": {lineageFlags{since: time.Hour, to: "2026-11-25T12:00:00Z"}, audit.Window{From: at(time.Hour), To: lineageNow, Slack: grows}},
	} {
		got, err := tc.flags.window(lineageNow)
		if diff := cmp.Diff(tc.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
	for name, f := range map[string]lineageFlags{
		"backwards": {since: time.Hour, from: "1h", to: "2h"}, "no time": {since: time.Hour, from: "yesterday"}, "no time either": {since: time.Hour, to: "-1h"},
	} {
		if _, err := f.window(lineageNow); err == nil {
			t.Errorf("%s: is taken", name)
		}
	}
}

func TestALongChainIsDrawnShort(t *testing.T) {
	t.Parallel()
	l := &iapmeshv1.Lineage{Key: "k50", At: timestamppb.New(lineageNow)}
	for i := range 100 {
		l.Keys = append(l.Keys, &iapmeshv1.KeyLineage{Key: &iapmeshv1.ProvisioningKey{Id: fmt.Sprint("k", i), Name: "fleet"}})
	}
	l.Keys[48].Nodes = []*iapmeshv1.NodeLineage{{Node: &iapmeshv1.Node{Id: "n-1", Name: "web-1"}}}
	var drawn []string
	for _, b := range newLineageTree(l).root().children {
		if len(b.cells) == 1 {
			drawn = append(drawn, b.cells[0].text)
		} else {
			drawn = append(drawn, b.cells[1].text)
		}
	}
	want := []string{"48 keys, k0 to k47, under which no node has joined", "k48", "k49", "k50", "48 keys, k51 to k98, under which no node has joined", "k99"}
	if diff := cmp.Diff(want, drawn); diff != "" {
		t.Error(diff)
	}
}
