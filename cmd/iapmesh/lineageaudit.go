package main

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/collect"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// inquiry is what the aggregators are asked, and what came of it.
type inquiry struct {
	c       *cli
	lineage *iapmeshv1.Lineage
	window  audit.Window
	answers []*answer
	held    []audit.Held

	Keys         []audit.KeyActivity
	Completeness audit.Completeness
	Aggregators  []askedAggregator
	Problems     []string // what an aggregator shows and its nodes did not sign
}

// askedAggregator is one of them.
type askedAggregator struct {
	Node        string            `json:"node"`
	Name        string            `json:"name"`
	Error       string            `json:"error,omitempty"`
	Differences []string          `json:"differences,omitempty"` // of what it claims from what was proved; with --proof
	Proved      []audit.RunReport `json:"proved,omitempty"`
}

// answer is one aggregator's.
type answer struct {
	node    *iapmeshv1.Node
	req     *iapmeshv1.SummarizeRequest
	summary audit.Summary
	proved  bool
}

func newInquiry(c *cli, l *iapmeshv1.Lineage, w audit.Window) *inquiry {
	q := &inquiry{c: c, lineage: l, window: w}
	for _, k := range askedOf(l, audit.MaxSummaryKeys) {
		q.Keys = append(q.Keys, audit.KeyActivity{Key: k.Key.Id})
	}
	return q
}

// askedOf are as many of a chain as may be asked about at once: the key that was meant, and those nearest to it.
func askedOf(l *iapmeshv1.Lineage, limit int) []*iapmeshv1.KeyLineage {
	at := slices.IndexFunc(l.Keys, func(k *iapmeshv1.KeyLineage) bool { return k.GetKey().GetId() == l.Key })
	first := min(max(0, at-limit/2), max(0, len(l.Keys)-limit))
	return l.Keys[first:min(len(l.Keys), first+limit)]
}

// ask asks one aggregator after the other: each leaves out what those before it have counted, because a node that changed its aggregator
// may have given the same records to both.
func (q *inquiry) ask(ctx context.Context) {
	req := &iapmeshv1.SummarizeRequest{From: timestamppb.New(q.window.From), To: timestamppb.New(q.window.To)}
	for _, k := range q.Keys {
		req.ProvisioningKeys = append(req.ProvisioningKeys, k.Key)
	}
	var held [][]audit.Held
	for _, n := range q.lineage.Nodes {
		if !hasRole(n, iapmeshv1.Role_ROLE_AGGREGATOR) || n.State != iapmeshv1.NodeState_NODE_STATE_ACTIVE || n.Addresses.GetMesh() == "" {
			continue
		}
		asked := askedAggregator{Node: n.Id, Name: n.Name}
		summary, err := q.summarize(ctx, n, req)
		if err != nil {
			asked.Error = err.Error()
			q.Aggregators = append(q.Aggregators, asked)
			continue
		}
		q.Aggregators = append(q.Aggregators, asked)
		q.answers = append(q.answers, &answer{node: n, req: req, summary: summary})
		held = append(held, q.hold(n, summary))
		q.Keys = audit.MergeActivity(q.Keys, summary.Keys)
		req = &iapmeshv1.SummarizeRequest{ProvisioningKeys: req.ProvisioningKeys, From: req.From, To: req.To}
		for _, h := range audit.MergeHeld(held...) {
			req.Counted = append(req.Counted, &iapmeshv1.RunRanges{Node: h.Node, Run: h.Run.String(), Ranges: collect.RangesProto(h.Ranges)})
		}
	}
	q.held = audit.MergeHeld(held...)
	q.Completeness = audit.Judge(q.expected(), q.held, q.window)
}

func (q *inquiry) summarize(ctx context.Context, n *iapmeshv1.Node, req *iapmeshv1.SummarizeRequest) (audit.Summary, error) {
	client, err := q.c.connect()
	if err != nil {
		return audit.Summary{}, err
	}
	var summary audit.Summary
	err = client.CallNode(ctx, n.Addresses.Mesh, func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) error {
		resp, err := iapmeshv1.NewAuditServiceClient(conn).Summarize(ctx, req, opts...)
		if err != nil {
			return err
		}
		summary, err = collect.SummaryOf(resp.GetSummary(), req.ProvisioningKeys)
		return err
	})
	return summary, err
}

// hold verifies the notes that an aggregator shows with the nodes' public keys, which the leader knows.
func (q *inquiry) hold(aggregator *iapmeshv1.Node, s audit.Summary) []audit.Held {
	var out []audit.Held
	for _, r := range s.Runs {
		h := audit.Held{RunCoverage: r}
		key, err := nodeKey(q.lineage.Nodes, r.Node)
		if err == nil {
			h, err = audit.Hold(r, q.lineage.MeshId, key, aggregator.Id, aggregator.PublicKey)
		}
		if err != nil {
			q.Problems = append(q.Problems, fmt.Sprintf("aggregator %s, run %s of %s: %v", aggregator.Name, r.Run, r.Node, err))
		}
		out = append(out, h)
	}
	return out
}

func nodeKey(nodes []*iapmeshv1.Node, id string) (ed25519.PublicKey, error) {
	at := slices.IndexFunc(nodes, func(n *iapmeshv1.Node) bool { return n.Id == id })
	if at < 0 {
		return nil, fault.New(fault.NotFound, "the mesh has no node %s", id)
	}
	return nodes[at].PublicKey, nil
}

