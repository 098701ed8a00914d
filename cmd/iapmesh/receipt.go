package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// waitFor is the flag --wait: for whom a command waits until they have what it changed.
type waitFor string

const (
	waitNot  waitFor = ""
	waitLive waitFor = "live"
	waitAll  waitFor = "all"
)

// defaultPatience bounds --wait where --timeout is not given: a live node that does not take a change in that time needs a look.
const defaultPatience = 2 * time.Minute

// Set implements pflag.Value.
func (w *waitFor) Set(s string) error {
	switch s {
	case "live", "true":
		*w = waitLive
	case "all":
		*w = waitAll
	case "false":
		*w = waitNot
	default:
		return fmt.Errorf("%.40q: want live or all", s)
	}
	return nil
}

// String implements pflag.Value.
func (w *waitFor) String() string { return string(*w) }

// Type implements pflag.Value.
func (w *waitFor) Type() string { return "WHOM" }

// flag adds --wait; until says what the command then waits for.
func (w *waitFor) flag(cmd *cobra.Command, until string) {
	cmd.Flags().Var(w, "wait", until+"; `WHOM` is live, or with --wait=all every node, silent ones too. It gives up after --timeout, if given, else 2m")
	cmd.Flags().Lookup("wait").NoOptDefVal = string(waitLive)
}

// receiptLines says who has a change and who lags.
func receiptLines(t *table, r *iapmeshv1.Receipt) {
	if r == nil {
		return
	}
	all := len(r.Acknowledged) + len(r.Lagging)
	state := cell{text: fmt.Sprintf("revision %s: %d of %d nodes have it", revisionText(r.Revision), len(r.Acknowledged), all), line: true, style: green}
	if r.Id != "" {
		state.text += ", receipt " + r.Id
	}
	if !r.Complete {
		state.style = yellow
	}
	t.rows = append(t.rows, []cell{state})
	laggardLines(t, r)
}

// laggardLines says what goes on at the nodes that lag.
func laggardLines(t *table, r *iapmeshv1.Receipt) {
	now := time.Now()
	for _, l := range r.GetLagging() {
		live := "silent"
		if l.Live {
			live = "live"
		}
		heard := "last heard " + stampText(l.Since, now)
		if l.Since == nil {
			heard = "not heard by this leader"
		}
		t.line("  lagging: %s (%s) at revision %s, %s, %s, its view at least %s old", l.Name, l.Region, revisionText(l.Revision), heard, live,
			spanText(max(now.Sub(l.AsOf.AsTime()), 0)))
		var f fate
		f.add(l)
		for _, text := range f.lines(now) {
			t.line("    %s", text)
		}
	}
	if r.GetUnfinished() {
		t.line("  part of the change is still to be made: do it again")
	}
}

// fate says which routes stop by themselves at a place that lags, and which go on by its old view.
type fate struct {
	stops, goOn []string
	by          time.Time
	leftOut     uint32
	unknown     bool
}

func (f *fate) add(l *iapmeshv1.Laggard) {
	merge := func(into, names []string) []string {
		into = append(slices.Clone(into), names...)
		slices.Sort(into)
		return slices.Compact(into)
	}
	f.stops, f.goOn = merge(f.stops, l.RoutesThatStop), merge(f.goOn, l.RoutesThatGoOn)
	f.leftOut = max(f.leftOut, l.RoutesLeftOut)
	f.unknown = f.unknown || l.OlderConfiguration
	if by := l.StopsBy.AsTime(); l.StopsBy != nil && by.After(f.by) {
		f.by = by
	}
}

// latest is the bound in whole seconds, rounded up: it is a promise.
func (f *fate) latest() time.Time { return f.by.UTC().Add(time.Second - 1).Truncate(time.Second) }

func (f *fate) lines(now time.Time) []string {
	var out []string
	if len(f.stops) > 0 {
		verb, when := "refuses", "in "+spanText(f.by.Sub(now))
		if len(f.stops) > 1 {
			verb = "refuse"
		}
		if !f.by.After(now) {
			when = spanText(now.Sub(f.by)) + " ago"
		}
		out = append(out, fmt.Sprintf("%s %s from %s on at the latest (%s)", strings.Join(f.stops, ", "), verb, f.latest().Format(time.RFC3339), when))
	}
	if len(f.goOn) > 0 {
		out = append(out, "goes on by its old view: "+strings.Join(f.goOn, ", "))
	}
	if f.leftOut > 0 {
		out = append(out, fmt.Sprintf("and %d further routes", f.leftOut))
	}
	if f.unknown {
		out = append(out, "its routes may be from before the last apply: which of them stop is not known")
	}
	return out
}

