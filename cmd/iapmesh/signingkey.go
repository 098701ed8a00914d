package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func newSigningKeyCommand(c *cli) *cobra.Command {
	return group("signing-key", "The keys that sign sessions and assertions", newSigningKeyListCommand(c), newSigningKeyRotateCommand(c))
}

func newSigningKeyListCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the signing keys, their states, and who can verify them", Example: "  iapmesh signing-key list", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := c.signingKeys(cmd.Context())
			if err != nil {
				return err
			}
			names := c.nodeNames(cmd.Context())
			now := time.Now()
			return c.print(resp, func(t *table) {
				t.head("KID", "KIND", "STATE", "HOLDER", "ROUTES", "ACKNOWLEDGED", "LAGGING", "SINCE")
				for _, s := range resp.Keys {
					k := s.Key
					holder := k.Region
					if k.Node != "" {
						holder = k.Region + "/" + names(k.Node)
					}
					state := enumText(k.State, "SIGNING_KEY_STATE_")
					if k.RotateRequested {
						state += ", rotating"
					}
					have, all := len(s.Receipt.GetAcknowledged()), len(s.Receipt.GetAcknowledged())+len(s.Receipt.GetLagging())
					t.row(k.Kid, enumText(k.Kind, "SIGNING_KEY_KIND_"), cell{text: state, style: signingStyle(k.State)}, holder, k.RouteSelector,
						fmt.Sprintf("%d/%d", have, all), strings.Join(laggards(s.Receipt), ","), stampText(k.StateSince, now))
				}
			})
		},
	}
}

func signingStyle(s iapmeshv1.SigningKeyState) style {
	switch s {
	case iapmeshv1.SigningKeyState_SIGNING_KEY_STATE_ACTIVE:
		return green
	case iapmeshv1.SigningKeyState_SIGNING_KEY_STATE_ANNOUNCED:
		return yellow
	case iapmeshv1.SigningKeyState_SIGNING_KEY_STATE_REVOKED:
		return red
	}
	return dim
}

func laggards(r *iapmeshv1.Receipt) []string {
	var names []string
	for _, l := range r.GetLagging() {
		names = append(names, l.Name)
	}
	return names
}

func (c *cli) signingKeys(ctx context.Context) (*iapmeshv1.ListSigningKeysResponse, error) {
	return unary(ctx, c, iapmeshv1.NewKeyServiceClient, iapmeshv1.KeyServiceClient.ListSigningKeys, &iapmeshv1.ListSigningKeysRequest{})
}

// nodeNames returns how people call a node; its id where that cannot be learned.
func (c *cli) nodeNames(ctx context.Context) func(string) string {
	names := map[string]string{}
	if status, err := c.status(ctx); err == nil {
		for _, n := range status.Nodes {
			names[n.Node.Id] = n.Node.Name
		}
	}
	return func(id string) string {
		if name := names[id]; name != "" {
			return name
		}
		return id
	}
}

