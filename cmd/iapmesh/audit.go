package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/iapmesh/iapmesh/audit"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func newAuditCommand(c *cli) *cobra.Command {
	cmd := group("audit", "The trail of decisions, and the proof that it is whole", newAuditTailCommand(c), newAuditQueryCommand(c), newAuditVerifyCommand(c))
	cmd.Long = `The trail of decisions, sign-ins and administrators' calls, as aggregators have collected it from the nodes. With -o json each record
is one line: {"id": "node/run/seq", "record": {…as the node wrote it…}}.`
	return cmd
}

// auditFilter are the flags that select records.
type auditFilter struct {
	req        iapmeshv1.QueryRequest
	from, to   string
	node, key  string
	aggregator string
}

func (f *auditFilter) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.req.User, "user", "", "records of this `SUBJECT` or e-mail address")
	flags.StringVar(&f.req.Route, "route", "", "records of this `ROUTE`")
	flags.StringVar(&f.req.Decision, "decision", "", "`DECISION`: allow or deny")
	flags.StringVar(&f.key, "key", "", "decisions that stand on this provisioning `KEY`, by id or name")
	flags.StringVar(&f.node, "node", "", "records of this `NODE`, by id or name")
	flags.StringVar(&f.req.Kind, "kind", "", "`KIND`: decision, outcome, sign_in, sign_out, join, rotation, revocation, admin, gap, refusals or run")
	flags.StringVar(&f.req.RequestId, "request", "", "records of this request `ID`")
	flags.StringVar(&f.aggregator, "aggregator", "", "ask this aggregator `NODE` only (default: all)")
}

func newAuditTailCommand(c *cli) *cobra.Command {
	var f auditFilter
	cmd := &cobra.Command{
		Use: "tail", Short: "Show the newest records; with --follow, new ones as they arrive",
		Example: "  iapmesh audit tail --decision deny --follow",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.req.Newest = true
			return c.queryAudit(cmd.Context(), &f)
		},
	}
	f.register(cmd)
	cmd.Flags().Uint32VarP(&f.req.Limit, "lines", "n", 20, "how many of the newest")
	cmd.Flags().BoolVarP(&f.req.Follow, "follow", "F", false, "go on with new ones")
	return cmd
}

func newAuditQueryCommand(c *cli) *cobra.Command {
	var f auditFilter
	cmd := &cobra.Command{
		Use: "query", Short: "Show the records that match, oldest first",
		Long:    "Show the records that match, oldest first. Times are RFC 3339 (2026-11-24T09:00:00Z) or how long ago (15m, 36h).",
		Example: "  iapmesh audit query --user ana@example.com --from 24h\n  iapmesh audit query --key us-east-proxies --decision allow -o json",
		Args:    exactArgs(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.queryAudit(cmd.Context(), &f) },
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.from, "from", "", "records from this `TIME` on")
	cmd.Flags().StringVar(&f.to, "to", "", "records before this `TIME`")
	cmd.Flags().Uint32Var(&f.req.Limit, "limit", 0, "at most so many; 0: all")
	return cmd
}

// parseTime reads a moment: RFC 3339, or how long before now.
func parseTime(flag, text string, now time.Time) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return timestamppb.New(at), nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return timestamppb.New(now.Add(-ago)), nil
	}
	return nil, usagef("--%s %.40q: want a time such as 2026-11-24T09:00:00Z, or how long ago, such as 15m", flag, text)
}

