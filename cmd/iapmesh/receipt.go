package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// receiptLines says who has a change and who lags.
func receiptLines(t *table, r *iapmeshv1.Receipt) {
	if r == nil {
		return
	}
	all := len(r.Acknowledged) + len(r.Lagging)
	state := cell{text: fmt.Sprintf("revision %s: %d of %d nodes have it", revisionText(r.Revision), len(r.Acknowledged), all), line: true, style: green}
	if !r.Complete {
		state.style = yellow
	}
	t.rows = append(t.rows, []cell{state})
	now := time.Now()
	for _, l := range r.Lagging {
		live := "silent: it gets the change before it serves again"
		if l.Live {
			live = "live"
		}
		t.line("  lagging: %s (%s) at revision %s, last heard %s, %s", l.Name, l.Region, revisionText(l.Revision), stampText(l.Since, now), live)
	}
}

// followReceipt shows region by region how a change arrives, until every live node has it or ctx ends.
func (c *cli) followReceipt(ctx context.Context, at *iapmeshv1.Revision) (*iapmeshv1.Receipt, error) {
	var last *iapmeshv1.Receipt
	live := terminal(c.stderr)
	shown, height := "", 0
	req := &iapmeshv1.WatchReceiptRequest{Revision: at}
	err := stream(ctx, c, iapmeshv1.NewClusterServiceClient, iapmeshv1.ClusterServiceClient.WatchReceipt, req, func(m *iapmeshv1.WatchReceiptResponse) error {
		last = m.Receipt
		lines := regionLines(m.Receipt)
		text := strings.Join(lines, "\n")
		if text == shown {
			return nil
		}
		if live && height > 0 {
			fmt.Fprintf(c.stderr, "\x1b[%dA\x1b[J", height)
		}
		shown, height = text, len(lines)
		_, err := fmt.Fprintln(c.stderr, text)
		return err
	})
	if err == nil && last != nil && !last.Complete {
		err = errors.New("the leader ended the receipt before every live node had the change")
	}
	if err != nil {
		return last, hint(fmt.Errorf("wait for revision %s: %w", revisionText(at), err), "The change itself is committed; iapmesh status shows who lags.")
	}
	return last, nil
}

// regionLines is one line a region: who has it, and who does not.
func regionLines(r *iapmeshv1.Receipt) []string {
	type count struct {
		have, all int
		waiting   []string
	}
	regions := map[string]*count{}
	of := func(region string) *count {
		if regions[region] == nil {
			regions[region] = &count{}
		}
		return regions[region]
	}
	for _, a := range r.Acknowledged {
		of(a.Region).have++
		of(a.Region).all++
	}
	for _, l := range r.Lagging {
		n := of(l.Region)
		n.all++
		name := l.Name
		if !l.Live {
			name += " (silent)"
		}
		n.waiting = append(n.waiting, name)
	}
	var lines []string
	for _, region := range slices.Sorted(maps.Keys(regions)) {
		n := regions[region]
		line := fmt.Sprintf("%-16s %d/%d", region, n.have, n.all)
		if len(n.waiting) > 0 {
			line += "  waiting for " + strings.Join(n.waiting, ", ")
		}
		lines = append(lines, line)
	}
	return lines
}
