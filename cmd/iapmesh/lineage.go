package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/collect"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// lineageFlags select what is counted.
type lineageFlags struct {
	since    time.Duration
	from, to string
	proof    bool
}

func newKeyLineageCommand(c *cli) *cobra.Command {
	var f lineageFlags
	cmd := &cobra.Command{
		Use: "lineage KEY", Short: "Show what a key touched: its successors, nodes, live sessions and decisions",
		Long: `Show what a key touched: the keys before and after it, the nodes that joined under each, the live sessions that these minted, and the
decisions that stand on it, by route, as the aggregators have them.

Whether the decisions are all there is not the aggregators' to say: each node signs, second by second, how long its trail is, and those
signatures are checked here, for every proxy that could decide anything in that span. What is missing is named: which node, from when,
which records. That an aggregator has counted right what it holds, --proof proves: the trail itself is fetched, proved as "iapmesh
audit verify" does, and counted again; exit status 1 if it is not what the aggregators claim.

Live sessions are what the nodes report: how many, and the newest by name. Where that leaves open whether two nodes mean the same
session, the number is a range.

Times are RFC 3339 (2026-11-24T09:00:00Z) or how long ago (15m, 36h).`,
		Example: `  iapmesh key lineage us-east-proxies
  iapmesh key lineage us-east-proxies --since 72h --proof
  iapmesh key lineage abcdefghijklmnop --from 2026-11-24T09:00:00Z --to 2026-11-24T12:00:00Z -o json`,
		Args: exactArgs("KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("since") && f.from+f.to != "" {
				return usagef("--since or --from and --to, not both")
			}
			if f.since <= 0 {
				return usagef("--since %v: want a time above zero", f.since)
			}
			return c.keyLineage(cmd.Context(), args[0], &f)
		},
	}
	flags := cmd.Flags()
	flags.DurationVar(&f.since, "since", 24*time.Hour, "count the decisions of so `LONG`")
	flags.StringVar(&f.from, "from", "", "count decisions from this `TIME` on")
	flags.StringVar(&f.to, "to", "", "count decisions before this `TIME` (default: now)")
	flags.BoolVar(&f.proof, "proof", false, "fetch the trail, prove it, and count again on this machine")
	return cmd
}

func (c *cli) keyLineage(ctx context.Context, ref string, f *lineageFlags) error {
	resp, err := unary(ctx, c, iapmeshv1.NewLineageServiceClient, iapmeshv1.LineageServiceClient.GetLineage, &iapmeshv1.GetLineageRequest{Key: ref})
	if err != nil {
		if fault.Is(err, fault.NotFound) {
			err = hint(err, "iapmesh key list shows them all.")
		}
		return err
	}
	l := resp.Lineage
	window, err := f.window(l.At.AsTime())
	if err != nil {
		return err
	}
	inquiry := newInquiry(c, l, window)
	waiting := c.await("the aggregators")
	inquiry.ask(ctx)
	if f.proof {
		inquiry.prove(ctx)
	}
	waiting.stop()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.printLineage(l, inquiry, f.proof); err != nil {
		return err
	}
	switch {
	case f.proof && !inquiry.proved():
		return hint(errors.New("what the aggregators claim is not proved"), "The differences above say where. Keep the stores as they are, and compare with the nodes' own spools.")
	case len(inquiry.Problems) > 0:
		return hint(errors.New("an aggregator shows what its nodes did not sign"), "Count again with --proof, and keep the stores as they are.")
	}
	return nil
}

// window is the span of time that is asked for; now is the leader's, whose clock the mesh goes by.
func (f *lineageFlags) window(now time.Time) (audit.Window, error) {
	w := audit.Window{From: now.Add(-f.since), To: now, Slack: grows}
	from, err := parseTime("from", f.from, now)
	if err != nil {
		return w, err
	}
	to, err := parseTime("to", f.to, now)
	if err != nil {
		return w, err
	}
	if from != nil {
		w.From = from.AsTime()
	}
	if to != nil {
		w.To, w.Slack = to.AsTime(), 0
		if w.To.After(now) {
			w.To, w.Slack = now, grows
		}
		if from == nil {
			w.From = w.To.Add(-f.since)
		}
	}
	if !w.From.Before(w.To) {
		return w, usagef("--from %s is not before --to %s", clockText(w.From), clockText(w.To))
	}
	return w, nil
}

// grows is how far behind now a trail may be that nothing keeps from growing: as long as a node that is silent counts as live.
const grows = 15 * time.Second