// expected are the nodes that could decide anything within the window: proxies, from when they enrolled until they were put out and say that
// they know.
func (q *inquiry) expected() []audit.Expected {
	var out []audit.Expected
	for _, n := range q.lineage.Nodes {
		if hasRole(n, iapmeshv1.Role_ROLE_PROXY) {
			out = append(out, expectedOf(n))
		}
	}
	return out
}

func expectedOf(n *iapmeshv1.Node) audit.Expected {
	e := audit.Expected{Node: n.Id, Since: n.EnrolledAt.AsTime()}
	switch n.State {
	case iapmeshv1.NodeState_NODE_STATE_QUARANTINED, iapmeshv1.NodeState_NODE_STATE_REVOKED:
		e.PutOut = n.StateSince.AsTime()
	case iapmeshv1.NodeState_NODE_STATE_DEPARTED: // which a node says when it is stopped, or who removes what is no more, or nobody
		departed := keyring.Node{State: keyring.NodeDeparted, Reason: n.Reason}
		e.PutOut, e.Gone = n.StateSince.AsTime(), !departed.DepartedUnheard()
	}
	return e
}

// prove fetches what each aggregator holds, proves it, and counts again.
func (q *inquiry) prove(ctx context.Context) {
	for _, a := range q.answers {
		at := slices.IndexFunc(q.Aggregators, func(o askedAggregator) bool { return o.Node == a.node.Id })
		report, differences, err := q.recount(ctx, a)
		if err != nil {
			q.Aggregators[at].Error = err.Error()
			continue
		}
		q.Aggregators[at].Proved, q.Aggregators[at].Differences = report.Runs, differences
		a.proved = len(differences) == 0
	}
}

func (q *inquiry) recount(ctx context.Context, a *answer) (audit.Report, []string, error) {
	nodes := q.lineage.Nodes
	recount, err := collect.NewRecount(q.c.trailVerifier(nodes, a.node), a.req, a.summary)
	if err != nil {
		return audit.Report{}, nil, err
	}
	if err := q.c.fetchTrail(ctx, a.node, &iapmeshv1.FetchRequest{}, recount.Read); err != nil {
		return audit.Report{}, nil, err
	}
	report, differences := recount.Result()
	return report, differences, nil
}

// proved reports whether all that was counted was counted again.
func (q *inquiry) proved() bool {
	return len(q.answers) > 0 && len(q.Problems) == 0 && !slices.ContainsFunc(q.answers, func(a *answer) bool { return !a.proved })
}

func (q *inquiry) runs() []audit.RunCoverage {
	var out []audit.RunCoverage
	for _, h := range q.held {
		out = append(out, h.RunCoverage)
	}
	return out
}

// fewEnded is how many nodes that ended are named one by one: of a fleet that scales there are hundreds a day.
const fewEnded = 5

// lines says how far the counts can be believed.
func (q *inquiry) lines(t *table, d *lineageTree) {
	t.line("Decisions from %s to %s.", clockText(q.window.From), clockText(q.window.To))
	for _, a := range q.Aggregators {
		if a.Error != "" {
			t.line("%s", t.paint(yellow, printable(fmt.Sprintf("Aggregator %s was not heard to the end: %s", a.Name, a.Error))))
		}
	}
	if len(q.Aggregators) == 0 {
		t.line("%s", t.paint(yellow, "The mesh has no aggregator: nodes keep their trails, and nobody has counted."))
		return
	}
	if len(q.lineage.Keys) > len(q.Keys) {
		t.line("%s", t.paint(yellow, fmt.Sprintf("The chain is longer: only %d keys around this one were counted.", len(q.Keys))))
	}
	for _, p := range q.Problems {
		t.line("%s", t.paint(red, printable(p)))
	}
	done := q.Completeness
	switch over := plural(uint64(done.Nodes), "node") + ", " + plural(done.Records, "record"); {
	case done.Nodes == 0:
		t.line("No proxy was there to decide anything.")
	case done.Complete:
		t.line("%s", t.paint(green, "complete: "+over+", up to "+clockText(done.UpTo)))
		for i, e := range done.Ended {
			if i == fewEnded {
				t.line("  and %d more that ended: -o json names them", len(done.Ended)-i)
				break
			}
			t.line("  %s", printable(d.endedText(e)))
		}
	default:
		t.line("%s", t.paint(yellow, "NOT complete: "+over+"; missing:"))
		for _, m := range done.Missing {
			t.line("  %s", printable(d.missingText(m)))
		}
	}
	for _, a := range q.Aggregators {
		proved := uint64(0)
		for _, r := range a.Proved {
			proved += r.Proved
		}
		switch {
		case len(a.Differences) > 0:
			t.line("%s", t.paint(red, fmt.Sprintf("What aggregator %s claims is not what its trail proves:", a.Name)))
			for _, text := range a.Differences {
				t.line("  %s", printable(text))
			}
		case a.Proved != nil:
			t.line("%s", t.paint(green, fmt.Sprintf("proved: %s of aggregator %s by the notes that their nodes signed, and counted again", plural(proved, "record"), a.Name)))
		}
	}
}
