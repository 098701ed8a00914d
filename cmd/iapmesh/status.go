package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func newStatusCommand(c *cli) *cobra.Command {
	var watch bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use: "status", Short: "Show the mesh: its leader, its revision, and every node by region",
		Long: `Show the mesh as its leader sees it. LAG is how many revisions a node's view is behind, AGE how old that view may be at most.
MARK: L leads, v votes. Lines under the first one say what wants your eye: a restoration that nobody has confirmed, an authority that waits
for nodes, a key whose scheduled rotation is overdue, or whose rotator cannot store the successor, and why.`,
		Example: "  iapmesh status --watch\n  iapmesh status -o json | jq '.nodes[] | select(.lag)'",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watch {
				return c.watchStatus(cmd.Context(), interval)
			}
			status, err := c.status(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(status, func(t *table) { statusTable(t, status) })
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on and show it again as it changes")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "with --watch: how often")
	return cmd
}

func (c *cli) status(ctx context.Context) (*iapmeshv1.Status, error) {
	resp, err := unary(ctx, c, iapmeshv1.NewClusterServiceClient, iapmeshv1.ClusterServiceClient.GetStatus, &iapmeshv1.GetStatusRequest{})
	return resp.GetStatus(), err
}

func (c *cli) watchStatus(ctx context.Context, interval time.Duration) error {
	screen := terminal(c.stdout)
	req := &iapmeshv1.WatchStatusRequest{Interval: durationpb.New(interval)}
	err := stream(ctx, c, iapmeshv1.NewClusterServiceClient, iapmeshv1.ClusterServiceClient.WatchStatus, req, func(m *iapmeshv1.WatchStatusResponse) error {
		if c.output != "table" {
			return c.printLine(m.Status)
		}
		t := c.newTable()
		statusTable(t, m.Status)
		lead, end := "", "\n"
		if screen {
			lead, end = "\x1b[H\x1b[2J", ""
		}
		fmt.Fprint(c.stdout, lead)
		if err := t.flush(c.stdout); err != nil {
			return err
		}
		_, err := fmt.Fprint(c.stdout, end)
		return err
	})
	if ctx.Err() != nil {
		return nil // a watch ends by being interrupted
	}
	return err
}

func statusTable(t *table, s *iapmeshv1.Status) {
	leader := s.Leader
	for _, n := range s.Nodes {
		if n.Leader {
			leader = n.Node.Name + " (" + n.Node.Region + ")"
		}
	}
	t.line("mesh %s  trust domain %s  leader %s  term %d  revision %s", s.MeshId, s.TrustDomain, leader, s.Term, revisionText(s.Revision))
	for _, a := range s.Attention {
		text := a.Text
		if a.Command != "" {
			text += " (" + a.Command + ")"
		}
		t.rows = append(t.rows, []cell{{text: text, line: true, style: yellow}})
	}
	t.line("")
	t.head("REGION", "NAME", "MARK", "ROLES", "STATE", "REVISION", "LAG", "AGE", "SESSIONS", "REQ/S", "CERTIFICATE", "VERSION", "ID")
	for _, n := range s.Nodes {
		statusRow(t, n, s.At.AsTime())
	}
}

func statusRow(t *table, n *iapmeshv1.NodeStatus, now time.Time) {
	mark := ""
	if n.Leader {
		mark = "L"
	}
	if n.Voter {
		mark += "v"
	}
	state := standingCell(n, now)
	if n.Report == nil {
		t.row(n.Node.Region, n.Node.Name, mark, rolesText(n.Node.Roles), state, "", "", "", "", "", untilCell(n.Node.CertificateExpiresAt.AsTime(), now), "", n.Node.Id)
		return
	}
	r := n.Report
	lag := cell{text: fmt.Sprint(n.Lag)}
	if n.Lag > 0 {
		lag.style = yellow
	}
	t.row(n.Node.Region, n.Node.Name, mark, rolesText(n.Node.Roles), state, revisionText(r.Revision), lag,
		spanText(time.Duration(r.ViewAgeMs)*time.Millisecond), r.Sessions, fmt.Sprintf("%.1f", r.RequestsPerSecond),
		untilCell(r.CertificateExpiresAt.AsTime(), now), r.Version, n.Node.Id)
}

// standingCell is a node's state and, of one that is active and does not report, for how long it has not.
func standingCell(n *iapmeshv1.NodeStatus, now time.Time) cell {
	state := cell{text: enumText(n.Node.State, "NODE_STATE_"), style: green}
	switch {
	case n.Node.State == iapmeshv1.NodeState_NODE_STATE_QUARANTINED || n.Node.State == iapmeshv1.NodeState_NODE_STATE_REVOKED:
		state.style = red
	case n.Node.State != iapmeshv1.NodeState_NODE_STATE_ACTIVE:
		state.style = dim
	case !n.Live && !n.Leader: // who leads need not tell itself
		state = cell{text: state.text + ", silent", style: red}
		if n.ReportedAt != nil {
			state.text = "silent for " + spanText(now.Sub(n.ReportedAt.AsTime()))
		}
	}
	return state
}

// untilCell says when a certificate ends, and warns before it does.
func untilCell(at, now time.Time) cell {
	switch left := at.Sub(now); {
	case at.Unix() <= 0:
		return cell{}
	case left <= 0:
		return cell{text: "expired", style: red}
	case left < 4*time.Hour: // it should have been renewed at two thirds of its 24 h
		return cell{text: spanText(left), style: yellow}
	default:
		return cell{text: spanText(left)}
	}
}