// lineageOutput is what -o json and yaml print.
type lineageOutput struct {
	Lineage      json.RawMessage    `json:"lineage"`
	From         time.Time          `json:"from"`
	To           time.Time          `json:"to"`
	Activity     json.RawMessage    `json:"activity"`
	Completeness audit.Completeness `json:"completeness"`
	Aggregators  []askedAggregator  `json:"aggregators"`
	Problems     []string           `json:"problems,omitempty"`
	Proof        *proofOutput       `json:"proof,omitempty"`
}

type proofOutput struct {
	OK bool `json:"ok"`
}

func (c *cli) printLineage(l *iapmeshv1.Lineage, q *inquiry, proof bool) error {
	if c.output == "table" {
		t := c.newTable()
		d := newLineageTree(l)
		d.activity = q.Keys
		t.tree(d.root())
		t.line("")
		d.liveLines(t)
		q.lines(t, d)
		return t.flush(c.stdout)
	}
	out := lineageOutput{From: q.window.From, To: q.window.To, Completeness: q.Completeness, Aggregators: q.Aggregators, Problems: q.Problems}
	var err error
	if out.Lineage, err = messageJSON(l); err != nil {
		return err
	}
	if out.Activity, err = messageJSON(collect.SummaryProto(audit.Summary{Keys: q.Keys, Runs: q.runs()})); err != nil {
		return err
	}
	if proof {
		out.Proof = &proofOutput{OK: q.proved()}
	}
	data, err := json.Marshal(out)
	if err != nil {
		return fault.New(fault.Internal, "encode output: %w", err)
	}
	return c.printJSON(data)
}

// missingText says what is missing, as a sentence.
func (d *lineageTree) missingText(m audit.Missing) string {
	name := d.placeName(m.Node)
	span := ""
	switch {
	case !m.From.IsZero() && !m.To.IsZero():
		span = ", between " + clockText(m.From) + " and " + clockText(m.To)
	case !m.To.IsZero():
		span = ", before " + clockText(m.To)
	case !m.From.IsZero():
		span = ", from " + clockText(m.From)
	}
	records := fmt.Sprintf("records %d to %d", m.FromSeq, m.ToSeq-1)
	switch m.Kind {
	case audit.MissingNode:
		return fmt.Sprintf("node %s: never shipped anything%s%s", name, span, d.leftText(m))
	case audit.MissingAfter:
		return fmt.Sprintf("node %s: nothing after %s%s", name, clockText(m.From), d.leftText(m))
	case audit.MissingRecords:
		return fmt.Sprintf("node %s, run %s: %s are missing%s", name, m.Run, records, span)
	case audit.MissingRun:
		return fmt.Sprintf("node %s: the whole run %s, of %d records, is missing%s", name, m.Run, m.ToSeq, span)
	case audit.MissingGap:
		if m.Records == 0 {
			return fmt.Sprintf("node %s, run %s: %s", name, m.Run, m.Text)
		}
		route := ""
		if m.Route != "" {
			route = ", route " + m.Route
		}
		return fmt.Sprintf("node %s: gap of %d records%s%s: %s", name, m.Records, route, span, m.Text)
	case audit.MissingFork:
		return fmt.Sprintf("node %s, run %s: it showed two histories, and one was refused%s", name, m.Run, span)
	case audit.MissingProof:
		return fmt.Sprintf("node %s, run %s: nothing proves %s%s", name, m.Run, records, span)
	}
	return fmt.Sprintf("node %s: %s%s", name, m.Kind, span)
}

// endedText says how near to its end a node's trail is known.
func (d *lineageTree) endedText(e audit.Ended) string {
	return fmt.Sprintf("node %s: up to %s, %v before it departed", d.placeName(e.Node), clockText(e.UpTo), max(time.Millisecond, e.End.Sub(e.UpTo).Round(time.Millisecond)))
}

func (d *lineageTree) placeName(node string) string {
	name := d.nodeName(node)
	if n := d.names[node]; n != nil {
		name += " (" + n.Region + ")"
	}
	return name
}

// leftText says until when a node that was put out could have written.
func (d *lineageTree) leftText(m audit.Missing) string {
	n := d.names[m.Node]
	if n == nil {
		return ""
	}
	e, state := expectedOf(n), enumText(n.State, "NODE_STATE_")
	switch {
	case e.Gone && e.PutOut.Equal(m.To):
		return fmt.Sprintf(", and it %s only at %s", became(state), clockText(e.PutOut))
	case !e.PutOut.IsZero() && !e.Gone:
		return fmt.Sprintf("; it %s at %s, and has not said that it knows", became(state), clockText(e.PutOut))
	}
	return ""
}

// became turns a state into what happened.
func became(state string) string {
	if state == "departed" {
		return "departed"
	}
	return "was " + state
}
