package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func newReceiptCommand(c *cli) *cobra.Command {
	cmd := group("receipt", "When a rotation or revocation was in effect, and where", newReceiptListCommand(c), newReceiptShowCommand(c))
	cmd.Long = `Each rotation and revocation leaves a receipt: what was changed, when it was committed, which nodes had to know, when every live node
had it, and when everybody had. Receipts are kept for 90 days, at most 1,000 and 16 MiB of them: the oldest complete
ones go first.`
	return cmd
}

func newReceiptListCommand(c *cli) *cobra.Command {
	req := &iapmeshv1.ListReceiptsRequest{}
	since := ""
	cmd := &cobra.Command{
		Use: "list", Short: "List the receipts, newest first",
		Example: "  iapmesh receipt list --target okta/00u1x2 --since 24h\n  iapmesh receipt list -o json | jq '.receipts[] | select(.everywhere_at | not)'",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if req.Since, err = parseTime("since", since, time.Now()); err != nil {
				return err
			}
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewClusterServiceClient, iapmeshv1.ClusterServiceClient.ListReceipts, req)
			if err != nil {
				return err
			}
			return c.print(resp, func(t *table) { receiptRows(t, resp.Receipts) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Target, "target", "", "receipts of this `TARGET`: a user, session, key, signing key, node or administrator, or part of it")
	f.StringVar(&since, "since", "", "receipts from this `TIME` on, or from so long ago on")
	f.Uint32Var(&req.Limit, "limit", 100, "at most so many, up to 1000")
	return cmd
}

func receiptRows(t *table, receipts []*iapmeshv1.ReceiptSummary) {
	now := time.Now()
	t.head("RECEIPT", "AT", "ACTION", "TARGET", "BY", "NODES", "EVERY LIVE NODE", "EVERYWHERE")
	for _, r := range receipts {
		nodes := fmt.Sprint(r.Nodes)
		if r.State != iapmeshv1.ReceiptState_RECEIPT_STATE_OPEN {
			nodes = fmt.Sprintf("%d/%d", r.Acknowledged, r.Nodes)
		}
		if r.Gone > 0 {
			nodes += fmt.Sprintf(", %d gone", r.Gone)
		}
		t.row(r.Id, stampText(r.At, now), r.Action, r.Target, r.By, nodes, afterCell(r.LiveAt, r.At, r.Unfinished), afterCell(r.EverywhereAt, r.At, r.Unfinished))
	}
}

// afterCell says how long after the change something came about.
func afterCell(at, since *timestamppb.Timestamp, unfinished bool) cell {
	switch {
	case unfinished:
		return cell{text: "unfinished", style: red}
	case at == nil:
		return cell{text: "not yet", style: yellow}
	}
	return cell{text: "after " + spanText(at.AsTime().Sub(since.AsTime())), style: green}
}

func newReceiptShowCommand(c *cli) *cobra.Command {
	wait := waitNot
	cmd := &cobra.Command{
		Use: "show RECEIPT", Short: "Show when a change was committed, when it was in effect everywhere, and who lags",
		Long: `Show one receipt: when the change was committed, when every live node had it, when everybody had it, and who lags and since when. For a
node that lags it says by when its routes that set max_staleness refuse by themselves, at the latest, and which routes go on by the old view.
Nodes that left, or were cut off, before they had it are named; nobody waits for them.`,
		Example: "  iapmesh receipt show r-0000000000000000000g\n  iapmesh receipt show r-0000000000000000000g --wait=all --timeout 10m",
		Args:    exactArgs("RECEIPT"),
		RunE:    func(cmd *cobra.Command, args []string) error { return c.showReceipt(cmd.Context(), args[0], wait) },
	}
	wait.flag(cmd, "first wait until every live node has it")
	return cmd
}

func (c *cli) showReceipt(ctx context.Context, id string, wait waitFor) error {
	get := func() (*iapmeshv1.GetReceiptResponse, error) {
		resp, err := unary(ctx, c, iapmeshv1.NewClusterServiceClient, iapmeshv1.ClusterServiceClient.GetReceipt, &iapmeshv1.GetReceiptRequest{Id: id})
		if fault.Is(err, fault.NotFound) {
			err = hint(err, "iapmesh receipt list shows those that are kept.")
		}
		return resp, err
	}
	resp, err := get()
	if err != nil {
		return err
	}
	if wait != waitNot {
		if _, err := c.awaitReceipt(ctx, resp.Receipt, wait); err != nil {
			return err
		}
		if resp, err = get(); err != nil {
			return err
		}
	}
	return c.print(resp, func(t *table) { receiptTable(t, resp) })
}

func receiptTable(t *table, resp *iapmeshv1.GetReceiptResponse) {
	r := resp.Record
	t.line("receipt %s: %s %s, by %s", r.Id, r.Action, r.Target, r.By)
	if r.Reason != "" {
		t.line("reason           %s", r.Reason)
	}
	t.line("committed        %s, revision %s", momentText(r.At), revisionText(r.Revision))
	t.line("every live node  %s", reachedText(r.LiveAt, r.At))
	every := reachedText(r.EverywhereAt, r.At)
	if n := len(resp.Receipt.GetLagging()); n > 0 {
		every += fmt.Sprintf(": %d of %d nodes lag", n, n+len(resp.Receipt.GetAcknowledged()))
	}
	t.line("everywhere       %s", every)
	t.line("")
	t.head("REGION", "NODE", "HAS IT", "AFTER")
	lagging, heard := map[string]bool{}, map[string]*iapmeshv1.Acknowledgement{}
	for _, l := range resp.Receipt.GetLagging() {
		lagging[l.NodeId] = true
	}
	for _, a := range resp.Receipt.GetAcknowledged() {
		heard[a.NodeId] = a
	}
	for _, n := range r.Nodes {
		has, after := cell{text: "yes", style: green}, ""
		if n.AcknowledgedAt == nil {
			n.AcknowledgedAt = heard[n.NodeId].GetAt() // heard, and not written yet
		}
		switch {
		case lagging[n.NodeId]:
			has = cell{text: "lagging", style: red}
		case n.AcknowledgedAt != nil:
			has.text, after = momentText(n.AcknowledgedAt), spanText(max(n.AcknowledgedAt.AsTime().Sub(r.At.AsTime()), 0))
		case n.GoneAt != nil:
			has = cell{text: "never: " + enumText(n.Gone, "NODE_STATE_") + " at " + momentText(n.GoneAt), style: dim}
		case heard[n.NodeId] == nil:
			has = cell{text: "no longer asked", style: dim}
		}
		t.row(n.Region, n.Name, has, after)
	}
	laggardLines(t, resp.Receipt)
}

func momentText(s *timestamppb.Timestamp) string {
	return s.AsTime().UTC().Format("2006-01-02T15:04:05.000Z")
}

func reachedText(at, since *timestamppb.Timestamp) string {
	if at == nil {
		return "not yet"
	}
	return momentText(at) + ", after " + spanText(at.AsTime().Sub(since.AsTime()))
}