func newSigningKeyRotateCommand(c *cli) *cobra.Command {
	req := &iapmeshv1.RotateSigningKeysRequest{}
	kind, wait := "", false
	var patience time.Duration
	cmd := &cobra.Command{
		Use: "rotate", Short: "Ask for the next signing keys",
		Long: `Ask the holders of active signing keys for the next ones: all, or those of a kind, a node or a region. A new key is announced, every
live node acknowledges that it can verify it, and only then does it sign; nobody is signed out. --wait shows how that goes.`,
		Example: `  iapmesh signing-key rotate --wait
  iapmesh signing-key rotate --kind session --node px-1`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch kind {
			case "":
			case "session":
				req.Kind = iapmeshv1.SigningKeyKind_SIGNING_KEY_KIND_SESSION
			case "assertion":
				req.Kind = iapmeshv1.SigningKeyKind_SIGNING_KEY_KIND_ASSERTION
			default:
				return usagef("--kind %.40q: want session or assertion", kind)
			}
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewKeyServiceClient, iapmeshv1.KeyServiceClient.RotateSigningKeys, req)
			if err != nil {
				return err
			}
			if wait {
				if resp.Receipt, err = c.awaitReceipt(cmd.Context(), resp.Receipt, waitLive); err != nil {
					return err
				}
				if err := c.awaitSuccessors(cmd.Context(), resp.Rotating, patience); err != nil {
					return err
				}
			}
			return c.print(resp, func(t *table) {
				verb := "rotating"
				if wait {
					verb = "rotated"
				}
				t.line("%s %d signing keys: %s", verb, len(resp.Rotating), strings.Join(resp.Rotating, " "))
				receiptLines(t, resp.Receipt)
				if !wait {
					t.line("iapmesh signing-key list shows how far they are")
				}
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Node, "node", "", "session keys of this `NODE` only, by id or name")
	f.StringVar(&req.Region, "region", "", "keys of this `REGION` only")
	f.StringVar(&kind, "kind", "", "`KIND`: session or assertion (default: both)")
	f.BoolVar(&wait, "wait", false, "wait until the new keys sign, and show who has acknowledged them")
	f.DurationVar(&patience, "wait-timeout", 5*time.Minute, "with --wait: give up after this time")
	return cmd
}

// rotation is how far the successor of one key is.
type rotation struct {
	old  string
	line string
	done bool
}

// awaitSuccessors shows how the successors of signing keys come to sign, until all do.
func (c *cli) awaitSuccessors(ctx context.Context, kids []string, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	names := c.nodeNames(ctx)
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	shown := map[string]string{}
	for {
		resp, err := c.signingKeys(ctx)
		if err != nil && ctx.Err() == nil && !fault.Is(err, fault.Unavailable) { // whoever waits for minutes waits for the next leader, too
			return err
		}
		var open []string
		for _, r := range rotations(resp.GetKeys(), kids, names) {
			if shown[r.old] != r.line {
				shown[r.old] = r.line
				fmt.Fprintln(c.stderr, r.line)
			}
			if !r.done {
				open = append(open, r.old)
			}
		}
		if err == nil && len(open) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return hint(fault.New(fault.Unavailable, "wait for the successors of %s: not within %v", strings.Join(open, " "), patience),
				"The rotation goes on without you; iapmesh signing-key list shows how far it is, and who lags.")
		case <-ticker.C:
		}
	}
}

// rotations pairs each of the old keys with the newest key of the same slot.
func rotations(keys []*iapmeshv1.SigningKeyStatus, old []string, names func(string) string) []rotation {
	slot := func(k *iapmeshv1.SigningKey) string {
		return strings.Join([]string{k.Kind.String(), k.Node, k.Region, k.RouteSelector}, "\x00")
	}
	var out []rotation
	for _, s := range keys {
		if !slices.Contains(old, s.Key.Kid) {
			continue
		}
		r := rotation{old: s.Key.Kid}
		who := s.Key.Region
		if s.Key.Node != "" {
			who += "/" + names(s.Key.Node)
		}
		r.line = fmt.Sprintf("%s %s: asked for a successor of %s", who, enumText(s.Key.Kind, "SIGNING_KEY_KIND_"), s.Key.Kid)
		var next *iapmeshv1.SigningKeyStatus
		for _, n := range keys {
			if slot(n.Key) == slot(s.Key) && n.Key.AnnouncedAt.AsTime().After(s.Key.AnnouncedAt.AsTime()) && (next == nil || n.Key.AnnouncedAt.AsTime().After(next.Key.AnnouncedAt.AsTime())) {
				next = n
			}
		}
		if next == nil && silent(s) {
			r.line += ": its holder is silent, and announces one when it is back"
			r.done = true
		}
		if next != nil {
			have, all := len(next.Receipt.GetAcknowledged()), len(next.Receipt.GetAcknowledged())+len(next.Receipt.GetLagging())
			r.line = fmt.Sprintf("%s %s: %s %s, acknowledged by %d/%d", who, enumText(s.Key.Kind, "SIGNING_KEY_KIND_"), next.Key.Kid, enumText(next.Key.State, "SIGNING_KEY_STATE_"), have, all)
			if lag := laggards(next.Receipt); len(lag) > 0 {
				r.line += ", lagging: " + strings.Join(lag, ", ")
			}
			r.done = s.Key.State != iapmeshv1.SigningKeyState_SIGNING_KEY_STATE_ACTIVE && next.Key.State == iapmeshv1.SigningKeyState_SIGNING_KEY_STATE_ACTIVE
		}
		out = append(out, r)
	}
	return out
}

// silent reports whether the node that holds a session key has stopped reporting: nobody else can announce its successor.
func silent(s *iapmeshv1.SigningKeyStatus) bool {
	return slices.ContainsFunc(s.Receipt.GetLagging(), func(l *iapmeshv1.Laggard) bool { return l.NodeId == s.Key.Node && !l.Live })
}
