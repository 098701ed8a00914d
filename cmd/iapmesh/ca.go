package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func newCACommand(c *cli) *cobra.Command {
	return group("ca", "The mesh's certificate authorities", newCAListCommand(c), newCARotateCommand(c))
}

func newCAListCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the mesh's certificate authorities, and what still hangs on those that are retired",
		Long: `List the mesh's certificate authorities. One is active and issues; a prepared one issues once every live node knows it; a retired one
issues nothing, and still verifies. It is forgotten once nothing hangs on it: no certificate of a node or an administrator that it
issued, and no provisioning key that may pin it.`,
		Example: "  iapmesh ca list",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := c.authorities(cmd.Context())
			if err != nil {
				return err
			}
			now := time.Now()
			return c.print(resp, func(t *table) {
				t.head("SERIAL", "STATE", "PIN", "ACKNOWLEDGED", "LAGGING", "SINCE", "EXPIRES", "KEPT BY")
				for _, a := range resp.Authorities {
					t.row(a.Authority.GetSerial(), authorityStateCell(a.Authority), fmt.Sprintf("%.8x", a.Pin), acknowledgedText(a.Receipt),
						strings.Join(laggards(a.Receipt), ","), stampText(authoritySince(a.Authority), now), stampText(a.ExpiresAt, now), holdsText(a.Holds, now))
				}
				if resp.NextRotation != nil {
					t.line("next rotation %s, by schedule", stampText(resp.NextRotation, now))
				}
			})
		},
	}
}

func (c *cli) authorities(ctx context.Context) (*iapmeshv1.ListAuthoritiesResponse, error) {
	return unary(ctx, c, iapmeshv1.NewCustodyServiceClient, iapmeshv1.CustodyServiceClient.ListAuthorities, &iapmeshv1.ListAuthoritiesRequest{})
}

func authorityStateCell(a *iapmeshv1.Authority) cell {
	out := cell{text: enumText(a.GetState(), "AUTHORITY_STATE_"), style: dim}
	switch a.GetState() {
	case iapmeshv1.AuthorityState_AUTHORITY_STATE_ACTIVE:
		out.style = green
	case iapmeshv1.AuthorityState_AUTHORITY_STATE_PREPARED:
		out.style = yellow
	}
	return out
}

func authoritySince(a *iapmeshv1.Authority) *timestamppb.Timestamp {
	switch {
	case a.RetiredAt != nil:
		return a.RetiredAt
	case a.ActiveAt != nil:
		return a.ActiveAt
	}
	return a.CreatedAt
}

func acknowledgedText(r *iapmeshv1.Receipt) string {
	have := len(r.GetAcknowledged())
	return fmt.Sprintf("%d/%d", have, have+len(r.GetLagging()))
}

// holdsText is what keeps a retired authority: a few names, then how many more.
func holdsText(holds []*iapmeshv1.AuthorityHold, now time.Time) string {
	const shown = 3
	var out []string
	for i, h := range holds {
		if i == shown {
			out = append(out, fmt.Sprintf("%d more", len(holds)-shown))
			break
		}
		out = append(out, fmt.Sprintf("%s %s (%s)", h.Kind, h.Name, stampText(h.Until, now)))
	}
	return strings.Join(out, ", ")
}

func newCARotateCommand(c *cli) *cobra.Command {
	wait := false
	var patience time.Duration
	cmd := &cobra.Command{
		Use: "rotate", Short: "Make the next certificate authority, and let it issue once every live node knows it",
		Long: `Make the next certificate authority. It and every authority that the mesh knows sign each other's keys, so that a provisioning key
that pins any of them, and a profile that knows any of them, go on working. Once every live node has acknowledged it, it issues, and nodes
renew their certificates within seconds; the old one stays known as long as anything hangs on it. --wait shows how that goes.

Profiles learn the new root with "iapmesh admin renew". At most 4 authorities are known at a time.`,
		Example: "  iapmesh ca rotate --wait",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewCustodyServiceClient, iapmeshv1.CustodyServiceClient.RotateAuthority, &iapmeshv1.RotateAuthorityRequest{})
			switch {
			case fault.Is(err, fault.Conflict):
				return hint(err, "iapmesh ca list shows how far it is, and who lags.")
			case fault.Is(err, fault.Exhausted):
				return hint(err, "iapmesh ca list shows all that keeps them. Administrators let go by iapmesh admin renew, keys by expiring or being revoked.")
			case err != nil:
				return err
			}
			if wait {
				if resp.Authority, err = c.awaitAuthority(cmd.Context(), resp.Authority.GetAuthority().GetSerial(), patience); err != nil {
					return err
				}
			}
			a := resp.Authority
			return c.print(resp, func(t *table) {
				t.line("authority %s: %s, pin %.8x, acknowledged by %s", a.Authority.GetSerial(), enumText(a.Authority.GetState(), "AUTHORITY_STATE_"), a.Pin, acknowledgedText(a.Receipt))
				if !wait {
					t.line("iapmesh ca list shows when it issues")
				}
			})
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the new authority issues and every live node knows that, and show who has acknowledged it")
	cmd.Flags().DurationVar(&patience, "wait-timeout", 5*time.Minute, "with --wait: give up after this time")
	return cmd
}

func (c *cli) awaitAuthority(ctx context.Context, serial string, patience time.Duration) (*iapmeshv1.AuthorityStatus, error) {
	var found *iapmeshv1.AuthorityStatus
	err := c.poll(ctx, patience, func(ctx context.Context) (line string, done bool, err error) {
		resp, err := c.authorities(ctx)
		if err != nil {
			return "", false, err
		}
		for _, a := range resp.Authorities {
			if a.Authority.GetSerial() != serial {
				continue
			}
			found = a
			line = fmt.Sprintf("%s, acknowledged by %s", enumText(a.Authority.GetState(), "AUTHORITY_STATE_"), acknowledgedText(a.Receipt))
			if lag := laggards(a.Receipt); len(lag) > 0 {
				line += ", lagging: " + strings.Join(lag, ", ")
			}
			return line, a.Authority.GetState() != iapmeshv1.AuthorityState_AUTHORITY_STATE_PREPARED && a.Receipt.GetComplete(), nil
		}
		return "", false, fault.New(fault.NotFound, "no authority %s", serial)
	})
	if errors.Is(err, errPatience) {
		return nil, hint(fault.New(fault.Unavailable, "wait for authority %s to issue: not within %v", serial, patience),
			"The rotation goes on without you; iapmesh ca list shows how far it is, and who lags.")
	}
	return found, err
}

// errPatience says that a step was not taken in time.
var errPatience = errors.New("not in time")

// poll looks twice a second, shows each line that is new on stderr, and ends when it is done, or with errPatience.
func (c *cli) poll(ctx context.Context, patience time.Duration, look func(context.Context) (line string, done bool, err error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errPatience)
	defer cancel()
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	shown := ""
	for {
		line, done, err := look(ctx)
		if err != nil && ctx.Err() == nil && !fault.Is(err, fault.Unavailable) { // whoever waits for minutes waits for the next leader, too
			return err
		}
		if line != shown && err == nil {
			shown = line
			fmt.Fprintln(c.stderr, line)
		}
		if done && err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}
