package main

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/audit/collect"
	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// verified is what one aggregator's store was found to be.
type verified struct {
	Aggregator string            `json:"aggregator"`
	OK         bool              `json:"ok"`
	Runs       []audit.RunReport `json:"runs"`
}

func newAuditVerifyCommand(c *cli) *cobra.Command {
	var node, aggregator string
	cmd := &cobra.Command{
		Use: "verify", Short: "Fetch the stored trail and prove it on this machine",
		Long: `Fetch the trail that aggregators have stored, and prove it here: every record against the signed trees of the node that wrote it. The
aggregator is not trusted for any of it; the nodes' public keys come from the mesh's leader. Exit status 1 if a record was changed,
exchanged or taken away. Records of the last second are unproved in any trail that grows, which alone is no alarm.`,
		Example: "  iapmesh audit verify\n  iapmesh audit verify --node px-1 -o json",
		Args:    exactArgs(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.verifyAudit(cmd.Context(), node, aggregator) },
	}
	cmd.Flags().StringVar(&node, "node", "", "only the trail of this `NODE`, by id or name")
	cmd.Flags().StringVar(&aggregator, "aggregator", "", "ask this aggregator `NODE` only (default: all)")
	return cmd
}

func (c *cli) verifyAudit(ctx context.Context, node, aggregator string) error {
	status, err := c.status(ctx)
	if err != nil {
		return err
	}
	aggregators, err := pickAggregators(status, aggregator)
	if err != nil {
		return err
	}
	req := &iapmeshv1.FetchRequest{}
	if node != "" {
		n := findNode(status, node)
		if n == nil {
			return hint(fault.New(fault.NotFound, "no node %q", node), "iapmesh status lists the nodes.")
		}
		req.Node = n.Node.Id
	}
	waiting := c.await("the trail to be proved")
	defer waiting.stop()
	var results []verified
	var errs []error
	for _, a := range aggregators {
		report, err := c.fetchAndVerify(ctx, status, a, req)
		if err != nil {
			errs = append(errs, fmt.Errorf("aggregator %s (%s): %w", a.Name, a.Addresses.Mesh, err))
			continue
		}
		results = append(results, verified{Aggregator: a.Name, OK: report.OK(), Runs: report.Runs})
	}
	waiting.stop()
	if err := c.reportVerified(status, results); err != nil {
		return err
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, r := range results {
		if !r.OK {
			return hint(errors.New("the stored trail is not what the nodes wrote"), "The findings above say where. Keep the store as it is, and compare with the nodes' own spools.")
		}
	}
	return nil
}

func (c *cli) fetchAndVerify(ctx context.Context, status *iapmeshv1.Status, a *iapmeshv1.Node, req *iapmeshv1.FetchRequest) (audit.Report, error) {
	var nodes []*iapmeshv1.Node
	for _, n := range status.Nodes {
		nodes = append(nodes, n.Node)
	}
	v := c.trailVerifier(nodes, a)
	var report audit.Report
	err := c.fetchTrail(ctx, a, req, func(recv func() (*iapmeshv1.FetchResponse, error)) error {
		var err error
		report, err = collect.VerifyFetch(recv, v)
		return err
	})
	return report, err
}

// trailVerifier proves what an aggregator holds with the public keys of the mesh's nodes.
func (c *cli) trailVerifier(nodes []*iapmeshv1.Node, a *iapmeshv1.Node) *audit.Verifier {
	return &audit.Verifier{
		NodeKey:    func(id string) (ed25519.PublicKey, error) { return nodeKey(nodes, id) },
		Aggregator: a.Id, AggregatorKey: a.PublicKey,
	}
}

// fetchTrail fetches what an aggregator holds; read reads it to its end.
func (c *cli) fetchTrail(ctx context.Context, a *iapmeshv1.Node, req *iapmeshv1.FetchRequest, read func(func() (*iapmeshv1.FetchResponse, error)) error) error {
	client, err := c.connect()
	if err != nil {
		return err
	}
	return client.CallNode(ctx, a.Addresses.Mesh, func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) error {
		s, err := iapmeshv1.NewAuditServiceClient(conn).Fetch(ctx, req, opts...)
		if err != nil {
			return err
		}
		return read(s.Recv)
	})
}

func (c *cli) reportVerified(status *iapmeshv1.Status, results []verified) error {
	if c.output != "table" {
		data, err := json.Marshal(results)
		if err != nil {
			return fault.New(fault.Internal, "encode output: %w", err)
		}
		return c.printJSON(data)
	}
	t := c.newTable()
	for _, r := range results {
		t.line("aggregator %s", r.Aggregator)
		t.head("NODE", "RUN", "RECORDS", "PROVED", "COUNTERSIGNED", "GAPS", "FINDINGS")
		for _, run := range r.Runs {
			name := run.Node
			if n := findNode(status, run.Node); n != nil {
				name = n.Node.Name
			}
			findings := cell{text: "none", style: green}
			if len(run.Findings) > 0 {
				findings = cell{text: fmt.Sprint(len(run.Findings)), style: yellow}
			}
			t.row(name, run.Run, run.Records, run.Proved, run.Countersigned, run.Gaps, findings)
		}
		for _, f := range (audit.Report{Runs: r.Runs}).Findings() {
			style := dim
			if f.Alarming() {
				style = red
			}
			t.line("  %s", t.paint(style, printable(f.String())))
		}
	}
	return t.flush(c.stdout)
}