func (c *cli) queryAudit(ctx context.Context, f *auditFilter) error {
	if d := f.req.Decision; d != "" && d != audit.Allow && d != audit.Deny {
		return usagef("--decision %.40q: want allow or deny", d)
	}
	now := time.Now()
	var err error
	if f.req.From, err = parseTime("from", f.from, now); err != nil {
		return err
	}
	if f.req.To, err = parseTime("to", f.to, now); err != nil {
		return err
	}
	status, err := c.status(ctx)
	if err != nil {
		return err
	}
	aggregators, err := pickAggregators(status, f.aggregator)
	if err != nil {
		return err
	}
	if f.node != "" {
		n := findNode(status, f.node)
		if n == nil {
			return hint(fault.New(fault.NotFound, "no node %q", f.node), "iapmesh status lists the nodes.")
		}
		f.req.Node = n.Node.Id
	}
	if f.key != "" {
		key, err := c.getKey(ctx, f.key)
		if err != nil {
			return err
		}
		f.req.ProvisioningKey = key.Key.Id
	}
	names := map[string]string{}
	for _, n := range status.Nodes {
		names[n.Node.Id] = n.Node.Name
	}
	records := &recordPrinter{c: c, names: names, paint: painter(terminal(c.stdout))}
	if len(aggregators) == 1 || f.req.Follow {
		return c.followAggregators(ctx, aggregators, &f.req, records.print)
	}
	return c.mergeAggregators(ctx, aggregators, &f.req, records.print)
}

func findNode(s *iapmeshv1.Status, ref string) *iapmeshv1.NodeStatus {
	i := slices.IndexFunc(s.Nodes, func(n *iapmeshv1.NodeStatus) bool { return n.Node.Id == ref })
	if i < 0 {
		i = slices.IndexFunc(s.Nodes, func(n *iapmeshv1.NodeStatus) bool { return n.Node.Name == ref })
	}
	if i < 0 {
		return nil
	}
	return s.Nodes[i]
}

func hasRole(n *iapmeshv1.Node, role iapmeshv1.Role) bool { return slices.Contains(n.Roles, role) }

func trusted(n *iapmeshv1.Node) bool {
	return (&keyring.Node{State: state.NodeStateOf(n.State)}).Trusted()
}

// pickAggregators are the nodes that hold trails: the named one, or all that are trusted.
func pickAggregators(s *iapmeshv1.Status, ref string) ([]*iapmeshv1.Node, error) {
	if ref != "" {
		n := findNode(s, ref)
		if n == nil || !hasRole(n.Node, iapmeshv1.Role_ROLE_AGGREGATOR) {
			return nil, fault.New(fault.NotFound, "no aggregator %q", ref)
		}
		return []*iapmeshv1.Node{n.Node}, nil
	}
	var out []*iapmeshv1.Node
	for _, n := range s.Nodes {
		if hasRole(n.Node, iapmeshv1.Role_ROLE_AGGREGATOR) && n.Node.State == iapmeshv1.NodeState_NODE_STATE_ACTIVE && n.Node.Addresses.GetMesh() != "" {
			out = append(out, n.Node)
		}
	}
	if len(out) == 0 {
		return nil, hint(fault.New(fault.NotFound, "the mesh has no aggregator"), "Nodes keep their trails until there is one: run a node with --roles aggregator.")
	}
	return out, nil
}

// askAggregator streams the answer of one aggregator.
func (c *cli) askAggregator(ctx context.Context, n *iapmeshv1.Node, req *iapmeshv1.QueryRequest, each func(*iapmeshv1.QueryResponse) error) error {
	err := c.client.CallNode(ctx, n.Addresses.Mesh, func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) error {
		s, err := iapmeshv1.NewAuditServiceClient(conn).Query(ctx, req, opts...)
		if err != nil {
			return err
		}
		return receive(s, each)
	})
	if err != nil {
		err = fmt.Errorf("aggregator %s (%s): %w", n.Name, n.Addresses.Mesh, err)
		if fault.Is(err, fault.Unavailable) {
			return hint(err, "Check that the aggregator runs and can be reached. Nodes keep their records until it is back.")
		}
		return err
	}
	return nil
}

// followAggregators prints what comes as it comes, from each aggregator at once.
func (c *cli) followAggregators(ctx context.Context, nodes []*iapmeshv1.Node, req *iapmeshv1.QueryRequest, each func(*iapmeshv1.QueryResponse) error) error {
	waiting := c.await("the aggregators")
	defer waiting.stop()
	var mu sync.Mutex
	var group sync.WaitGroup
	errs := make([]error, len(nodes))
	for i, n := range nodes {
		group.Go(func() {
			errs[i] = c.askAggregator(ctx, n, req, func(r *iapmeshv1.QueryResponse) error {
				waiting.stop()
				mu.Lock()
				defer mu.Unlock()
				return each(r)
			})
		})
	}
	group.Wait()
	if req.Follow && ctx.Err() != nil {
		return nil // to follow ends by being interrupted
	}
	return errors.Join(errs...)
}