// awaitReceipt shows region by region how a change arrives, until every node that is waited for has it, time is over or ctx ends.
func (c *cli) awaitReceipt(ctx context.Context, r *iapmeshv1.Receipt, wait waitFor) (*iapmeshv1.Receipt, error) {
	if wait == waitNot || r == nil {
		return r, nil
	}
	patience := c.patience
	if patience == 0 {
		patience = defaultPatience
	}
	client, err := c.connect()
	if err != nil {
		return r, err
	}
	defer func(before time.Duration) { client.Patience = before }(client.Patience)
	client.Patience = patience // for the next leader, too
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	last := r
	live := terminal(c.stderr)
	shown, height := "", 0
	req := &iapmeshv1.WatchReceiptRequest{Revision: r.Revision, Id: r.Id, Everywhere: wait == waitAll}
	err = stream(ctx, c, iapmeshv1.NewClusterServiceClient, iapmeshv1.ClusterServiceClient.WatchReceipt, req, func(m *iapmeshv1.WatchReceiptResponse) error {
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
	whom, done := "every live node", last.GetComplete()
	if wait == waitAll {
		whom, done = "every node", last.GetEverywhere()
	}
	if err == nil && !done {
		err = fmt.Errorf("the leader ended the receipt before %s had the change", whom)
	}
	// The server knows the deadline, too, and may end the stream a moment before it is over here.
	deadline, _ := ctx.Deadline()
	if err != nil && !errors.Is(ctx.Err(), context.Canceled) && time.Until(deadline) < time.Second/5 {
		err = fault.New(fault.Unavailable, "not within %v did %s have it%s", patience, whom, awaited(last, wait))
	}
	if err != nil {
		look := "iapmesh status"
		if last.GetId() != "" {
			look = "iapmesh receipt show " + last.Id
		}
		return last, hint(fmt.Errorf("wait for revision %s: %w", revisionText(last.GetRevision()), err), "The change itself is committed; %s says who lags.", look)
	}
	return last, nil
}

// awaited names the first nodes that are waited for: not the silent ones where live ones alone are.
func awaited(r *iapmeshv1.Receipt, wait waitFor) string {
	const most = 5
	var live, silent []string
	for _, l := range r.GetLagging() {
		if l.Live {
			live = append(live, l.Name+" ("+l.Region+")")
		} else {
			silent = append(silent, l.Name+" ("+l.Region+", silent)")
		}
	}
	names, why := live, ": "
	switch {
	case wait == waitAll:
		names = append(names, silent...)
	case len(live) == 0: // in its first seconds a leader takes nobody for silent
		names, why = silent, ", as far as is known; those that lag may be gone: "
	}
	if more := len(names) - most; more > 0 {
		names = append(names[:most:most], fmt.Sprintf("and %d more", more))
	}
	switch {
	case len(names) > 0:
		return why + strings.Join(names, ", ")
	case r.GetUnfinished():
		return ": part of the change is still to be made: do it again"
	}
	return ""
}

// regionLines is one line a region: who has it, who does not, and what stops there by itself.
func regionLines(r *iapmeshv1.Receipt) []string {
	type count struct {
		have, all int
		waiting   []string
		fate      fate
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
		n.fate.add(l)
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
			if texts := n.fate.short(); texts != "" {
				line += "; " + texts
			}
		}
		lines = append(lines, line)
	}
	return lines
}

// short is the fate on one line that stays as it is while time goes by.
func (f *fate) short() string {
	var out []string
	if len(f.stops) > 0 {
		out = append(out, fmt.Sprintf("%s refused from %s on at the latest", strings.Join(f.stops, ", "), f.latest().Format(time.TimeOnly+"Z")))
	}
	if len(f.goOn) > 0 {
		out = append(out, "goes on by its old view: "+strings.Join(f.goOn, ", "))
	}
	if f.unknown {
		out = append(out, "its routes may be from before the last apply")
	}
	return strings.Join(out, "; ")
}