// mergeAggregators asks all, then prints each record once, in the order of their times.
func (c *cli) mergeAggregators(ctx context.Context, nodes []*iapmeshv1.Node, req *iapmeshv1.QueryRequest, each func(*iapmeshv1.QueryResponse) error) error {
	type timed struct {
		r  *iapmeshv1.QueryResponse
		at time.Time
	}
	var all []timed
	var errs []error
	seen := map[string]bool{}
	waiting := c.await("the aggregators")
	defer waiting.stop()
	for _, n := range nodes {
		errs = append(errs, c.askAggregator(ctx, n, req, func(r *iapmeshv1.QueryResponse) error {
			var head struct {
				Time time.Time `json:"time"`
			}
			if err := json.Unmarshal(r.Record, &head); err != nil {
				return fault.New(fault.Internal, "record %s: %w", r.Id, err)
			}
			if !seen[r.Id] {
				seen[r.Id] = true
				all = append(all, timed{r, head.Time})
			}
			return nil
		}))
	}
	waiting.stop()
	slices.SortStableFunc(all, func(a, b timed) int { return a.at.Compare(b.at) })
	if limit := int(req.Limit); limit > 0 && len(all) > limit {
		if req.Newest {
			all = all[len(all)-limit:]
		} else {
			all = all[:limit]
		}
	}
	for _, t := range all {
		if err := each(t.r); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

// recordPrinter prints records, one a line.
type recordPrinter struct {
	c     *cli
	names map[string]string // of nodes
	paint func(style, string) string
}

func (p *recordPrinter) print(r *iapmeshv1.QueryResponse) error {
	if p.c.output != "table" {
		data, err := json.Marshal(struct {
			ID     string          `json:"id"`
			Record json.RawMessage `json:"record"`
		}{r.Id, r.Record})
		if err != nil {
			return fault.New(fault.Internal, "record %s: %w", r.Id, err)
		}
		return p.c.printJSONLine(data)
	}
	record, err := audit.Decode(r.Record)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(p.c.stdout, p.line(&record))
	return err
}

func (p *recordPrinter) line(r *audit.Record) string {
	node := r.Node
	if name := p.names[node]; name != "" {
		node = name
	}
	parts := []string{r.Time.UTC().Format("2006-01-02T15:04:05.000Z"), fmt.Sprintf("%-10s", r.Kind)}
	add := func(s style, text string) {
		if text != "" {
			parts = append(parts, p.paint(s, text))
		}
	}
	switch r.Decision {
	case audit.Allow:
		add(green, audit.Allow)
	case audit.Deny:
		add(red, audit.Deny)
	}
	who := r.Actor.Email
	if who == "" {
		who = r.Actor.Subject
	}
	add(bold, printable(who))
	add(plain, printable(strings.TrimSpace(r.Method+" "+r.Host+r.Path)))
	if r.Kind == audit.KindOutcome {
		add(dim, "of request "+printable(r.RequestID))
	}
	if r.Status != 0 {
		add(plain, fmt.Sprintf("%d in %.1f ms", r.Status, r.DurationMS))
	}
	add(plain, printable(r.Reason))
	for _, key := range slices.Sorted(maps.Keys(r.Detail)) {
		add(plain, printable(key+"="+r.Detail[key]))
	}
	for _, span := range []*audit.Span{r.Gap, r.Refusals} {
		if span != nil {
			add(yellow, fmt.Sprintf("%d times: %s", span.Count, printable(span.Reason)))
		}
	}
	add(dim, "at "+node+" ("+r.Region+")")
	return strings.Join(parts, "  ")
}

// printable keeps what callers wrote from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || (r >= 0x7f && r < 0xa0) {
			return '\ufffd'
		}
		return r
	}, s)
}
